#!/bin/sh
# Runs a command in a mount namespace of its own in which cgroup v1 is mounted without v2 beside
# it: crun refuses to work with both.  tests/cgroup-v1.sh command...
set -eu
if [ "${CGROUP_V1-}" != inside ]; then
    exec env CGROUP_V1=inside unshare --mount "$0" "$@"
fi
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
    rmdir "$new"
fi
unset CGROUP_V1
exec "$@"
