#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# rpm.sh: makes RPM packages out of what is built, in target/release, for Fedora, RHEL, SUSE and their
# kin: of the programs that `make build guest` made, without a compiler of its own.
#
#   dunnage                 the manager, its units and configuration
#   containerd-shim-dunnage the shim for runc, to be found before containerd's
#   containerd-shim-vm      the shim for VMs, and the guest image
#
# release/rpm/dunnage.spec says what is in them, and what they do when they are installed and removed.
# The same programs make the same packages, to the byte.
#
#   DIST, GUEST, OUT, SOURCE_DATE_EPOCH  as for dist.sh
#   RPM_VERSION                          the version of the packages (that of the suite)
#   MAINTAINER                           who answers for them
#   RPM_PAYLOAD                          how they are packed (w6.xzdio, which every rpm can unpack)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. release/version.sh

work=$(mktemp -d "$out/.rpm.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
tree=$work/tree
install_into "$tree" /usr UNITS=/usr/lib/systemd/system
mkdir -p "$tree/usr/lib/dunnage/bin"
# Not where containerd's own is: its package has that file.
mv "$tree/usr/bin/containerd-shim-runc-v2" "$tree/usr/lib/dunnage/bin"
install -D -m755 -t "$tree/usr/sbin" release/rpm/dunnage-select
install -m644 -t "$tree/usr/share/man/man8" release/rpm/dunnage-select.8
find "$tree/usr/share/man" -type f -exec gzip -9n {} +
release/licences.sh | gzip -9n >"$work/THIRD-PARTY.gz"
for package in dunnage containerd-shim-dunnage containerd-shim-vm; do
    install -D -m644 -t "$tree/usr/share/licenses/$package" LICENSE "$work/THIRD-PARTY.gz"
done

find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +

case $arch in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) machine=$arch ;;
esac
rpm_version=${RPM_VERSION:-$version}
# Nobody's own settings, no scripts that change files, and nothing of the machine in the headers.
HOME=$work rpmbuild -bb --quiet --nodeps --target "$machine-linux" \
    --define "_topdir $work/build" --define "_rpmdir $work/rpms" --define "_tmppath $work/tmp" \
    --define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
    --define "_buildhost dunnage" --define "use_source_date_epoch_as_buildtime 1" \
    --define "_build_id_links none" \
    --define "__os_install_post %{nil}" --define "debug_package %{nil}" --define "__arch_install_post %{nil}" \
    --define "_binary_payload ${RPM_PAYLOAD:-w6.xzdio}" --define "_smp_ncpus_max 1" \
    --define "packager ${MAINTAINER:-The dunnage maintainers <maintainers@dunnage.invalid>}" \
    --define "tree $tree" --define "suite_version $rpm_version" release/rpm/dunnage.spec >/dev/null
for package in "$work"/rpms/*.rpm; do
    printf 'rpm: %s\n' "$out/${package##*/}"
done
mv "$work"/rpms/*.rpm "$out"
checksums
