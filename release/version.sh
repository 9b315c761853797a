# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: what a release is called, and of when it is.
# shellcheck shell=bash disable=SC2034,SC2154 # they use it, and have a directory `work`

umask 022
export LC_ALL=C TZ=UTC

# The one version of the suite: Cargo.toml has it, and all crates take it from there.
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
esac
# Everything is of the time of the commit, or of the time that is asked for.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH

# Where the programs are, and where a release is put.
dist=${DIST:-target/dist}
out=${OUT:-target/release}
[ -x "$dist/dunnage" ] || { printf '%s: nothing is built there: make build guest\n' "$dist" >&2; exit 1; }
dist=$(cd "$dist" && pwd)
guest=$(cd "${GUEST:-$dist/guest}" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)

# install_into <directory> <prefix> [variable=value...]: what `make install` installs of these programs.
install_into() {
    make --silent --no-print-directory install DESTDIR="$1" PREFIX="$2" "${@:3}" GUEST="$guest" \
        DIST="$dist/containerd-shim-runc-v2" VM_DIST="$dist/containerd-shim-vm-v2" \
        MANAGER="$dist/dunnage" IMAGE="$dist/dunnage-image"
}

# checksums: of all files of the release, anew.
checksums() {
    (cd "$out" && find . -maxdepth 1 -type f ! -name SHA256SUMS ! -name '.*' -printf '%f\n' | sort |
        xargs -r sha256sum) >"$work/SHA256SUMS"
    mv "$work/SHA256SUMS" "$out"
}
