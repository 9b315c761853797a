#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make demo`: a container run by this project's shim under a containerd of its
# own, the same with containerd's Go shim, and what one further shim of either
# costs in memory.
#
#   CONTAINERD=containerd-2.1   a containerd of target/peers (default: the system's)
#   RUNC=runc-1.3               a runc of target/peers (default: the system's)
#   SHIM=/path/containerd-shim-runc-v2  the shim to show (default: target/dist)
#
# All of it happens in a mount and a PID namespace with a /run of its own, so
# that nothing else is touched and nothing is left behind, whatever goes wrong.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C

peers=${DUNNAGE_PEERS:-target/peers}
peers=$(realpath -m "$peers")
shim=$(realpath -m "${SHIM:-target/dist/containerd-shim-runc-v2}")
go_shim=${CONTAINERD:+$peers/$CONTAINERD}
go_shim=${go_shim:+$go_shim/bin}
[ -n "$go_shim" ] || go_shim=$(sed -n 's/^go-shim [^ ]* //p' "$peers/versions" 2>/dev/null)
go_shim+=/containerd-shim-runc-v2
image=dunnage.test/busybox:latest
more=10 # further shims to measure

die() { printf 'demo: error: %s\n' "$*" >&2; exit 1; }

# Where the memory controller is: cgroup v1 or v2.
if [ -e /sys/fs/cgroup/memory/memory.stat ]; then
    memory=/sys/fs/cgroup/memory
else
    memory=/sys/fs/cgroup
fi

# ------------------------------------------------ outside: make, and clean --

if [ -z "${DUNNAGE_DEMO:-}" ]; then
    [ "$(id -u)" = 0 ] || die "running containers takes root"
    [ "${shim##*/}" = containerd-shim-runc-v2 ] || die "$shim: must be called containerd-shim-runc-v2"
    [ -x "$shim" ] || die "$shim is missing: make build"
    [ -x "$go_shim" ] || die "$go_shim is missing: make setup"
    [ -e "$peers/busybox.tar" ] || die "$peers/busybox.tar is missing: make setup"
    for program in ${CONTAINERD:+"$CONTAINERD/bin/containerd"} ${RUNC:+"$RUNC/bin/runc"}; do
        [ -x "$peers/$program" ] || die "$peers/$program is missing: make setup (see $peers/versions)"
    done

    dir=$(mktemp -d /tmp/dunnage.XXXXXX)
    inside=''
    # shellcheck disable=SC2317 # the trap calls it
    clean() {
        if [ -n "$inside" ]; then
            kill -KILL "$inside" 2>/dev/null || : # and with it goes all that is inside
            wait "$inside" 2>/dev/null || :
        fi
        local left
        for _ in {1..50}; do
            left=''
            for group in /sys/fs/cgroup/"${dir##*/}"* /sys/fs/cgroup/*/"${dir##*/}"*; do
                if [ -d "$group" ]; then
                    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=yes
                fi
            done
            [ -n "$left" ] || break
            sleep 0.1
        done
        rm -rf --one-file-system "$dir" || { sleep 1 && rm -rf --one-file-system "$dir"; }
    }
    trap clean EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    DUNNAGE_DEMO=$dir unshare --mount --pid --fork --kill-child --mount-proc "$BASH" tests/demo.sh &
    inside=$!
    status=0
    wait "$inside" || status=$?
    inside=''
    exit "$status"
fi

# ---------------------------------------------------------- inside: set up --

dir=$DUNNAGE_DEMO
unset DUNNAGE_DEMO
mount -t tmpfs -o mode=755 tmpfs /run
exec 2>&1

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

# run <command line>: shows it, then does it.
run() {
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1"
}

# until_true <seconds> <command...>
until_true() {
    local tries=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $((tries -= 1)) -gt 0 ] || return 1
        sleep 0.1
    done
}

daemon='' events=''
finish() {
    local status=$?
    trap - EXIT
    set +e
    if [ "$status" != 0 ]; then
        echo "demo: failed (status $status); the end of containerd's log:"
        tail -n 20 "$dir/containerd.log"
    fi
    if [ -n "$daemon" ]; then
        remove
        kill ${events:+"$events"} "$daemon"
        wait ${events:+"$events"} "$daemon"
    fi
    exit "$status"
}

