#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# crates.sh: prints the crates that are in the programs of a release, one a line, each once: name,
# version, licence and, if it is ours, its directory, with "|" between them.  Those that only build
# or test them, and procedural macros, are in none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C

host=$(rustc -vV | sed -n 's/^host: //p')
# crates_of <package...>: of packages that are built together, as the Makefile does it.
crates_of() {
    cargo tree --locked --target "$host" --edges normal,no-proc-macro --prefix none \
        --format '{p}|{l}' "${@/#/-p}" | sed 's/ (\*)//'
}
{
    crates_of shim-runc shim-vm guest manager deploy
    crates_of image
} | sed -nE 's/^([^ ]+) v([^ |]+)( \(proc-macro\))?( \((.*)\))?\|(.*)$/\1|\2|\6|\5/p' |
    sed -E 's# ?/ ?(Apache-2.0|MIT)# OR \1#' | grep -v '^[^|]*|[^|]*||' | sort -u
