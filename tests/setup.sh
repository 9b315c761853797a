#!/usr/bin/env bash
# Brings a Debian 12 machine with Rust to the point where the project builds
# and its tests run.  Safe to run again and again: it does only what is missing
# and says one line for each thing it does.
#
#  * installs the Debian packages below (no service is started);
#  * unpacks newer containerds and other runtimes of Debian under target/peers,
#    never over the system's own:
#        <name>/bin        the programs
#        versions          lines "name version directory-of-the-programs"
#  * makes a busybox root filesystem, target/peers/rootfs, and of it an OCI
#    image for `ctr images import`, target/peers/busybox.tar;
#  * makes the image of a pod's first container, target/peers/pause.tar.
#
# DUNNAGE_PEERS=dir  is used in place of target/peers.
# To fetch the peers anew, remove target/peers first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022
export LC_ALL=C

packages=(containerd runc containernetworking-plugins ca-certificates debian-archive-keyring
          strace iproute2 procps util-linux jq make gcc libc6-dev patchelf
          e2fsprogs fuse3 fuse-overlayfs docker.io
          qemu-system-x86 lz4 zstd cpio binutils dpkg-dev)
image=dunnage.test/busybox:latest
pause_image=dunnage.test/pause:1
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

for tool in cargo rustc; do
    command -v "$tool" >/dev/null || die "$tool is missing: install Rust first (https://rustup.rs)"
done
for tool in apt-get apt-cache dpkg-query dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: this script is for Debian 12"
done

peers=${DUNNAGE_PEERS:-target/peers}
mkdir -p "$peers"
peers=$(cd "$peers" && pwd)
[ -w "$peers" ] || die "$peers: cannot write there"
exec 9>"$peers/.lock"
flock 9 # two runs at a time would trip over each other

work='' policy=''
tidy() {
    if [ -n "$work" ]; then rm -rf "$work"; fi
    if [ -n "$policy" ]; then rm -f "$policy"; fi
}
trap tidy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# A scratch directory beside the result, so that results are moved into place.
scratch() {
    if [ -z "$work" ]; then work=$(mktemp -d "$peers/.work.XXXXXX"); fi
}

# quietly <command...>: shows what the command said only if it fails.
quietly() {
    scratch
    "$@" >"$work/log" 2>&1 </dev/null && return
    cat "$work/log" >&2
    return 1
}

updated=''
system_update() {
    if [ -n "$updated" ]; then return; fi
    [ "$(id -u)" = 0 ] || die "apt-get update must run as root"
    say "apt-get update"
    quietly apt-get -q update || die "apt-get update failed"
    updated=yes
}

# ---------------------------------------------------------------- packages --

missing=()
mapfile -t present < <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null |
    sed -n 's/^installed //p')
for package in "${packages[@]}"; do
    case " ${present[*]} " in *" $package "*) ;; *) missing+=("$package") ;; esac
done
if [ "${#missing[@]}" -gt 0 ]; then
    [ "$(id -u)" = 0 ] || die "these Debian packages are missing and only root can install them: ${missing[*]}"
    system_update
    say "installing ${missing[*]}"
    # Debian asks this file before a package starts its service; 101 is "no".
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    quietly env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --no-remove \
        -o DPkg::Lock::Timeout=120 install "${missing[@]}" ||
        die "apt-get could not install: ${missing[*]}"
    if [ -n "$policy" ]; then rm -f "$policy"; policy=''; fi
fi

# ------------------------------------------------------------------- peers --

# The mirror this machine's apt takes Debian itself from, whichever way its
# sources are written.
mirror() {
    # shellcheck disable=SC2016 # apt's variables, not the shell's
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 == "main" && $3 !~ /[-\/]/ && $4 !~ /^cdrom:/ && !n++ { print $4 }'
}

