#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Shows a container with no containerd: run, logs, exec, stats, events, and the
# daemon killed in the middle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dunnage=${MANAGER:-target/dist/dunnage}
rootfs=$(realpath "${DUNNAGE_PEERS:-target/peers}/rootfs")
shims=$(realpath "$(dirname "${SHIM:-target/dist/containerd-shim-runc-v2}")")
dir=$(mktemp -d /tmp/dunnage-demo.XXXXXX)
printf 'root = "%s/root"\nstate = "%s/state"\n' "$dir" "$dir" >"$dir/config.toml"
d() { "$dunnage" --config "$dir/config.toml" -n demo "$@"; }
show() { printf '\n$ dunnage %s\n' "$*"; d "$@" || printf '(exit code %d)\n' "$?"; }

daemon=
up() {
    PATH=$shims:$PATH "$dunnage" --config "$dir/config.toml" daemon 2>>"$dir/log" &
    daemon=$!
    until d version >/dev/null 2>&1 && d info >/dev/null 2>&1; do
        kill -0 "$daemon" || { cat "$dir/log"; exit 1; }
    done
}
tidy() {
    d delete -f web >/dev/null 2>&1 || true
    if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
    rm -rf "$dir"
    for group in /sys/fs/cgroup/demo /sys/fs/cgroup/*/demo; do rmdir "$group" 2>/dev/null || true; done
}
trap tidy EXIT

up
show run --rm --rootfs "$rootfs" hello sh -c 'echo "hello from pid $$"; exit 3'
show run -d --rootfs "$rootfs" -v "$dir:/mnt" web sh -c 'echo serving; until [ -e /mnt/stop ]; do sleep 0.1; done; exit 7'
show ls
# shellcheck disable=SC2016 # the container's shell expands it
show exec web sh -c 'echo "inside as $(id -u)"'
show stats --no-stream
show logs web
printf '\n$ kill -9 %s     # the daemon; meanwhile the container ends with 7\n' "$daemon"
pid=$(d --json ls | sed 's/.*"pid":\([0-9]*\).*/\1/')
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
touch "$dir/stop"
while [ -e "/proc/$pid/exe" ]; do :; done
up
show ls
show wait web
show events --no-follow --filter 'topic==/tasks/exit'
show info
