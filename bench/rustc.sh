#!/bin/sh
# Cargo calls the compiler through this for our own crates (RUSTC_WORKSPACE_WRAPPER): `release.sh` adds flags to them alone. Programs
# are linked as those of the images are.
# shellcheck disable=SC2046,SC2086 # several flags
case " $* " in
  *" --crate-name sidegate"*" --crate-type bin "*)
    exec "$@" $SIDEGATE_RUSTC_FLAGS $(cat "${0%/*}/../images/link.flags") ;;
  *) exec "$@" $SIDEGATE_RUSTC_FLAGS ;;
esac
