#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# image.sh: makes the image that puts the shims on nodes of Kubernetes, in target/release:
# dunnage-node-VERSION-linux-ARCH.tar, an OCI archive for `ctr -n k8s.io images import` or skopeo.
#
# It has dunnage-node, the shims and the guest image, and nothing else: no shell, no libraries.  The
# same programs make the same image, to the byte.
#
#   DIST, GUEST, OUT, SOURCE_DATE_EPOCH  as for dist.sh
#   IMAGE_NAME                           dunnage.io/dunnage-node
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. release/version.sh

name=${IMAGE_NAME:-dunnage.io/dunnage-node}:$version
work=$(mktemp -d "$out/.image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
oci=$work/oci
root=$work/root
mkdir -p "$oci/blobs/sha256" "$root/bin" "$root/lib/dunnage"
install -m755 "$dist/dunnage-node" "$dist/containerd-shim-runc-v2" "$dist/containerd-shim-vm-v2" "$root/bin"
cp -r "$guest" "$root/lib/dunnage/guest"
install -m644 LICENSE "$root"
release/licences.sh >"$root/THIRD-PARTY.txt"

# packed <directory> <name...>: a tar of that, which tells of nothing but its contents.
packed() {
    tar --create --directory "$1" --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" \
        --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "${@:2}"
}

# blob <file>: moves it to its place, sets digest and size.
blob() {
    digest=$(sha256sum <"$1")
    digest=${digest%% *}
    size=$(stat -c %s "$1")
    mv "$1" "$oci/blobs/sha256/$digest"
}

packed "$root" . >"$work/layer"
unpacked=$(sha256sum <"$work/layer")
gzip -9n "$work/layer"
blob "$work/layer.gz"
layer="{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$digest\",\"size\":$size}"
printf '{"created":"%s","architecture":"%s","os":"linux","config":{"Entrypoint":["/bin/dunnage-node"],"WorkingDir":"/"},' \
    "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" "$arch" >"$work/config"
printf '"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "${unpacked%% *}" >>"$work/config"
blob "$work/config"
config="{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size}"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$config" "$layer" >"$work/manifest"
blob "$work/manifest"
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,' \
    "$digest" "$size" >"$oci/index.json"
printf '"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$name" "$version" >>"$oci/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$oci/oci-layout"
file=dunnage-node-$version-linux-$arch.tar
packed "$oci" blobs index.json oci-layout >"$work/$file"
mv "$work/$file" "$out"
checksums
printf 'image: %s in %s\n' "$name" "$out/$file"
