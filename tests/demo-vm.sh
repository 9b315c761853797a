#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Shows one image in runc and in a VM, under one containerd: two kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dist=$(realpath target/dist)
image=$(realpath "${DUNNAGE_PEERS:-target/peers}/busybox.tar")
dir=$(mktemp -d /tmp/dunnage-demo.XXXXXX)
cat >"$dir/config.toml" <<END
version = 2
root = "$dir/r"
state = "$dir/s"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$dir/c.sock"
END
c() { ctr --address "$dir/c.sock" --namespace dunnage-demo "$@"; }
daemon=
tidy() {
    if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
    rm -rf "$dir"
}
trap tidy EXIT
PATH=$dist:$PATH containerd --config "$dir/config.toml" >"$dir/log" 2>&1 &
daemon=$!
until c version >/dev/null 2>&1; do
    kill -0 "$daemon" || { cat "$dir/log"; exit 1; }
done
c images import "$image" >/dev/null

printf '\n$ containerd-shim-vm-v2 check\n'
"$dist/containerd-shim-vm-v2" check
for runtime in io.containerd.runc.v2 io.containerd.vm.v2; do
    printf '\n$ ctr run --rm --runtime %s busybox … uname -r\n' "$runtime"
    c run --rm --runtime "$runtime" dunnage.test/busybox:latest "demo-${runtime//./-}" uname -r
done
c images remove dunnage.test/busybox:latest >/dev/null
