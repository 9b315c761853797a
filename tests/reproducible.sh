#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# reproducible.sh: proves that a release can be made again, to the byte: builds this commit in two
# clones, in directories of different names, one after the other, and compares what `make dist` put
# into target/release of each.  It takes two builds, and 2 GB of disk.
#
# Debian's packages, which the guest image is made of, are fetched once; crun is built in both.
#
#   ONLY="containerd-shim-runc-v2"  builds these programs alone, once, and compares them with those
#                                   that `make build` has made of the same commit: a minute each
#   WORK=dir                        is used in place of target/reproducible
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C

say() { printf 'reproducible: %s\n' "$*"; }

checkout=$PWD
# Of both builds, whatever is committed meanwhile.
commit=$(git rev-parse HEAD)
work=${WORK:-target/reproducible}
rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -n "$(git status --porcelain)" ]; then say "the checkout has changes, which are not built"; fi

# clone <name>: this commit, with what can be had only from elsewhere.
clone() {
    tree=$work/$1
    git clone -q --no-checkout "$checkout" "$tree"
    git -C "$tree" checkout -q "$commit"
    mkdir -p "$tree/target/guest"
    ln -s "$(realpath -m "${DUNNAGE_PEERS:-target/peers}")" "$tree/target/peers"
    for package in target/guest/*/VERSION; do
        case $package in */crun-static/* | */kernel/* | target/guest/\*/*) ;; *) cp -a "${package%/VERSION}" "$tree/target/guest" ;; esac
    done
}

# release <name>: the release that a clone of that name makes, in $work/made-<name>.
release() {
    clone "$1"
    make -C "$tree" --silent build guest
    (cd "$tree" && release/dist.sh)
    mkdir "$work/made-$1"
    mv "$tree"/target/release/dunnage* "$tree"/target/release/SHA256SUMS "$work/made-$1"
    rm -rf "$tree"
}

# same <file> <file>; of an archive, the files in it that differ are said.
same() {
    if ! cmp "$1" "$2"; then
        case $1 in
            *.tar.gz)
                mkdir "$work/one" "$work/two"
                tar -C "$work/one" -xzf "$1"
                tar -C "$work/two" -xzf "$2"
                diff -rq "$work/one" "$work/two" || :
                ;;
        esac
        say "${1##*/} differs"
        exit 1
    fi
    say "the same: $(sha256sum <"$1" | cut -c -16) ${1##*/}"
}

# What is built the second time has a directory of another length, and another umask.
if [ -n "${ONLY-}" ]; then
    umask 077
    clone directory-of-another-name
    # Even if what `make build` is given here is given there, too.
    unset CARGO_TARGET_DIR
    make -C "$tree" --silent build-only ONLY="$ONLY"
    for name in $ONLY; do same "target/dist/$name" "$(echo "$tree"/target/*-linux-gnu/release/"$name")"; done
    exit
fi
say "the first build"
release a
say "the second build"
(umask 077 && release directory-of-another-name)
[ -n "$(ls "$work/made-a")" ] || { say "nothing was built"; exit 1; }
for file in "$work"/made-a/dunnage*; do same "$file" "$work/made-directory-of-another-name/${file##*/}"; done
same "$work/made-a/SHA256SUMS" "$work/made-directory-of-another-name/SHA256SUMS"
