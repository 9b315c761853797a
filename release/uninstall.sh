#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# uninstall.sh <directory>: takes the shims out of it, as far as containerd can do without them, and
# says what is left to do.
#
# containerd remembers where it found a shim: for each container until that has ended, and for the next
# from its first container on until it is restarted.  So the shim for runc becomes a link to containerd's
# own; and that for VMs, in whose place no other can be, stays while it runs.
set -euo pipefail

dir=$1
runc=containerd-shim-runc-v2
vm=containerd-shim-vm-v2

# users <program>: how many processes run it. Some end meanwhile.
users() { { find /proc/[0-9]*/exe -maxdepth 0 -lname "$1*" 2>/dev/null || :; } | wc -l; }

refuse() {
    printf 'uninstall: %s; nothing was removed\n' "$*" >&2
    exit 1
}

others=''
for place in /usr/sbin /usr/bin; do
    if [ -z "$others" ] && [ "$place" != "$dir" ] && [ -x "$place/$runc" ]; then others=$place/$runc; fi
done
running=$(users "$dir/$vm")
[ "$running" = 0 ] || refuse "$dir/$vm: $running processes run it: their containers have to end first"
if [ -e "$dir/$runc" ] && [ -z "$others" ]; then
    running=$(users "$dir/$runc")
    [ "$running" = 0 ] ||
        refuse "$dir/$runc: $running processes run it, and no other shim is in /usr/sbin or /usr/bin to take its place"
fi
if [ -e "$dir/$runc" ] && [ -n "$others" ] && { [ -e /run/containerd ] || [ -e /run/docker/containerd ]; }; then
    ln -sfn "$others" "$dir/$runc.new"
    mv -T "$dir/$runc.new" "$dir/$runc"
    printf 'uninstall: %s leads to %s now, for a containerd that remembers it; it can be removed when\n' \
        "$dir/$runc" "$others"
    printf 'uninstall: containerd was restarted and no container is left from before\n'
else
    rm -f "$dir/$runc"
fi
rm -f "$dir/$vm"
