#!/usr/bin/env bash
# Runs every fuzz target for so many seconds, one after the other, and says what each did. A crash stops the run and
# leaves its input in fuzz/artifacts. Needs no nightly compiler: libFuzzer's hooks are inserted by the pass manager.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
seconds=${1:-60}
targets=$(ls fuzz_targets/*.rs | xargs -n 1 basename | sed 's/\.rs$//')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Clinker=clang -Clink-arg=-fuse-ld=mold --cfg fuzzing"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
echo "Building the fuzz targets (some minutes the first time)..."
# The explicit target keeps build scripts and proc macros free of the hooks.
cargo build --quiet --release --locked --target x86_64-unknown-linux-gnu
for target in $targets; do
  mkdir -p "corpus/$target" artifacts seeds/"$target"
  echo "== $target, $seconds s"
  "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/$target" "corpus/$target" "seeds/$target" \
    -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 -artifact_prefix=artifacts/"$target"- 2>"artifacts/$target.log" \
    || { tail -n 40 "artifacts/$target.log"; echo "$target found something: see fuzz/artifacts"; exit 1; }
  grep -E 'stat::number_of_executed_units|stat::peak_rss_mb' "artifacts/$target.log"
done
echo "All targets ran without a finding."
