#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch.sh <directory> <package...>: unpacks Debian packages below a directory,
# each once, and prints for each the directory it is unpacked in,
# <directory>/<package>, where the file VERSION has its version.
#
# Nothing is installed.  To fetch anew, remove the directory.
set -euo pipefail
umask 022
export LC_ALL=C

cache=$1
shift
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=''
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

download() { (cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$1" >"$work/log" 2>&1); }

update() {
    [ "$(id -u)" = 0 ] || die "apt-get could not download a package: run apt-get update as root"
    apt-get -q update >"$work/log" 2>&1
}

for package in "$@"; do
    tree=$cache/$package
    if [ ! -e "$tree/VERSION" ]; then
        work=$(mktemp -d "$cache/.fetch.XXXXXX")
        mkdir "$work/tree"
        printf 'guest: fetching %s\n' "$package" >&2
        # Without the list of packages, or with an old one, there is nothing to be had.
        download "$package" || { update && download "$package"; } ||
            { cat "$work/log" >&2; die "apt-get could not download $package"; }
        for deb in "$work"/*.deb; do
            dpkg-deb -x "$deb" "$work/tree"
            dpkg-deb -f "$deb" Version >"$work/tree/VERSION"
        done
        rm -rf "$tree"
        mv "$work/tree" "$tree"
        rm -rf "$work"
    fi
    printf '%s\n' "$tree"
done
