#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# crun.sh: builds the guest's OCI runtime, target/guest/crun-static/crun, out of
# Debian's source of crun: without what a guest has no use for (systemd, CRIU,
# libgcrypt, plug-ins) and without libraries to link when it starts, which
# without KVM is half of its time.  It takes half a minute and is kept until
# this script changes; for a newer source, remove crun-static.
#
#   crun      the program
#   VERSION   the source package it was built of      script   and by what
#
#   CACHE   where packages and what was built of them are kept (target/guest)
#   JOBS    how many compilers to run at a time (one for each processor)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
umask 022
export LC_ALL=C

cache=${CACHE:-target/guest}
jobs=${JOBS:-$(nproc)}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# The static libraries it links, and their headers.
libraries=(libseccomp-dev libcap-dev libyajl-dev)

die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
made=$cache/crun-static
if [ -e "$made/VERSION" ] && cmp -s "$made/script" "$here/crun.sh"; then exit; fi
for tool in gcc make dpkg-source; do
    command -v "$tool" >/dev/null || die "$tool is missing: run tests/setup.sh"
done
[ -r "$keyring" ] || die "$keyring is missing: install debian-archive-keyring"

work=$(mktemp -d "$cache/.crun.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# quietly <command...>: shows the end of what the command said only if it fails.
quietly() { "$@" >"$work/log" 2>&1 </dev/null || { tail -n 40 "$work/log" >&2; die "$1 failed: ${*:2}"; }; }

# An apt of its own that reads lists of sources, of the suites that this
# machine's apt has packages of.
mkdir -p "$work"/apt/{lists/partial,archives/partial}
cat >"$work/apt.conf" <<END
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/apt/lists";
Dir::Cache "$work/apt";
Acquire::Languages "none";
APT::Sandbox::User "root";
END
# shellcheck disable=SC2016 # apt's variables, not the shell's
apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v by="$keyring" '$1 == "Debian" && $2 == "main" { print "deb-src [signed-by=" by " targets=Sources] " $4 " " $3 " main" }' |
    sort -u >"$work/sources.list"
[ -s "$work/sources.list" ] || die "no suite of Debian in this machine's apt sources: run apt-get update as root"
printf 'guest: fetching the source of crun\n' >&2
quietly apt-get -q -c "$work/apt.conf" -o APT::Update::Error-Mode=any update
mkdir "$work/source"
(cd "$work/source" && quietly apt-get -q -c "$work/apt.conf" source --only-source crun)
version=$(sed -n 's/^Version: //p' "$work"/source/crun_*.dsc | tail -n 1)
tree=$(find "$work/source" -mindepth 1 -maxdepth 1 -type d)

flags="-Os -ffunction-sections -fdata-sections"
mkdir "$work/lib"
for dev in $("$here/fetch.sh" "$cache" "${libraries[@]}"); do
    flags+=" -I$dev/usr/include"
    find "$dev" -name '*.a' -exec cp -t "$work/lib" {} +
done
# As crun calls it.
mv "$work/lib/libyajl_s.a" "$work/lib/libyajl.a"

printf 'guest: building crun %s\n' "$version" >&2
# Nothing of this build's place goes into it.
export CFLAGS="$flags -ffile-prefix-map=$work=." LDFLAGS="-L$work/lib" YAJL_CFLAGS=" " YAJL_LIBS=-lyajl \
    ac_cv_search_gcry_check_version=no
(
    cd "$tree"
    quietly ./configure --disable-systemd --disable-criu --disable-dl --enable-static --disable-shared
    # libtool keeps -static to itself.
    quietly make -j"$jobs" LDFLAGS="$LDFLAGS -all-static -Wl,--gc-sections"
)
mkdir "$work/made"
strip -s -o "$work/made/crun" "$tree/crun"
"$work/made/crun" --version >"$work/log" || die "the crun that was built does not run"
# What is not found when it is configured is left out without a word.
for feature in CAP SECCOMP EBPF YAJL; do
    grep -qw "+$feature" "$work/log" || die "the crun that was built has no $feature"
done
cp "$here/crun.sh" "$work/made/script"
echo "$version" >"$work/made/VERSION"
rm -rf "$made"
mv "$work/made" "$made"
printf 'guest: crun %s: %s KiB\n' "$version" "$(($(stat -c %s "$made/crun") / 1024))" >&2
