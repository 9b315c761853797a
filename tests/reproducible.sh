#!/usr/bin/env bash
# reproducible.sh: proves that a release can be made again, to the byte: builds this commit in two
# clones, in directories of different names, one after the other, and compares what `make dist` put
# into target/release of each.  It takes two builds, and 2 GB of disk.
#
# Debian's packages, which the guest image is made of, are fetched once; crun is built in both.
#
#   ONLY=shim-runc   builds that package alone, and compares its program: a minute each
#   WORK=dir         is used in place of target/reproducible
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C

say() { printf 'reproducible: %s\n' "$*"; }

checkout=$PWD
work=${WORK:-target/reproducible}
rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -n "$(git status --porcelain)" ]; then say "the checkout has changes, which are not built"; fi

# build <clone>: what is compared, into <clone>/made.
build() {
    local tree=$work/$1
    git clone -q "$checkout" "$tree"
    mkdir -p "$tree/target/guest" "$tree/made"
    ln -s "$(realpath -m "${DUNNAGE_PEERS:-target/peers}")" "$tree/target/peers"
    for package in target/guest/*/VERSION; do
        case $package in */crun-static/* | */kernel/* | target/guest/\*/*) ;; *) cp -a "${package%/VERSION}" "$tree/target/guest" ;; esac
    done
    if [ -n "${ONLY-}" ]; then
        make -C "$tree" --silent build-only ONLY="$ONLY"
        find "$tree"/target/*-linux-gnu/release -maxdepth 1 -type f -perm -100 -exec mv -t "$tree/made" {} +
    else
        make -C "$tree" --silent build guest
        (cd "$tree" && release/dist.sh)
        mv "$tree"/target/release/dunnage* "$tree"/target/release/SHA256SUMS "$tree/made"
    fi
    mv "$tree/made" "$work/made-$1"
    rm -rf "$tree"
}

# Names of different lengths, and the second in another umask.
say "the first build"
build a
say "the second build"
(umask 077 && build directory-of-another-name)
[ -n "$(ls "$work/made-a")" ] || { say "nothing was built"; exit 1; }
for file in "$work"/made-a/*; do
    name=$(basename "$file")
    cmp "$file" "$work/made-directory-of-another-name/$name" || { say "$name differs"; exit 1; }
    say "the same: $(sha256sum <"$file" | cut -c -16) $name"
done