# suite_apt <suite>: an apt of its own for one suite.  Sets conf to its
# configuration file; the machine's apt is only read, for proxies and such.
suite_apt() {
    local suite=$1 url
    scratch
    conf=$work/$suite/apt.conf
    if [ -e "$work/$suite/failed" ]; then return 1; fi
    if [ -e "$conf" ]; then return; fi
    mkdir -p "$work/$suite"/{state/lists/partial,cache/archives/partial}
    touch "$work/$suite/status"
    url=$(mirror)
    if [ -z "$url" ]; then
        system_update
        url=$(mirror)
    fi
    [ -n "$url" ] || die "no Debian mirror in this machine's apt sources, or it cannot be reached"
    [ -r "$keyring" ] || die "$keyring is missing"
    echo "deb [signed-by=$keyring arch=$(dpkg --print-architecture) targets=Packages] $url $suite main" \
        >"$work/$suite/sources.list"
    cat >"$conf" <<END
Dir::Etc::sourcelist "$work/$suite/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$work/$suite/state";
Dir::State::status "$work/$suite/status";
Dir::Cache "$work/$suite/cache";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false"; // signed all the same; some mirrors stand still
APT::Sandbox::User "root";
END
    say "reading the package list of Debian $suite"
    if ! quietly apt-get -q -c "$conf" -o APT::Update::Error-Mode=any update; then
        touch "$work/$suite/failed"
        return 1
    fi
}

# unpack <directory> <apt configuration> <package...>
unpack() {
    local to=$1 conf=$2 deb
    shift 2
    mkdir -p "$to" "$to.debs"
    (cd "$to.debs" && quietly apt-get -q -c "$conf" download "$@") || return 1
    for deb in "$to.debs"/*.deb; do dpkg-deb -x "$deb" "$to"; done
    rm -rf "$to.debs"
}

# runs <bin directory>: whether every program in it can be executed here.
runs() {
    local program
    [ -d "$1" ] || return 1
    for program in "$1"/*; do
        case $program in
            */containerd-shim*) "$program" -v ;;
            *) "$program" --version ;;
        esac >/dev/null 2>&1 </dev/null || return 1
    done
}

