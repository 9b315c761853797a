#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh [target...]: builds the fuzz targets with the stable compiler, and gives
# each some inputs.  What `cargo fuzz` does with the nightly one goes further: it
# finds faults in unsafe code, too.
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
# The same versions as everything else, as far as they are the same crates.
[ -e fuzz/Cargo.lock ] || cp Cargo.lock fuzz/Cargo.lock
CARGO_PROFILE_DEV_DEBUG=line-tables-only RUSTFLAGS="--cfg fuzzing ${coverage[*]}" \
    cargo build --quiet --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$work"
if [ $# = 0 ]; then
    targets=(fuzz/fuzz_targets/*.rs)
    targets=("${targets[@]##*/}")
    set -- "${targets[@]%.rs}"
fi

# try_target <target>: a fault's input is kept, and its path is in what libFuzzer says.
try_target() {
    if "$work/$host/debug/$1" -runs="${RUNS:-20000}" -seed=1 -max_len=4096 -timeout=20 \
        -artifact_prefix="$work/$1-" >"$work/$1.log" 2>&1; then
        printf 'fuzz: %s: %s\n' "$1" "$(tail -n 1 "$work/$1.log")"
    else
        { tail -n 40 "$work/$1.log"; printf 'fuzz: error: %s\n' "$1"; } >&2
        return 1
    fi
}
export -f try_target
export work host
# shellcheck disable=SC2016 # the inner shell expands it
printf '%s\n' "$@" | xargs -n 1 -P "$(nproc)" bash -c 'try_target "$@"' try
