#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command in a mount namespace of its own in which cgroup v1 is mounted without v2 beside
# it: crun refuses to work with both.  tests/cgroup-v1.sh command...
#
# CRIU finds v2 all the same, and a restore copies all of its tree into a cgroup of the container's:
# nobody sees that there, and the next checkpoint copies the copy.  So those of tests, dnPID-..., are
# removed here, before and after.
set -eu
if [ "${CGROUP_V1-}" != inside ]; then
    exec env CGROUP_V1=inside unshare --mount "$0" "$@"
fi
remove_copies() { :; }
if [ -d /sys/fs/cgroup/unified ]; then
    new=$(mktemp -d)
    mount -t tmpfs -o mode=755 tmpfs "$new"
    for dir in /sys/fs/cgroup/*/; do
        name=$(basename "$dir")
        if [ "$name" = unified ]; then continue; fi
        mkdir "$new/$name"
        mount --bind "$dir" "$new/$name"
    done
    umount --recursive --lazy /sys/fs/cgroup
    mount --move "$new" /sys/fs/cgroup
    remove_copies() {
        mount -t cgroup2 cgroup2 "$new"
        for copy in "$new"/dn[0-9]*; do
            if [ -d "$copy" ]; then find "$copy" -depth -type d -exec rmdir {} +; fi
        done
        umount "$new"
    }
fi
unset CGROUP_V1
remove_copies
status=0
"$@" || status=$?
remove_copies
if [ -n "${new-}" ]; then rmdir "$new"; fi
exit "$status"
