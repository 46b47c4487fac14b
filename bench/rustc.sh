#!/bin/sh
# Cargo calls the compiler through this for our own crates (RUSTC_WORKSPACE_WRAPPER): `release.sh` adds flags to them alone. Programs
# are linked statically, as those of the images are, with relocations packed (glibc 2.36 and newer can).
# shellcheck disable=SC2086 # several flags
case " $* " in
  *" --crate-name sidegate"*" --crate-type bin "*)
    exec "$@" $SIDEGATE_RUSTC_FLAGS -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs -C strip=symbols ;;
  *) exec "$@" $SIDEGATE_RUSTC_FLAGS ;;
esac
