#!/bin/sh
# Cargo calls the compiler through this for our own crates (RUSTC_WORKSPACE_WRAPPER): `release.sh` adds flags to them alone.
# shellcheck disable=SC2086 # several flags
exec "$@" $SIDEGATE_RUSTC_FLAGS
