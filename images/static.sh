#!/bin/sh
# Stands before rustc (RUSTC_WRAPPER, of which cargo's fingerprints know nothing): has our own programs linked statically,
# and leaves everything else as it comes.
# shellcheck disable=SC2046 # several flags
rustc=$1
shift
case " $* " in
  *" --crate-name sidegate"*" --crate-type bin "*) exec "$rustc" "$@" $(cat "${0%/*}/link.flags") ;;
  *) exec "$rustc" "$@" ;;
esac
