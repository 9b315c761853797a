#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# roots.sh [bookworm] [backports] [trixie]: shows that tests/setup.sh does on
# other machines what it does on this one.  For each word it makes a root of
# Debian with debootstrap, lets setup run in it, and executes what that got: a
# container under the shim of target/dist, dunnage, a VM (the demos), and `make install`.
#
#   bookworm    Debian 12, minimal
#   backports   the same with qemu-utils of bookworm-backports, for which apt
#               would have to remove what Debian 12's QEMU needs, and docker.io
#   trixie      Debian 13, minimal
#
#   MIRROR      of Debian (the first that apt has)
#   SETUP       what setup is asked for (build demo vm test)
#
# As root, after `make build guest`; some three minutes each.  Each root is in a
# mount, a PID and a UTS namespace of its own, and is removed at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C

say() { printf 'roots: %s\n' "$*"; }
die() { printf 'roots: error: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "making a root takes root"
command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
for file in containerd-shim-runc-v2 containerd-shim-vm-v2 dunnage guest/distro/guest.toml; do
    [ -e "target/dist/$file" ] || die "target/dist/$file is missing: make build guest"
done
# shellcheck disable=SC2016 # apt's variables, not the shell's
mirror=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 == "Debian" && $2 == "main" && !n++ { print $3 }')}
[ -n "$mirror" ] || die "no mirror of Debian in apt's sources: set MIRROR"
rust=$(rustc --print sysroot)

dir=$(mktemp -d /var/tmp/dunnage-roots.XXXXXX)
trap 'rm -rf --one-file-system "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What runs in the root.
cat >"$dir/inside" <<'END'
set -euo pipefail
export PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export DUNNAGE_PEERS=/peers DEBIAN_FRONTEND=noninteractive
apt-get -q update >/dev/null
if [ "$1" = backports ]; then
    apt-get -q -y --no-install-recommends install docker.io >/dev/null
    apt-get -q -y --no-install-recommends -t bookworm-backports install qemu-utils >/dev/null
fi
before=$(dpkg-query -W -f '${Package} ${Version}\n' | sort)
cd /src
# shellcheck disable=SC2086 # several words
time CI=true tests/setup.sh $2
# Nothing was removed, nothing has another version than it had.
gone=$(comm -23 <(echo "$before") <(dpkg-query -W -f '${Package} ${Version}\n' | sort))
[ -z "$gone" ] || { echo "setup removed or changed: $gone" >&2; exit 1; }
# A second run finds all of it.
CI=true tests/setup.sh $2 | tee /tmp/second
if grep -E 'install|unpack|reading|apt-get' /tmp/second; then echo "a second run had work to do" >&2; exit 1; fi
if pgrep -x 'containerd|dockerd'; then echo "a service runs" >&2; exit 1; fi
export PATH=/peers/bin:$PATH DUNNAGE_VM_CONFIG=/peers/vm.toml
tests/demo.sh
tests/demo-manager.sh
tests/demo-vm.sh
make install DESTDIR=/tmp/installed >/dev/null
/tmp/installed/usr/local/bin/dunnage --version
END

for root in "${@:-bookworm backports trixie}"; do
    # Several words may have come as one.
    for name in $root; do
        case $name in
            bookworm | backports) suite=bookworm ;;
            trixie) suite=trixie ;;
            *) die "$name: neither bookworm, backports nor trixie" ;;
        esac
        tree=$dir/$name
        say "$name: debootstrap"
        debootstrap --variant=minbase --include=procps,ca-certificates "$suite" "$tree" "$mirror" >"$dir/log" 2>&1 ||
            { tail "$dir/log" >&2; die "debootstrap $suite failed"; }
        if [ "$name" = backports ]; then
            echo "deb $mirror bookworm-backports main" >"$tree/etc/apt/sources.list.d/backports.list"
        fi
        mkdir -p "$tree"/{opt/rust,src,peers,old}
        cp "$dir/inside" "$tree/tmp/inside"
        cp /etc/resolv.conf "$tree/etc/resolv.conf"
        started=$SECONDS
        # shellcheck disable=SC2016 # what the new shell expands
        unshare --mount --pid --uts --fork --kill-child "$BASH" -euc '
            tree=$1 rust=$2
            mount --bind "$tree" "$tree"
            mount --rbind /dev "$tree/dev"
            mount --rbind /sys "$tree/sys"
            mount -t proc proc "$tree/proc"
            mount -t tmpfs -o mode=755 run "$tree/run"
            mount -t tmpfs tmp "$tree/tmp" -o size=2g
            mount --bind "$rust" "$tree/opt/rust"
            mount --bind . "$tree/src"
            cp "$tree/../inside" "$tree/tmp/inside"
            cd "$tree"
            pivot_root . old
            umount -l old
            exec bash /tmp/inside "$3" "$4"
        ' -- "$tree" "$rust" "$name" "${SETUP:-build demo vm test}" >"$dir/log" 2>&1 ||
            { cat "$dir/log" >&2; die "$name failed"; }
        grep -E '^(setup:|real|dunnage )' "$dir/log" || :
        say "$name: setup and demos passed in $((SECONDS - started)) s"
        rm -rf --one-file-system "$tree"
    done
done
