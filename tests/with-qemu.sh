#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# with-qemu.sh <version> <command...>: runs the command with the tests' VMs under
# the QEMU of this version (7.2, 10.0, 11) that tests/setup.sh unpacked; `newest`
# is the newest that could be had.  With TEMPLATES=1 they begin as templates.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

peers=${PEERS:-target/peers}
version=${1:?usage: with-qemu.sh <version> <command...>}
shift
if [ "$version" = newest ]; then
    version=$(sed -n 's/^qemu-\([0-9.]*\) .*/\1/p' "$peers/versions" | sort -V | tail -n 1)
fi
bin=$(sed -n "s/^qemu-$version [^ ]* //p" "$peers/versions")
if [ -z "$bin" ]; then
    printf 'with-qemu: error: QEMU %s could not be had (tests/setup.sh)\n' "$version" >&2
    exit 1
fi
config=$(mktemp "$peers/vm-$version.XXXXXX")
trap 'rm -f "$config"' EXIT
sed "s|^qemu = .*|qemu = \"$bin/qemu-system-x86_64\"|" "$peers/vm.toml" >"$config"
[ -z "${TEMPLATES-}" ] || printf 'templates = true\n' >>"$config"
printf 'with-qemu: %s\n' "$("$bin/qemu-system-x86_64" --version | head -n 1)"
DUNNAGE_VM_CONFIG=$config PATH=$bin:$PATH "$@"
