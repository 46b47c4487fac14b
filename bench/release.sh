#!/usr/bin/env bash
# Builds the release: our crates once instrumented, then a short run of `train.sh`, then the programs themselves, laid out by what
# that run did. `make bench` measures these; images are built without a profile as yet (the sidecar would be too large). Where
# llvm-profdata (rustup's component llvm-tools) or PostgreSQL is missing, the programs are built without a profile, and the last
# lines say so. SIDEGATE_PROFILE=no: without a profile.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
CARGO=${CARGO:-cargo}
# Always the same: which packages are built at once changes what they share, and so the names that functions are found again by.
packages=(-p sidegate -p sidegate-sidecar -p sidegate-broker -p sidegate-injector)
metadata=$($CARGO metadata --no-deps --format-version 1 --offline)
target=$(sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p' <<<"$metadata")
# One that was left out would stay instrumented.
mapfile -t ours < <(python3 -c 'import json, sys; [print("-p", p["name"], sep="\n") for p in json.load(sys.stdin)["packages"]]' <<<"$metadata")
work=$target/pgo
merged=$work/merged.profdata

# `rustc.sh` links statically, with a profile or without.
build() {
  SIDEGATE_RUSTC_FLAGS=$1 RUSTC_WORKSPACE_WRAPPER=$here/rustc.sh $CARGO build --locked --release "${packages[@]}" "${@:2}"
}

plain() {
  $CARGO clean --quiet --release "${ours[@]}"
  rm -f "$work/built"
  build ''
  echo "Built WITHOUT a profile ($1): these programs take more CPU per operation than the ones that are measured." >&2
  exit 0
}

# Builds our crates with more flags, and leaves everybody else's as they are: those are built once for all. Cargo does not look at
# the flags, so what was built with others goes first. Both times everything else is alike, for functions are found again by names
# that depend on it and on how everything is linked.
with() {
  $CARGO clean --quiet --release "${ours[@]}" && build "$@"
}

[ "${SIDEGATE_PROFILE:-yes}" != no ] || plain "SIDEGATE_PROFILE=no"
profdata=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-profdata
[ -x "$profdata" ] || rustup component add llvm-tools >/dev/null 2>&1 || true
[ -x "$profdata" ] || plain "no llvm-profdata: rustup component add llvm-tools"
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || plain "no PostgreSQL to train with: bash tests/setup/need.sh postgres"

# What was built of the same sources is there already.
state=$( { git rev-parse HEAD; git diff HEAD; git ls-files --others --exclude-standard; rustc -vV; } 2>/dev/null | sha256sum)
if [ -e "$merged" ] && [ "$(cat "$work/built" 2>/dev/null)" = "$state" ]; then
  build "-Cprofile-use=$merged"
  echo "Built by a profile of bench/train.sh: $target/release" >&2
  exit 0
fi

train() {
  rm -rf "$work" && mkdir -p "$work" &&
    echo "1/3  building instrumented" >&2 &&
    with "-Cprofile-generate=$work" --bin sidegate &&
    echo "2/3  training" >&2 &&
    SIDEGATE=$target/release/sidegate LLVM_PROFILE_FILE=$work/%p-%m.profraw bash "$here/train.sh" &&
    "$profdata" merge -sparse -o "$merged" "$work"/*.profraw &&
    rm -f "$work"/*.profraw
}
train || plain "the training failed: see above"
echo "3/3  building by profile" >&2
with "-Cprofile-use=$merged"
echo "$state" >"$work/built"
echo "Built by a profile of bench/train.sh: $target/release" >&2
