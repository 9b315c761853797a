#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# deb.sh: makes Debian packages out of what is built, in target/release: of the programs that
# `make build guest` made, without a compiler of its own.
#
#   dunnage                 the manager, its units and configuration
#   containerd-shim-dunnage the shim for runc, in the place of containerd's, which is diverted
#   containerd-shim-vm      the shim for VMs, and the guest image
#
# What they do when they are installed and removed is in release/debian/PACKAGE.
#
#   DIST, GUEST, OUT, SOURCE_DATE_EPOCH  as for dist.sh
#   DEB_VERSION                          the version of the packages (that of the suite)
#   MAINTAINER                           who answers for them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. release/version.sh

deb_version=${DEB_VERSION:-$version}
maintainer=${MAINTAINER:-The dunnage maintainers <maintainers@dunnage.invalid>}
work=$(mktemp -d "$out/.deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
all=$work/all
install_into "$all" /usr UNITS=/usr/lib/systemd/system
mv "$all/usr/share/zsh/site-functions" "$all/usr/share/zsh/vendor-completions"
find "$all/usr/share/man" -type f -exec gzip -9n {} +
release/licences.sh | gzip -9n >"$work/THIRD-PARTY.gz"

# give <package> <path...>: moves files of the whole into that package.
give() {
    local package=$1 path
    shift
    for path in "$@"; do
        mkdir -p "$work/$package/$(dirname "$path")"
        mv "$all/$path" "$work/$package/$path"
    done
}
give containerd-shim-vm usr/bin/containerd-shim-vm-v2 usr/lib/dunnage/guest etc/dunnage/shim-vm.toml \
    usr/lib/systemd/system/dunnage-pool.service \
    usr/share/man/man8/containerd-shim-vm-v2.8.gz
mkdir -p "$all/usr/lib/dunnage/bin"
# Not where containerd's own is: its package has that file.
mv "$all/usr/bin/containerd-shim-runc-v2" "$all/usr/lib/dunnage/bin"
install -D -m755 -t "$all/usr/sbin" release/debian/containerd-shim-dunnage/dunnage-select
install -m644 -t "$all/usr/share/man/man8" release/debian/containerd-shim-dunnage/dunnage-select.8
gzip -9n "$all/usr/share/man/man8/dunnage-select.8"
give containerd-shim-dunnage usr/lib/dunnage/bin usr/sbin/dunnage-select \
    usr/share/man/man8/{containerd-shim-runc-v2,dunnage-select}.8.gz
find "$all" -depth -type d -empty -delete
mv "$all" "$work/dunnage"

# build <package>: puts what every package has into its tree, and packs that.
build() {
    local package=$1 tree=$work/$1 doc=$work/$1/usr/share/doc/$1 script
    mkdir -p "$doc" "$tree/DEBIAN" "$tree/usr/share/lintian/overrides"
    install -m644 release/debian/copyright "$doc"
    install -m644 "$work/THIRD-PARTY.gz" "$doc"
    printf '%s (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md of the source.\n\n -- %s  %s\n' \
        "$package" "$deb_version" "$maintainer" "$(date -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
    install -m644 "release/debian/$package/overrides" "$tree/usr/share/lintian/overrides/$package"
    for script in postinst prerm postrm; do
        [ ! -e "release/debian/$package/$script" ] || install -m755 "release/debian/$package/$script" "$tree/DEBIAN"
    done
    (cd "$tree" && find . -path './etc/*' -type f -printf '/%P\n' | sort) >"$tree/DEBIAN/conffiles"
    [ -s "$tree/DEBIAN/conffiles" ] || rm "$tree/DEBIAN/conffiles"
    (cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | sort | xargs md5sum) >"$tree/DEBIAN/md5sums"
    sed -e "s|@VERSION@|$deb_version|" -e "s|@ARCH@|$arch|" -e "s|@MAINTAINER@|$maintainer|" \
        -e "s|@SIZE@|$(du -sk --apparent-size --exclude DEBIAN "$tree" | cut -f 1)|" \
        "release/debian/$package/control" >"$tree/DEBIAN/control"
    find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
    # More threads would make other bytes on other machines.
    dpkg-deb --root-owner-group --threads-max=1 --build "$tree" "$work" >/dev/null
    printf 'deb: %s\n' "$out/${package}_${deb_version}_$arch.deb"
}
for package in dunnage containerd-shim-dunnage containerd-shim-vm; do build "$package"; done
mv "$work"/*.deb "$out"
checksums
