#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# dist.sh: makes a release out of what is built, in target/release:
#
#   dunnage-VERSION-linux-ARCH.tar.gz   programs, guest image, man pages, completions, units,
#                                       examples of configurations, texts, licences
#   dunnage-VERSION-linux-ARCH.cdx.json what is in it, for machines: a CycloneDX SBOM
#   SHA256SUMS                          of all that lies beside it
#
# The same programs and the same commit make the same bytes, whenever, wherever and with
# whichever umask.
#
#   DIST               the programs (target/dist)     GUEST  the guest images (DIST/guest)
#   OUT                where the release is put       SOURCE_DATE_EPOCH  of when it is
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. release/version.sh

name=dunnage-$version-linux-$arch
work=$(mktemp -d "$out/.dist.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -n "$(git status --porcelain 2>/dev/null)" ]; then
    printf 'dist: the checkout has changes: this is no release\n' >&2
fi
install_into "$work/root" /usr/local
tree=$work/$name
mv "$work/root/usr/local" "$tree"
doc=$tree/share/doc/dunnage
mkdir -p "$doc/docs"
# Everything in them is what counts without them.
mv "$work/root/etc/dunnage" "$doc/examples"
install -m644 LICENSE README.md CHANGELOG.md SECURITY.md "$doc"
install -m644 docs/* "$doc/docs"
release/sbom.sh >"$work/$name.cdx.json"
install -m644 "$work/$name.cdx.json" "$doc/sbom.cdx.json"
release/licences.sh >"$doc/THIRD-PARTY.txt"

tar --create --directory "$work" --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$name" | gzip -9n >"$work/$name.tar.gz"
mv "$work/$name.tar.gz" "$work/$name.cdx.json" "$out"
checksums
printf 'dist: %s/%s.tar.gz: %s KiB\n' "$out" "$name" "$(($(stat -c %s "$out/$name.tar.gz") / 1024))"
