#!/usr/bin/env bash
# Builds the fuzz targets on stable Rust and runs each for some seconds:  run.sh SECONDS [target...]
# What a run finds stays outside git: its inputs in fuzz/target/findings/<target>, a crash in fuzz/target/crashes.
# With FUZZ_INPUT=<file>, the one target named is run on that file alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
seconds=$1
shift
all=(agent server walker record jwt)
[ $# -gt 0 ] && targets=("$@") || targets=("${all[@]}")
for target in "${targets[@]}"; do
  [ -e "targets/$target.rs" ] || { echo "fuzz: there is no target $target; there are: ${all[*]}" >&2; exit 2; }
done

# What cargo-fuzz would pass, without its nightly compiler and its sanitizers: the code is safe Rust. A triple is named,
# so that build scripts and macros are not instrumented.
cargo=${CARGO:-cargo}
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
  coverage+=" -Cllvm-args=-sanitizer-coverage-$flag"
done
export RUSTFLAGS="$coverage --cfg fuzzing -Clink-arg=-fuse-ld=mold"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
echo "Building the fuzz targets (the first time takes some minutes)..."
"$cargo" build --locked --quiet --release --target "$host" --bins

failed=0
for target in "${targets[@]}"; do
  program=$CARGO_TARGET_DIR/$host/release/$target
  found=$CARGO_TARGET_DIR/findings/$target
  crashes=$CARGO_TARGET_DIR/crashes
  mkdir -p "$found" "$crashes"
  limits=(-timeout=10 -rss_limit_mb=2048)
  if [ -n "${FUZZ_INPUT:-}" ]; then
    RUST_BACKTRACE=1 "$program" "${limits[@]}" "$FUZZ_INPUT"
    continue
  fi
  options=("${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="$crashes/$target-")
  case $target in
    agent | server) options+=(-dict=dictionaries/room.dict -max_len=2048) ;;
    record) options+=(-max_len=256) ;;
    *) options+=(-dict="dictionaries/$target.dict" -max_len=2048) ;;
  esac
  log=$found.log
  code=0
  RUST_BACKTRACE=1 "$program" "${options[@]}" "$found" "corpus/$target" >"$log" 2>&1 || code=$?
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
  covered=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2 || true)
  printf '%-7s %10s executions %7s/s  coverage %6s  ' "$target" "${executions:-?}" "${speed:-?}" "${covered:-?}"
  if [ "$code" = 0 ]; then
    echo "no crash"
    continue
  fi
  failed=1
  artifact=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
  case $code in
    70) echo "TIMEOUT: one input took more than 10 s" ;;
    71) echo "OUT OF MEMORY: above 2 GiB" ;;
    *) echo "CRASH (exit code $code)" ;;
  esac
  grep -E "panicked at|ERROR: libFuzzer" -A2 "$log" | head -n 6 | sed 's/^/        /' || true
  echo "        the whole log: $log"
  [ -z "$artifact" ] || echo "        reproduce:     make fuzz TARGETS=$target INPUT=$artifact"
done
exit $failed