# own_libraries <peer's final directory> <tree> <apt configuration> <package>:
# for programs that want a newer libc than this machine's: gives them a
# directory of libraries and, written into the programs, its absolute path.
# (LD_LIBRARY_PATH would not do: these programs execute themselves anew through
# /proc/self/exe, and the newer libc wants its own dynamic loader.)
own_libraries() {
    local final=$1 tree=$2 conf=$3 package=$4 libs program
    mapfile -t libs < <(apt-cache -c "$conf" depends --recurse --important "$package" | grep '^lib' | sort -u)
    [ "${#libs[@]}" -gt 0 ] || return 1
    unpack "$tree.libs" "$conf" "${libs[@]}" || return 1
    mkdir -p "$tree/lib"
    find "$tree.libs" -path '*/lib*/*-linux-*/*.so*' ! -path '*/gconv/*' -exec cp -a -t "$tree/lib" {} +
    rm -rf "$tree.libs"
    for program in "$tree"/bin/*; do
        patchelf --set-interpreter "$final/lib/$(basename "$(patchelf --print-interpreter "$program")")" \
            --force-rpath --set-rpath "$final/lib" "$program"
    done
}

absent=()

# peer <name> <package> <version pattern> <programs> <suite...>: takes the
# package from the first suite that has such a version.
peer() {
    local name=$1 package=$2 pattern=$3 programs=$4 suite version program seen=
    shift 4
    if [ -e "$peers/$name/VERSION" ]; then
        if runs "$peers/$name/bin"; then return; fi
        rm -rf "${peers:?}/$name"
    fi
    for suite in "$@"; do
        if ! suite_apt "$suite"; then
            seen+=" ($suite: unreachable)"
            continue
        fi
        version=$(apt-cache -c "$conf" show --no-all-versions "$package" 2>/dev/null | sed -n 's/^Version: //p')
        # shellcheck disable=SC2053 # a pattern is meant
        if [[ $version != $pattern ]]; then
            seen+=" ($suite: ${version:-none})"
            continue
        fi
        say "peer $name: unpacking $package $version from suite $suite"
        local tree=$work/$name
        if ! unpack "$tree.all" "$conf" "$package"; then
            seen+=" ($suite: no download)"
            continue
        fi
        mkdir -p "$tree/bin"
        for program in $programs; do
            find "$tree.all" -path "*bin/$program" -type f -perm -100 -exec cp -t "$tree/bin" {} +
            [ -x "$tree/bin/$program" ] || die "peer $name: $package $version has no program $program"
        done
        rm -rf "$tree.all"
        if ! runs "$tree/bin"; then
            own_libraries "$peers/$name" "$tree" "$conf" "$package" ||
                die "peer $name: cannot get the libraries of $package $version"
        fi
        echo "$version" >"$tree/VERSION"
        mv "$tree" "$peers/$name"
        runs "$peers/$name/bin" || {
            rm -rf "${peers:?}/$name"
            die "peer $name: $package $version does not run on this machine"
        }
        return
    done
    say "peer $name: not available from suite ${*}$seen"
    absent+=("$name")
}

# Debian's sid moves on: it may have later versions than the names say; the
# file `versions` has the truth.
peer containerd-1.7 containerd '1.7.*' 'containerd ctr containerd-shim-runc-v2' trixie
peer containerd-2.1 containerd '2.*' 'containerd ctr containerd-shim-runc-v2' sid
peer runc-1.3 runc '1.[3-9].*' runc trixie sid
peer crun crun '*.*' crun trixie sid
# Debian 12's own, 3.17, does not know the vDSO of newer kernels.
peer criu criu '[4-9].*' criu trixie sid
# Beside the docker.io of this machine, the newest that runs here.
peer docker docker.io '2[6-9].*' dockerd sid trixie
peer docker-cli docker-cli '2[6-9].*' docker sid trixie

# ------------------------------------------------- root filesystem, image --

# Not installed but unpacked: the package conflicts with Debian's usual busybox.
if [ ! -e "$peers/rootfs/bin/busybox" ]; then
    scratch
    [ -n "$(apt-cache show busybox-static 2>/dev/null)" ] || system_update
    say "making the busybox root filesystem"
    echo 'APT::Sandbox::User "root";' >"$work/apt.conf"
    unpack "$work/busybox" "$work/apt.conf" busybox-static || die "cannot download busybox-static"
    root=$work/rootfs
    mkdir -p "$root"/{bin,dev,etc,home,mnt,proc,root,run,sys,tmp,usr,var/tmp}
    chmod 700 "$root/root"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    find "$work/busybox" -path '*bin/busybox' -type f -exec cp -t "$root/bin" {} +
    for applet in $("$root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    ln -s bin "$root/sbin"
    ln -s ../bin "$root/usr/bin"
    ln -s ../bin "$root/usr/sbin"
    ln -s ../run "$root/var/run"
    cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/sh
END
    cat >"$root/etc/group" <<'END'
root:x:0:
tty:x:5:
nogroup:x:65534:
END
    rm -rf "$peers/rootfs" "$peers/busybox.tar"
    mv "$root" "$peers/rootfs"
fi

# blob <file>: moves it to its place in the image, sets digest and size.
blob() {
    digest=$(sha256sum <"$1")
    digest=${digest%% *}
    size=$(stat -c %s "$1")
    mv "$1" "$oci/blobs/sha256/$digest"
}

# The same root filesystem gives the same image, to the byte.
plain_tar() {
    tar --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$1" -cf - "${@:2}"
}

# make_image <name:tag> <root filesystem> <config of its containers> <tar>
make_image() {
    local name=$1 root=$2 config=$3 tar=$4 oci=$work/oci digest size diff_id layer platform
    say "making the image $name"
    rm -rf "$oci"
    mkdir -p "$oci/blobs/sha256"
    plain_tar "$root" . >"$work/layer.tar"
    diff_id=$(sha256sum <"$work/layer.tar")
    gzip -n -9 "$work/layer.tar"
    blob "$work/layer.tar.gz"
    layer='{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:'$digest'","size":'$size'}'
    case $(dpkg --print-architecture) in
        amd64) platform='"architecture":"amd64"' ;;
        arm64) platform='"architecture":"arm64","variant":"v8"' ;;
        armhf) platform='"architecture":"arm","variant":"v7"' ;;
        armel) platform='"architecture":"arm","variant":"v5"' ;;
        i386) platform='"architecture":"386"' ;;
        ppc64el) platform='"architecture":"ppc64le"' ;;
        *) platform='"architecture":"'$(dpkg --print-architecture)'"' ;;
    esac
    printf '%s' '{"created":"1970-01-01T00:00:00Z",'"$platform"',"os":"linux",' \
        '"config":'"$config"',' \
        '"rootfs":{"type":"layers","diff_ids":["sha256:'"${diff_id%% *}"'"]},' \
        '"history":[{"created":"1970-01-01T00:00:00Z","created_by":"tests/setup.sh"}]}' >"$work/config"
    blob "$work/config"
    printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",' \
        '"config":{"mediaType":"application/vnd.oci.image.config.v1+json",' \
        '"digest":"sha256:'"$digest"'","size":'"$size"'},' \
        '"layers":['"$layer"']}' >"$work/manifest"
    blob "$work/manifest"
    printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[' \
        '{"mediaType":"application/vnd.oci.image.manifest.v1+json",' \
        '"digest":"sha256:'"$digest"'","size":'"$size"',' \
        '"annotations":{"io.containerd.image.name":"'"$name"'",' \
        '"org.opencontainers.image.ref.name":"'"${name##*:}"'"},' \
        '"platform":{'"$platform"',"os":"linux"}}]}' >"$oci/index.json"
    printf '%s' '{"imageLayoutVersion":"1.0.0"}' >"$oci/oci-layout"
    plain_tar "$oci" blobs index.json oci-layout >"$work/image.tar"
    mv "$work/image.tar" "$tar"
}

if [ ! -e "$peers/busybox.tar" ]; then
    scratch
    make_image "$image" "$peers/rootfs" \
        '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"],"WorkingDir":"/"}' \
        "$peers/busybox.tar"
fi

# The first container of a pod holds its namespaces: it only waits, and reaps
# whoever is orphaned in a pid namespace of the whole pod.
if [ ! -e "$peers/pause.tar" ]; then
    scratch
    mkdir -p "$work/pause"
    cat >"$work/pause.c" <<'END'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
    signal(SIGINT, end);
    signal(SIGTERM, end);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
END
    quietly gcc -Os -static -s -o "$work/pause/pause" "$work/pause.c" || die "cannot compile pause"
    make_image "$pause_image" "$work/pause" '{"Entrypoint":["/pause"],"WorkingDir":"/"}' "$peers/pause.tar"
fi

# ---------------------------------------------------------------- versions --

# The system's own are called by their first two numbers: containerd-1.6.
own() {
    local version
    version=$(dpkg-query -W -f '${Version}' "$1")
    printf '%s-%s %s %s\n' "$1" "$(cut -d. -f1,2 <<<"$version")" "$version" "$(dirname "$(command -v "$1")")"
}
{
    PATH=/usr/sbin:/usr/bin:/sbin:/bin
    own containerd
    own runc
    for name in containerd-1.7 containerd-2.1 runc-1.3 crun criu docker docker-cli; do
        if [ -e "$peers/$name/VERSION" ]; then
            echo "$name $(cat "$peers/$name/VERSION") $peers/$name/bin"
        fi
    done
} | sort >"$peers/.versions"
cmp -s "$peers/.versions" "$peers/versions" || cp "$peers/.versions" "$peers/versions"
rm "$peers/.versions"

say "ready: $(awk '{ printf "%s%s %s", (NR > 1 ? ", " : ""), $1, $2 }' "$peers/versions")"
case " ${absent[*]-} " in
    *" containerd-2"*) if [ "${CI:-}" = true ]; then die "no containerd 2 to test with"; fi ;;
esac
