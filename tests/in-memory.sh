#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# in-memory.sh <program...>: runs a test program in a mount namespace of its own, in which /tmp and
# /run are new and in memory, as /run is on every machine in use.  On a disk the same tests can take
# twice the processor's time, and what a killed one leaves there stays.
#
# Cargo calls it for each test program (`runner`, in the Makefile).  A directory in which the tree,
# the peers or cargo's own files are is left as it is.
set -eu
if [ "${IN_MEMORY-}" != inside ]; then
    exec env IN_MEMORY=inside unshare --mount --propagation private "$0" "$@"
fi
unset IN_MEMORY
for dir in /tmp /run; do
    needed=
    for path in "$PWD" "$0" "$1" "${PEERS-}" "${CARGO_HOME-}" "${RUSTUP_HOME-}"; do
        case $(realpath -m -- "${path:-/}") in "$dir"/*) needed=yes ;; esac
    done
    [ -n "$needed" ] || mount -t tmpfs -o "mode=$(stat -c %a "$dir")" tmpfs "$dir"
done
exec "$@"
