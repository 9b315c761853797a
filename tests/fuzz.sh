#!/usr/bin/env bash
# fuzz.sh [crate...]: builds the fuzz targets of protos, task and shim with the
# stable compiler, and gives each some inputs.  What `cargo fuzz` does with the
# nightly one goes further: it finds faults in unsafe code, too.
#
#   RUNS   how many inputs for each target (20000)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
work=$PWD/target/fuzz
mkdir -p "$work"
coverage=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
          -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
          -Cllvm-args=-sanitizer-coverage-pc-table
          -Cllvm-args=-sanitizer-coverage-trace-compares)
if [ $# = 0 ]; then set -- protos task shim; fi
for crate in "$@"; do
    # The same versions as everything else, as far as they are the same crates.
    [ -e "$crate/fuzz/Cargo.lock" ] || cp Cargo.lock "$crate/fuzz/Cargo.lock"
    RUSTFLAGS="--cfg fuzzing ${coverage[*]}" \
        cargo build --quiet --manifest-path "$crate/fuzz/Cargo.toml" --target "$host" --target-dir "$work"
    for source in "$crate"/fuzz/fuzz_targets/*.rs; do
        target=$(basename "$source" .rs)
        # A fault's input is kept, and its path is in what libFuzzer says.
        if "$work/$host/debug/$target" -runs="${RUNS:-20000}" -seed=1 -max_len=4096 -timeout=20 \
            -artifact_prefix="$work/$crate-$target-" >"$work/log" 2>&1; then
            printf 'fuzz: %s %s: %s\n' "$crate" "$target" "$(tail -n 1 "$work/log")"
        else
            tail -n 40 "$work/log" >&2
            printf 'fuzz: error: %s %s\n' "$crate" "$target" >&2
            exit 1
        fi
    done
done
