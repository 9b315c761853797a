#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh <containerd's source> <go|path of a shim> <log> [flag of the test program]...
#
# Runs containerd's own tests of its client and of its shim, integration/client,
# with the containerd and the tests of that source, and either with the shim of
# that source, or with another.  So what a shim does is compared with what Go's
# does, test by test:
#
#     run.sh containerd-2.3.4 go go.log
#     run.sh containerd-2.3.4 target/dist/containerd-shim-runc-v2 ours.log
#     of() { sed -nE 's/^ *--- (PASS|FAIL|SKIP): ([^ ]+).*/\2 \1/p' "$1" | sort; }
#     diff <(of go.log) <(of ours.log)
#
# A test that was cut off by the time limit has no line of its own there: look for
# "panic: test timed out" too.  A test that differs is best run alone and often:
#
#     REPEAT=10 run.sh containerd-2.3.4 go go.log -test.run '^TestDaemonRestart$'
#
# It needs root, unshare, python3, openssl and
#   - the source of a release, 1.7 or later, with its vendor/ (git archive <tag>);
#   - Go, at least what the source's go.mod asks for: 1.25 for 1.7.34 and 2.2.7,
#     1.26.3 for 2.3.4.  Debian's golang-1.26-go, unpacked anywhere, will do;
#   - docker-registry, which is in Debian; no network is used;
#   - busybox.tar, an OCI image with one layer, which tests/setup.sh makes;
#   - runc, and lsof and ps.  Without criu and mkfs.xfs some tests skip themselves.
#
# Environment:
#   PEERS     the directory of busybox.tar and, if it is there, criu/bin
#             (default: target/peers)
#   GO        the go program (default: go)
#   REGISTRY  the docker-registry program (default: docker-registry)
#   WORK      where the source is built (default: build, beside the log); what is
#             there already is taken, so remove it to build anew
#   SKIP      the tests to skip, a regular expression (default: those that need
#             images of a kind that cannot be made here)
#   TIMEOUT   the time limit of one run (default: 15m)
#   REPEAT    how often to run the tests, each time with a new containerd (default: 1)
# The directories of GO, PEERS and so on must not be below /tmp, /run, /opt or
# /var/lib: the tests see empty ones there.  GOCACHE and PATH are taken as they are.
#
# What is edited, in a copy of the source:
#   - containerd gets 60 s to start, not 2 to 10: the machine may be busy.
#   - ghcr.io/containerd/busybox is named by the digest of the image made here.
#   - Of 1.7: the two tests that want containerd-shim-runc-v1 get v2, which is what
#     is tested.  integration/client is no longer a module of its own, for that has
#     no vendor/.  TestImagePullWithTracing goes: it needs a package that the main
#     module's vendor/ lacks, and no shim.
# All images come from a registry on this machine that calls itself ghcr.io and
# registry.k8s.io; they are made of busybox.tar by images.py.
#
# The tests have processes, mounts, a network and a /tmp, /run, /opt and /var/lib
# of their own; what they leave behind is listed at the end of the log, and goes.
set -euo pipefail

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# build: containerd, ctr, its shim, runc-fp and the tests, in $work/bin.
build() {
    local tags='no_btrfs no_devmapper no_zfs' client=$work/source/integration/client digest
    rm -rf "$work"
    mkdir -p "$work/bin"
    cp -R "$source" "$work/source"
    cd "$work/source"
    sed -i -E 's/(waitCtx, [a-zA-Z]+ := context.WithTimeout\([^,]*, *)[0-9]+\*/\160*/' "$client"/*_test.go
    digest=$(python3 "$here/images.py" "$busybox" '' containerd/busybox:1.36)
    sed -i "s/busybox@sha256:[0-9a-f]*/busybox@${digest#* }/" integration/images/image_list.go
    if [ -e "$client/go.mod" ]; then
        rm "$client"/go.{mod,sum} "$client/tracing.go"
        sed -i -e '/^func TestImagePullWithTracing(/,/^}/d' \
            -e '/"go.opentelemetry.io\/otel"$/d' -e '/testify\/require"$/d' "$client/client_test.go"
        sed -i 's/RuntimeRuncV1/RuntimeRuncV2/' "$client"/*_test.go
    fi
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOPROXY=off GOFLAGS='-mod=vendor -trimpath -buildvcs=false'
    "$go" build -tags "$tags" -o "$work/bin/" ./cmd/containerd ./cmd/ctr ./cmd/containerd-shim-runc-v2 \
        ./integration/failpoint/cmd/runc-fp
    "$go" test -tags "$tags" -vet=off -c -o "$work/bin/client.test" ./integration/client
    touch "$work/built"
}

# serve: a registry with all images, as ghcr.io and registry.k8s.io.
serve() {
    local at=/run/registry images
    mkdir "$at"
    printf '127.0.0.1 localhost ghcr.io registry.k8s.io\n' >"$at/hosts"
    mount --bind "$at/hosts" /etc/hosts
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry -keyout "$at/key" -out "$at/certificate" \
        -addext subjectAltName=DNS:ghcr.io,DNS:registry.k8s.io 2>"$at/log"
    cat >"$at/config.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $at/data}}
http: {addr: "127.0.0.1:443", tls: {certificate: $at/certificate, key: $at/key}}
YAML
    "$registry" serve "$at/config.yml" >>"$at/log" 2>&1 &
    for ((tries = 0; ; tries++)); do
        if (: </dev/tcp/127.0.0.1/443) 2>/dev/null; then break; fi
        [ "$tries" -lt 300 ] || die "no registry: $(cat "$at/log")"
        sleep .1
    done
    export SSL_CERT_FILE=$at/certificate
    # Those that the tests name; but this one's name is put together, and Windows' must be missing.
    mapfile -t images < <(cd "$work/source/integration" && echo pause:3.6 &&
        grep -ohE '"(ghcr\.io|registry\.k8s\.io)/[^":@]+:[^"]+"' images/image_list.go client/*_test.go |
        sed -E 's/^"[^/]*.(.*)"$/\1/' | grep -v windows | sort -u)
    python3 "$here/images.py" "$busybox" https://ghcr.io "${images[@]}" >>"$at/log"
}

# test_in_here <flag>...: the tests, in the namespaces that this process was started in.
test_in_here() {
    local status=0 path=$work/bin:$PATH
    mount -t proc proc /proc
    for dir in /tmp /run /opt /var/lib /etc/cni; do
        [ ! -d "$dir" ] || mount -t tmpfs -o mode=755 tmpfs "$dir"
    done
    chmod 1777 /tmp
    mkdir /run/lock /run/shim
    ip link set lo up
    serve
    if [ "$shim" = go ]; then shim=$work/bin/containerd-shim-runc-v2; fi
    cp "$shim" /run/shim/containerd-shim-runc-v2
    export PATH=/run/shim:$path:$peers/criu/bin
    unset TMPDIR
    {
        for program in containerd containerd-shim-runc-v2 runc criu mkfs.xfs; do
            printf '%s: %s\n' "$program" "$(command -v "$program" || echo none)"
        done
        sha256sum /run/shim/containerd-shim-runc-v2
        containerd --version
        runc --version
    } >"$log"
    cd "$work/source/integration/client"
    for ((run = 0; run < ${REPEAT:-1}; run++)); do
        "$work/bin/client.test" -test.root -test.v -test.timeout "${TIMEOUT:-15m}" \
            -test.skip "${SKIP-^TestImagePullSchema1}" "$@" >>"$log" 2>&1 && status=0 || status=$?
        printf 'exit status %s\n' "$status" >>"$log"
    done
    sleep 2 # for the last shim to end
    {
        printf 'processes left:\n'
        ps -N -p "$$" -o pid,ppid,stat,args # among them, this script's: docker-registry and ps
        printf 'mounts left:\n'
        grep -E 'containerd|testing' /proc/mounts || true
        printf 'cgroups left:\n'
        find /sys/fs/cgroup -type d -name 'testing*' -printf '%f\n' | sort -u
    } >>"$log"
    return "$status"
}

[ $# -ge 3 ] || die 'usage: run.sh <source> <go|shim> <log> [flag of the test program]...'
source=$(realpath -e "$1") shim=$2 log=$(realpath "$3")
shift 3
here=$(dirname "$(realpath "$0")")
version=$(sed -n 's/^\tVersion = "\([^"+]*\).*/\1/p' "$source/version/version.go") || die "$source: not containerd's"
[ -d "$source/vendor" ] || die "$source: no vendor/"
[ "$shim" = go ] || shim=$(realpath -e "$shim")
peers=$(realpath -e "${PEERS:-target/peers}")
busybox=$(realpath -e "$peers/busybox.tar")
go=$(command -v "${GO:-go}") || die 'no go: see GO'
registry=$(command -v "${REGISTRY:-docker-registry}") || die 'no docker-registry: see REGISTRY'
work=$(realpath -m "${WORK:-${log%/*}/build}/$version")
for path in "$here" "$log" "$shim" "$busybox" "$registry" "$work"; do
    case $path in /tmp/* | /run/* | /opt/* | /var/lib/*) die "$path: cannot be there, see above" ;; esac
done

if [ "${IN_NAMESPACES-}" = yes ]; then
    unset IN_NAMESPACES
    test_in_here "$@"
    exit
fi
[ "$(id -u)" = 0 ] || die 'must be root'
mkdir -p "${log%/*}"
[ -e "$work/built" ] || (build)
IN_NAMESPACES=yes unshare -m -n -p -f --kill-child --propagation private \
    "$BASH" "$0" "$source" "$shim" "$log" "$@" &
trap 'kill -KILL "$!"' INT TERM # which unshare hands on to all that it started
status=0
wait "$!" || status=$?
find /sys/fs/cgroup -depth -type d -path '*/testing*' -exec rmdir {} + 2>/dev/null || true
exit "$status"
