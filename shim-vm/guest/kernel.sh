#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kernel.sh: builds the kernel of the tuned guest image, target/guest/kernel,
# out of Debian's linux-source, kernel.config and kernel.patch.  It takes about
# nine minutes of CPU time and is kept until one of them changes.
#
#   vmlinux   the kernel, unpacked, without symbols
#   config    its whole configuration
#   RELEASE   what uname -r says      VERSION   the package it was built of
#
#   CACHE   where packages and kernels are kept (target/guest)
#   JOBS    how many compilers to run at a time (one for each processor)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
umask 022
export LC_ALL=C

series=6.12
cache=${CACHE:-target/guest}
jobs=${JOBS:-$(nproc)}

say() { printf 'guest: %s\n' "$*"; }
die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

[ "$(uname -m)" = x86_64 ] || die "the guest kernel is for x86_64; this machine is $(uname -m)"
missing=()
for pair in gcc:gcc make:make flex:flex bison:bison bc:bc xz:xz-utils lz4:lz4 perl:perl patch:patch; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
# The linker's companion objtool reads ELF files.
if ! echo '#include <gelf.h>' | gcc -E - >/dev/null 2>&1; then missing+=(libelf-dev); fi
[ "${#missing[@]}" = 0 ] || die "to build a kernel, install these Debian packages first: ${missing[*]}"

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
source=$("$here/fetch.sh" "$cache" "linux-source-$series")
version=$(cat "$source/VERSION")
made=$cache/kernel
if [ "$(cat "$made/VERSION" 2>/dev/null)" = "$version" ] && cmp -s "$made/fragment" "$here/kernel.config" &&
    cmp -s "$made/patch" "$here/kernel.patch"; then
    say "kernel $(cat "$made/RELEASE") is there"
    exit
fi

work=$(mktemp -d "$cache/.kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "unpacking linux-source-$series $version"
tar -C "$work" -xf "$source/usr/src/linux-source-$series.tar.xz"
tree=$work/linux-source-$series
patch -s -p1 --fuzz=0 -d "$tree" <"$here/kernel.patch" || die "kernel.patch does not fit linux-source-$series $version"
build=$work/build
mkdir "$build"
# Nothing of this build's time and place goes into it.
export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_USER=dunnage KBUILD_BUILD_HOST=dunnage \
    KBUILD_BUILD_VERSION=1 KCFLAGS="-fdebug-prefix-map=$work=. -ffile-prefix-map=$work=."
kmake() { make -C "$tree" O="$build" LOCALVERSION=-dunnage "$@" >>"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; die "make $* failed"; }; }
kmake KCONFIG_ALLCONFIG="$here/kernel.config" allnoconfig
# An option that kconfig dropped, for want of another, would be missed much later.
while read -r option; do
    grep -qx "$option" "$build/.config" || dropped+=("$option")
done < <(grep '^CONFIG' "$here/kernel.config")
[ -z "${dropped-}" ] || die "the kernel's configuration has not taken: ${dropped[*]}"
say "building it with $jobs jobs"
kmake -j"$jobs" vmlinux

mkdir "$work/made"
strip -s -o "$work/made/vmlinux" "$build/vmlinux"
cp "$build/.config" "$work/made/config"
cp "$here/kernel.config" "$work/made/fragment"
cp "$here/kernel.patch" "$work/made/patch"
make -s -C "$tree" O="$build" LOCALVERSION=-dunnage kernelrelease | tail -n 1 >"$work/made/RELEASE"
echo "$version" >"$work/made/VERSION"
rm -rf "$made"
mv "$work/made" "$made"
say "kernel $(cat "$made/RELEASE"): $(($(stat -c %s "$made/vmlinux") / 1024)) KiB"
