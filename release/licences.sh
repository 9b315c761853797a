#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# licences.sh: prints the licences of all that others wrote and that is in the programs of a release:
# each text once, with the crates that it is for above it; then what Debian says of the guest's
# kernel and of crun.
#
# A crate that comes without a text has that of another crate of its repository; or, if Apache-2.0
# is among its licences, that one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. release/version.sh

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo metadata --locked --format-version 1 >"$work/metadata"
jq -r '.packages[] | [.name, .version, (.repository // "-" | rtrimstr("/") | sub("/tree/.*"; "")), .manifest_path] | @tsv' \
    <"$work/metadata" >"$work/packages"

# texts <directory>: the files there that are licences.
texts() {
    find "$1" -maxdepth 2 -type f -regextype posix-extended \
        -iregex '.*/(licen[sc]es?|copying|copyright|notice|unlicense)([-._][^/]*)?(/[^/]*)?' ! -name '*.rs' | sort
}

# of <name> <version>: the repository and the directory of a crate.
of() { awk -F '\t' -v name="$1" -v version="$2" '$1 == name && $2 == version { print $3, $4 }' "$work/packages"; }

while IFS='|' read -r crate number licence ours; do
    [ -z "$ours" ] || continue
    read -r repository manifest <<<"$(of "$crate" "$number")"
    mapfile -t found < <(texts "$(dirname "$manifest")")
    if [ "${#found[@]}" = 0 ]; then
        while read -r sibling; do
            mapfile -t found < <(texts "$(dirname "$sibling")")
            [ "${#found[@]}" = 0 ] || break
        done < <(awk -F '\t' -v it="$repository" '$3 == it { print $4 }' "$work/packages")
    fi
    if [ "${#found[@]}" = 0 ]; then
        case $licence in
            *Apache-2.0*) found=(LICENSE) ;;
            *) printf 'licences: %s %s (%s) has no text\n' "$crate" "$number" "$licence" >&2; exit 1 ;;
        esac
    fi
    for file in "${found[@]}"; do
        sum=$(sha256sum <"$file")
        sum=${sum%% *}
        [ -e "$work/$sum" ] || cp "$file" "$work/$sum"
        echo "$crate $number ($licence)" >>"$work/$sum.of"
    done
done < <(release/crates.sh)

rule=$(printf '%.0s-' {1..80})
printf 'The programs of dunnage are Apache-2.0, and have in them what others wrote, with these licences.\n'
printf 'The standard library of Rust is MIT or Apache-2.0, and the C library of Debian LGPL-2.1 or later.\n'
# In the order of the first crate that has it.
for list in $(find "$work" -name '*.of' -exec grep -H -m1 '' {} + | sed 's/:/ /' | sort -k2 -k1 | cut -d ' ' -f 1); do
    printf '\n%s\n' "$rule"
    sort -u "$list"
    printf '\n'
    cat "${list%.of}"
done
for copyright in "$guest"/*/copyright; do
    [ -e "$copyright" ] || continue
    printf '\n%s\nThe guest image %s\n\n' "$rule" "$(basename "$(dirname "$copyright")")"
    cat "$copyright"
done
