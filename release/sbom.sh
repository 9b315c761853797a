#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# sbom.sh: prints the bill of materials of a release, in CycloneDX's JSON: every crate in the programs
# with the checksum that Cargo.lock has of it and what it depends on, the standard library, the C
# library, and the kernel and runtime of the guest images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. release/version.sh

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
release/crates.sh | jq -R 'split("|") | {name: .[0], version: .[1], license: .[2], ours: (.[3] != "")}' |
    jq -s . >"$work/crates"
# The paragraphs of Cargo.lock.
awk -v RS= '/\[\[package\]\]/ {
    match($0, /name = "[^"]*"/); name = substr($0, RSTART + 8, RLENGTH - 9)
    match($0, /version = "[^"]*"/); number = substr($0, RSTART + 11, RLENGTH - 12)
    if (match($0, /checksum = "[^"]*"/)) print name, number, substr($0, RSTART + 12, RLENGTH - 13)
}' Cargo.lock | jq -R 'split(" ") | {key: "\(.[0]) \(.[1])", value: .[2]}' | jq -s from_entries >"$work/checksums"
cargo metadata --locked --format-version 1 --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" >"$work/metadata"

# What is not Rust's: name, version, where it is from.
{
    echo "rust-std $(rustc -V | cut -d ' ' -f 2) pkg:generic/rust-std@ MIT OR Apache-2.0"
    if libc=$(dpkg-query -f '${Version}' -W libc6-dev 2>/dev/null); then
        echo "glibc $libc pkg:deb/debian/glibc@ LGPL-2.1-or-later"
    fi
    for image in "$guest"/*/guest.toml; do
        kernel=$(sed -n 's/^kernel_package = "\(.*\)"/\1/p' "$image")
        echo "linux $kernel pkg:deb/debian/linux@ GPL-2.0-only WITH Linux-syscall-note"
        read -r runtime number <<<"$(sed -n 's/^runtime = "\(.*\)"/\1/p' "$image")"
        echo "$runtime $number pkg:generic/$runtime@ GPL-2.0-or-later"
    done
} | sort -u | jq -R 'capture("^(?<name>[^ ]+) (?<version>[^ ]+) (?<at>[^ ]+) (?<license>.*)$")' | jq -s . >"$work/others"

jq -n --arg version "$version" --arg arch "$arch" --arg time "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
    --slurpfile crates "$work/crates" --slurpfile checksums "$work/checksums" --slurpfile others "$work/others" \
    --slurpfile metadata "$work/metadata" '
def purl: "pkg:cargo/\(.name)@\(.version)";
($crates[0] | map({key: "\(.name) \(.version)", value: purl}) | from_entries) as $known
| ($metadata[0].packages | map({key: .id, value: "\(.name) \(.version)"}) | from_entries) as $called
| ($others[0] | map(.at + .version)) as $foreign
| "pkg:generic/dunnage@\($version)?arch=\($arch)" as $root
| {
    bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
    metadata: {
        timestamp: $time,
        component: {
            type: "application", "bom-ref": $root, name: "dunnage", version: $version, purl: $root,
            licenses: [{license: {id: "Apache-2.0"}}]
        }
    },
    components: (
        [$crates[0][] | {
            type: "library", "bom-ref": purl, name, version, purl: purl, licenses: [{expression: .license}]
        } + (($checksums[0]["\(.name) \(.version)"]) as $sum
            | if $sum then {hashes: [{alg: "SHA-256", content: $sum}]} else {} end)]
        + [$others[0][] | {
            type: "library", "bom-ref": (.at + .version), name, version, purl: (.at + .version),
            licenses: [{expression: .license}]
        }]
    ),
    dependencies: (
        [{ref: $root, dependsOn: ([$crates[0][] | select(.ours) | purl] + $foreign)}]
        + [$metadata[0].resolve.nodes[] | $known[$called[.id]] as $ref | select($ref) | {
            ref: $ref,
            dependsOn: ([.deps[] | select(any(.dep_kinds[]; .kind == null)) | $known[$called[.pkg]] | select(.)]
                | unique)
        }] | sort_by(.ref)
    )
}'
