#!/bin/sh
# Stands before rustc (RUSTC_WRAPPER, of which cargo's fingerprints know nothing): has our own programs linked statically,
# and leaves everything else as it comes.
rustc=$1
shift
case " $* " in
  *" --crate-name sidegate"*" --crate-type bin "*) exec "$rustc" "$@" \
    -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--icf=all -C strip=symbols ;;
  *) exec "$rustc" "$@" ;;
esac