# Stops and removes all containers of ours.
remove() {
    local id
    for id in $(ctr containers ls -q); do
        ctr tasks kill -s KILL "$id"
    done
    for id in $(ctr containers ls -q); do
        until_true 10 stopped "$id"
        ctr tasks delete -f "$id"
        ctr containers delete "$id"
    done
} >/dev/null 2>&1

stopped() { ! ctr tasks ls | grep "^$1 .*RUNNING"; }

# Whether containerd's usual snapshotter does: not, say, where /tmp is an overlay.
overlay_works() {
    mkdir "$dir"/overlay{,/lower,/upper,/work,/all} &&
        mount -t overlay -o "lowerdir=$dir/overlay/lower,upperdir=$dir/overlay/upper,workdir=$dir/overlay/work" \
            overlay "$dir/overlay/all" 2>/dev/null &&
        umount "$dir/overlay/all"
}

trap finish EXIT

cat >"$dir/config.toml" <<END
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs",
]
[grpc]
  address = "$dir/containerd.sock"
[ttrpc]
  address = "$dir/containerd.sock.ttrpc"
END
snapshotter=overlayfs
if ! overlay_works; then
    snapshotter=native
    cat >>"$dir/config.toml" <<END
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/$(uname -m)"
  snapshotter = "native"
END
fi

# Paths as a user would type them: relative where they can be.
path=''
for bin in "${shim%/*}" ${RUNC:+"$peers/$RUNC/bin"} ${CONTAINERD:+"$peers/$CONTAINERD/bin"}; do
    case $bin in "$PWD"/*) bin="\$PWD/${bin#"$PWD"/}" ;; esac
    path+=$bin:
done

# ------------------------------------------------------ a container of ours --

title "a container run by this project's shim"
run "export PATH=$path\$PATH"
run "export CONTAINERD_ADDRESS=$dir/containerd.sock CONTAINERD_NAMESPACE=${dir##*/}"
run "containerd --version; runc --version | head -n 1"
run "containerd --config $dir/config.toml 2>$dir/containerd.log &"
daemon=$!
until_true 20 ctr version || die "containerd does not answer"
if [ "$snapshotter" != overlayfs ]; then run "export CONTAINERD_SNAPSHOTTER=$snapshotter"; fi
run "ctr images import ${peers#"$PWD"/}/busybox.tar"
run "ctr events >$dir/events &"
events=$!
sleep 0.3
run "ctr run -d $image hello sh -c 'trap \"exit 7\" TERM; while :; do sleep 0.1; done'"
run "ctr tasks ls"
run "ps -C containerd-shim -o pid,nlwp,rss,exe"
run "ctr tasks exec --exec-id look hello ps"
run "ctr tasks kill -s SIGTERM hello"
until_true 10 stopped hello || die "the container did not stop"
run "ctr tasks ls"
run "ctr tasks delete hello" || : # some versions exit as the task did
run "ctr containers delete hello"
sleep 0.3
run "grep -o '/tasks/.*' $dir/events | cut -c 1-100"
kill "$events"
wait "$events" || :
events=''

# ---------------------------------------------------------- the same by Go's --

title "the same by containerd's Go shim"
run "ctr run -d --runtime $go_shim $image hello sh -c 'trap \"exit 7\" TERM; while :; do sleep 0.1; done'"
run "ctr tasks ls"
run "ps -C containerd-shim -o pid,nlwp,rss,exe"
run "ctr tasks exec --exec-id look hello ps"
run "ctr tasks kill -s SIGTERM hello"
until_true 10 stopped hello || die "the container did not stop"
run "ctr tasks delete hello" || : # some versions exit as the task did
run "ctr containers delete hello"

# ------------------------------------------------------- what a shim costs --

# The shims of each kind are started through a wrapper that first moves into a
# memory cgroup of their own, so that all they ever allocate, and what the
# kernel allocates for them, is charged there.  runc goes through a wrapper
# too, into a cgroup nobody looks at: what it allocates for a container (say,
# the network namespace) lives on with the container but is no cost of a shim.
title "what one further shim costs, with one running container"

group=$memory/${dir##*/}-measure
mkdir "$group" 2>/dev/null || die "cannot make the cgroup $group"
if [ "$memory" = /sys/fs/cgroup ]; then # v2: hand the controller down
    grep -qw memory /sys/fs/cgroup/cgroup.subtree_control ||
        echo +memory >/sys/fs/cgroup/cgroup.subtree_control ||
        die "the memory controller is not to be had here"
    echo +memory >"$group/cgroup.subtree_control"
fi

# wrapper <kind> <program>: makes $dir/<kind>/<name of the program>.
wrapper() {
    mkdir "$dir/$1" "$group/$1"
    cat >"$dir/$1/${2##*/}" <<END
#!/bin/sh
echo \$\$ >$group/$1/cgroup.procs
PATH=$dir/runc:\$PATH
exec $2 "\$@"
END
    chmod 755 "$dir/$1/${2##*/}"
}
runc=$(command -v runc)
wrapper runc "$runc"
sed -i '/^PATH=/d' "$dir/runc/runc"
wrapper dunnage "$shim"
wrapper go "$go_shim"

# charged <kind>: bytes of anonymous and of kernel memory, page cache left out.
charged() {
    if [ -e "$group/$1/memory.kmem.usage_in_bytes" ]; then
        echo "$(sed -n 's/^rss //p' "$group/$1/memory.stat") $(cat "$group/$1/memory.kmem.usage_in_bytes")"
    else
        echo "$(sed -n 's/^anon //p' "$group/$1/memory.stat") $(sed -n 's/^kernel //p' "$group/$1/memory.stat")"
    fi
}

# settled <kind>: the same, once it has stopped to change by more than 16 KiB.
settled() {
    local now before=0 still=0 sum
    for _ in {1..40}; do
        now=$(charged "$1")
        sum=$((${now/ /+}))
        if [ $((sum - before)) -le 16384 ] && [ $((before - sum)) -le 16384 ]; then
            [ $((still += 1)) -lt 4 ] || break
        else
            still=0
        fi
        before=$sum
        sleep 0.5
    done
    echo "$now"
}

# measure <kind>: sets result[<kind> ...], in KiB.
declare -A result
measure() {
    local kind=$1 i before after pid
    ctr run -d --runtime "$dir/$kind/containerd-shim-runc-v2" $image "$kind-0" sleep 1000
    before=$(settled "$kind")
    for ((i = 1; i <= more; i++)); do
        ctr run -d --runtime "$dir/$kind/containerd-shim-runc-v2" $image "$kind-$i" sleep 1000
    done
    after=$(settled "$kind")
    read -r before_user before_kernel <<<"$before"
    read -r after_user after_kernel <<<"$after"
    result[$kind user]=$(((after_user - before_user) / more / 1024))
    result[$kind kernel]=$(((after_kernel - before_kernel) / more / 1024))
    result[$kind all]=$(((after_user - before_user + after_kernel - before_kernel) / more / 1024))
    result[$kind shims]=$(wc -l <"$group/$kind/cgroup.procs")
    while read -r pid; do
        cat "/proc/$pid/status" "/proc/$pid/smaps_rollup"
    done <"$group/$kind/cgroup.procs" >"$dir/$kind/proc"
    for i in Threads Rss Pss; do
        result[$kind $i]=$(awk -v key="$i:" '$1 == key { sum += $2; n++ } END { printf "%.0f", sum / n }' "$dir/$kind/proc")
    done
    remove
    [ "${result[$kind shims]}" = $((more + 1)) ] ||
        echo "(note: ${result[$kind shims]} processes of kind $kind were in the cgroup, not $((more + 1)))"
}
measure dunnage
measure go

row() {
    printf '%-42s %8d %8d' "$1" "${result[dunnage $2]}" "${result[go $2]}"
    awk -v a="${result[dunnage $2]}" -v b="${result[go $2]}" 'BEGIN { if (a > 0) printf "   %5.1f", b / a; print "" }'
}
printf '\n%-42s %8s %8s   %s\n' '' dunnage Go ratio
row "memory cgroup, anonymous + kernel, KiB" all
row "    anonymous" user
row "    kernel" kernel
row "RSS, KiB" Rss
row "PSS, KiB" Pss
row "threads" Threads
printf '\n(the cgroup lines: growth over %d further shims, divided by %d, without page cache;\n' "$more" "$more"
printf ' the others: mean of all %d)\n' $((more + 1))
