#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# setup.sh [build] [demo] [vm] [test]: brings a machine with Debian 12 or 13 and
# Rust to the point where the project builds, where its demo runs, with VMs, and
# where its tests run; without words, all of it.  Safe to run again and again: it
# does only what is missing and says one line for each thing it does.
#
# A program that is in PATH and works is taken, whatever its version.  Else apt
# installs it, if that removes and downgrades nothing (no service is started).
# Else it is unpacked, with the libraries it needs, below target/peers:
#
#   bin               the programs that this machine could not be given otherwise
#   <name>/bin        newer containerds, runtimes and QEMUs of Debian, to test with
#   versions          lines "name version directory-of-the-programs"
#   vm.toml           what the VMs of tests and demo run with
#   rootfs            a busybox root filesystem, and the images made of it for
#   busybox.tar       `ctr images import`
#   pause.tar         the image of a pod's first container
#
# Exit status: 0, all is there; 3, something cannot be had, and only what needs
# it will refuse to run; 1, nothing can be done with this machine.
#
# DUNNAGE_PEERS=dir  is used in place of target/peers.
# To fetch the peers anew, remove target/peers first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022
export LC_ALL=C

image=dunnage.test/busybox:latest
pause_image=dunnage.test/pause:1
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# wanted <word>: whether this run is to care for what that needs.
words=${*:-build demo vm test}
wanted() { case " $words " in *" $1 "*) ;; *) return 1 ;; esac }
for word in $words; do
    case $word in build | demo | vm | test) ;; *) die "$word: neither build, demo, vm nor test" ;; esac
done

for tool in cargo rustc; do
    command -v "$tool" >/dev/null || die "$tool is missing: install Rust first (https://rustup.rs)"
done
for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: this script is for Debian"
done

peers=${DUNNAGE_PEERS:-target/peers}
mkdir -p "$peers" || die "$peers: cannot be made"
peers=$(cd "$peers" && pwd)
[ -w "$peers" ] || die "$peers: cannot write there"
exec 9>"$peers/.lock"
flock 9 # two runs at a time would trip over each other
rm -rf "$peers"/.work.* # of a run that was killed

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

# quietly <command...>: keeps what the command said, which why() shortens.
said=''
quietly() { said=$("$@" 2>&1 </dev/null); }

# The line of what failed last that tells most.
why() {
    local line
    line=$(grep -E '^(E|Err|dpkg-deb: error|tar|cp|mv)|No space left' <<<"$said" | tail -n 1)
    [ -n "$line" ] || line=$(tail -n 1 <<<"$said")
    echo "${line:-it said nothing}"
}

need_root() { [ "$(id -u)" = 0 ] || die "$1 and only root can do that"; }

updated=''
system_update() {
    if [ -n "$updated" ]; then return; fi
    need_root "the lists of Debian's packages must be fetched (apt-get update)"
    say "apt-get update"
    quietly apt-get -q -o APT::Update::Error-Mode=any update ||
        say "apt-get update: $(why) (going on with the lists that are there)"
    updated=yes
}

# What could not be had, and why.
absent=()
lacks() {
    say "not to be had: $1: $2"
    absent+=("$1")
}

# ------------------------------------------------------------------ unpack --

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
    url=$(mirror)
    if [ -z "$url" ]; then
        system_update
        url=$(mirror)
    fi
    [ -n "$url" ] || die "no mirror of Debian in this machine's apt sources, or it cannot be reached"
    if [ ! -r "$keyring" ]; then obtain_package debian-archive-keyring; fi
    [ -r "$keyring" ] || die "$keyring is missing: install debian-archive-keyring"
    mkdir -p "$work/$suite"/{state/lists/partial,cache/archives/partial}
    touch "$work/$suite/status"
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
        say "Debian $suite: $(why)"
        touch "$work/$suite/failed"
        return 1
    fi
}

# This machine's own apt, of which nothing counts as installed.  Sets conf.
own_apt() {
    scratch
    conf=$work/own.conf
    if [ -e "$conf" ]; then return; fi
    touch "$work/status"
    printf 'Dir::State::status "%s";\nAPT::Sandbox::User "root";\n' "$work/status" >"$conf"
}

# unpack <directory> <apt configuration> <package...>
unpack() {
    local to=$1 conf=$2 deb
    shift 2
    quietly mkdir -p "$to" "$to.debs" || return 1
    quietly env -C "$to.debs" apt-get -q -c "$conf" download "$@" || return 1
    for deb in "$to.debs"/*.deb; do quietly dpkg-deb -x "$deb" "$to" || return 1; done
    rm -rf "$to.debs"
}

# program_runs <program>: whether it can be executed here.
program_runs() {
    case ${1##*/} in
        containerd-shim*) "$1" -v ;;
        mkfs.erofs) "$1" --help ;; # its word for the version has changed
        mkfs.* | fusermount3 | ip | ps) "$1" -V ;;
        bridge | host-local | loopback) CNI_COMMAND=VERSION "$1" ;;
        *) "$1" --version ;;
    esac >/dev/null 2>&1 </dev/null
}

# all_run <bin directory>: whether every program in it can be executed here.
all_run() {
    local program
    [ -d "$1" ] || return 1
    for program in "$1"/*; do program_runs "$program" || return 1; done
}

# own_libraries <final directory> <tree> <apt configuration> <package>: for
# programs that want other libraries than this machine's: gives them a directory
# of libraries and, written into the programs, its absolute path.
# (LD_LIBRARY_PATH would not do: these programs execute themselves anew through
# /proc/self/exe, and a newer libc wants its own dynamic loader.)
own_libraries() {
    local final=$1 tree=$2 conf=$3 package=$4 more='' libs library program
    # It looks for this when it is told to checkpoint.
    [ "$package" != crun ] || more=libcriu2
    obtain_package patchelf
    # What apt would install on a machine that has nothing.
    quietly apt-get -q -s -c "$conf" --no-install-recommends install "$package" ${more:+"$more"} || return 1
    mapfile -t libs < <(sed -n 's/^Inst \(lib[^ ]*\) .*/\1/p' <<<"$said" | sort -u)
    [ "${#libs[@]}" -gt 0 ] || return 1
    unpack "$tree.libs" "$conf" "${libs[@]}" || return 1
    quietly mkdir -p "$tree/lib" || return 1
    # One by one: two packages may have the same library.
    while read -r library; do
        quietly cp -a --remove-destination -t "$tree/lib" "$library" || return 1
    done < <(find "$tree.libs" -path '*/lib*/*-linux-*/*.so*' ! -path '*/gconv/*' ! -type d)
    rm -rf "$tree.libs"
    for program in "$tree"/bin/*; do
        quietly patchelf \
            --set-interpreter "$final/lib/$(basename "$(patchelf --print-interpreter "$program")")" \
            --force-rpath --set-rpath "$final/lib" "$program" || return 1
    done
}

# put <name> <package> <version> <apt configuration> <program...>: unpacks these
# programs of the package into $peers/<name>/bin.
put() {
    local name=$1 package=$2 version=$3 conf=$4 tree data program
    shift 4
    tree=$work/$name
    unpack "$tree.all" "$conf" "$package" || return 1
    quietly mkdir -p "$tree/bin" || return 1
    for program in "$@"; do
        quietly find "$tree.all" -type f -perm -100 \( -path "*bin/$program" -o -path "*/libexec/$program" -o \
            -path "*/cni/$program" \) -exec cp -t "$tree/bin" {} + || return 1
        if [ ! -x "$tree/bin/$program" ]; then
            said="$package $version has no program $program"
            return 1
        fi
    done
    if [ "$package" = qemu-system-x86 ]; then
        # It looks for what it needs where it would be beside its own directory.
        unpack "$tree.all" "$conf" qemu-system-common qemu-system-data seabios || return 1
        quietly mkdir -p "$tree/share" "$tree/lib" || return 1
        for data in "$tree.all"/usr/share/{qemu,seabios}; do
            quietly cp -a -t "$tree/share" "$data" || return 1
        done
        for data in "$tree.all"/usr/lib/*-linux-*/qemu; do # its modules
            [ -d "$data" ] || continue
            quietly mkdir -p "$tree/${data#"$tree.all/usr/"}" || return 1
            quietly cp -a -T "$data" "$tree/${data#"$tree.all/usr/"}" || return 1
        done
    fi
    rm -rf "$tree.all"
    if [ "$package" = crun ] || ! all_run "$tree/bin"; then
        own_libraries "$peers/$name" "$tree" "$conf" "$package" || return 1
    fi
    echo "$version" >"$tree/VERSION" || return 1
    rm -rf "${peers:?}/$name"
    mv "$tree" "$peers/$name" || return 1
    if ! all_run "$peers/$name/bin"; then
        rm -rf "${peers:?}/$name"
        said="$package $version does not run on this machine"
        return 1
    fi
}

# peer <name> <package> <version pattern> <programs> <suite...>: takes the
# package from the first suite that has such a version.
peer() {
    local name=$1 package=$2 pattern=$3 programs=$4 suite version seen=
    shift 4
    if [ -e "$peers/$name/VERSION" ]; then
        if all_run "$peers/$name/bin"; then return; fi
        rm -rf "${peers:?}/$name"
    fi
    for suite in "$@"; do
        if ! suite_apt "$suite"; then
            seen+=" ($suite: cannot be read)"
            continue
        fi
        version=$(apt-cache -c "$conf" show --no-all-versions "$package" 2>/dev/null | sed -n 's/^Version: //p')
        # shellcheck disable=SC2053 # a pattern is meant
        if [[ $version != $pattern ]]; then
            seen+=" ($suite: ${version:-none})"
            continue
        fi
        say "peer $name: unpacking $package $version from suite $suite"
        # shellcheck disable=SC2086 # several programs
        if put "$name" "$package" "$version" "$conf" $programs; then return; fi
        seen+=" ($suite: $(why))"
        rm -rf "${work:?}/$name" "$work/$name".*
    done
    lacks "$name" "no $package $pattern from suite ${*}$seen"
}

# ---------------------------------------------------------------- programs --

# Programs that had to be unpacked are found first; a program that this machine
# was given since is taken in their place, because the links are made anew.
declare -A unpacked=()
for link in "$peers"/bin/*; do
    if [ -L "$link" ]; then unpacked[${link##*/}]=$(readlink "$link"); fi
done
rm -rf "${peers:?}/bin"
mkdir -p "$peers/bin"
PATH=$peers/bin:$PATH
# Where Debian has programs that not every user's PATH has.
for dir in /usr/local/sbin /usr/sbin /sbin; do
    case :$PATH: in *":$dir:"*) ;; *) PATH+=:$dir ;; esac
done
export PATH

# What is needed for what, whose package has it, and which programs it is.  Of
# packages that are alternatives the first that apt knows.
needs=(
    'build  make                       make'
    'build  gcc                        gcc'
    'build  libc6-dev                  static-libc'
    'build  ca-certificates            certificates'
    'demo   containerd                 containerd ctr containerd-shim-runc-v2'
    'demo   runc                       runc'
    'demo   util-linux                 unshare setpriv mount flock'
    'demo   procps                     ps'
    'vm     qemu-system-x86            qemu-system-x86_64'
    'vm     lz4                        lz4'
    'vm     zstd                       zstd'
    'vm     cpio                       cpio'
    'vm     binutils                   objcopy readelf strip'
    'vm     dpkg-dev                   dpkg-source'
    'vm     xz-utils                   xz'
    'test   containernetworking-plugins cni-plugins'
    'test   strace                     strace'
    'test   zstd                       zstd'
    'test   docker-registry            docker-registry'
    'test   iproute2                   ip'
    'test   jq                         jq'
    'test   e2fsprogs                  mkfs.ext4'
    'test   erofs-utils                mkfs.erofs'
    'test   cryptsetup-bin             veritysetup'
    'test   fuse3                      fusermount3'
    'test   fuse-overlayfs             fuse-overlayfs'
    'test   iptables                   iptables'
    'test   docker.io                  dockerd'
    'test   docker-cli|docker.io       docker'
    'test   shellcheck                 shellcheck'
    'test   g++                        g++'
    'test   debian-archive-keyring     keyring'
    'test   lintian                    lintian'
    'test   rpm                        rpmbuild rpm'
)

# works <program>: whether it is there and can be used.
works() {
    local path
    case $1 in
        static-libc)
            scratch
            echo 'int main(void) { return 0; }' >"$work/main.c"
            gcc -static -o "$work/main" "$work/main.c" >/dev/null 2>&1
            ;;
        certificates) [ -s /etc/ssl/certs/ca-certificates.crt ] ;;
        keyring) [ -r "$keyring" ] ;;
        cni-plugins) program_runs /usr/lib/cni/bridge || program_runs /opt/cni/bin/bridge ||
            program_runs "$peers/own-containernetworking-plugins/bin/bridge" ;;
        *) path=$(type -P "$1") && program_runs "$path" ;;
    esac
}

# all_work <program...>
all_work() {
    local program
    for program in "$@"; do works "$program" || return 1; done
}

# apt_can <package...>: whether apt would install them and take nothing away.
apt_can() {
    quietly apt-get -q -s --no-install-recommends --no-remove install "$@" || return 1
    # Without --allow-downgrades apt refuses those when it is told yes; -s does not ask.
    ! grep -q DOWNGRADED <<<"$said"
}

# Why not.
apt_would() {
    local gone
    quietly apt-get -q -s --no-install-recommends install "$@" || { why; return; }
    gone=$(sed -n 's/^Remv \([^ ]*\).*/\1/p' <<<"$said" | paste -s -d ' ')
    if [ -n "$gone" ]; then
        echo "apt would remove $gone"
    else
        echo "apt would downgrade $(sed -n '/DOWNGRADED/,/^[^ ]/s/^ *//p' <<<"$said" | tail -n +2 | paste -s -d ' ')"
    fi
}

# apt_install <package...>: no service is started by it.
apt_install() {
    say "installing $*"
    # Debian asks this file before a package starts its service; 101 is "no".
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    local done=yes
    quietly env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --no-remove \
        -o DPkg::Lock::Timeout=120 install "$@" || done=''
    if [ -n "$policy" ]; then rm -f "$policy"; policy=''; fi
    [ -n "$done" ]
}

# known <packages, with | between alternatives>: the first that apt knows.
known() {
    local package
    for package in ${1//|/ }; do
        if [ -n "$(apt-cache show --no-all-versions "$package" 2>/dev/null)" ]; then
            echo "$package"
            return
        fi
    done
    echo "${1%%|*}"
}

# obtain_package <package>: a tool of this script's own.
obtain_package() {
    if [ "$1" = patchelf ] && works patchelf; then return; fi
    need_root "$1 must be installed,"
    system_update
    apt_install "$1" || die "$1: $(why)"
}

# unpack_need <package> <program...>: for what apt cannot install here.
unpack_need() {
    local package=$1 name=own-$1 version program
    shift
    own_apt
    version=$(apt-cache -c "$conf" show --no-all-versions "$package" 2>/dev/null | sed -n 's/^Version: //p' | head -n 1)
    if [ -z "$version" ]; then
        said="apt knows no package $package"
        return 1
    fi
    # The peers below have QEMUs by their versions; this may be one of them.
    if [ "$package" = qemu-system-x86 ]; then name=qemu-$(sed -E 's/^[0-9]+:([0-9]+\.[0-9]+).*/\1/' <<<"$version"); fi
    if [ "$(cat "$peers/$name/VERSION" 2>/dev/null)" != "$version" ] || ! all_run "$peers/$name/bin"; then
        say "$package: unpacking $version with its libraries"
        [ "$1" != cni-plugins ] || set -- bridge firewall host-local loopback portmap
        put "$name" "$package" "$version" "$conf" "$@" || return 1
    fi
    # Their directory is configured; in PATH one would hide iproute2's bridge.
    [ "$package" != containernetworking-plugins ] || return 0
    for program in "$peers/$name"/bin/*; do ln -sfn "$program" "$peers/bin/${program##*/}"; done
}

# link_again <program...>: takes what an earlier run unpacked, if it still works.
link_again() {
    local program
    for program in "$@"; do
        [ -n "${unpacked[$program]-}" ] && program_runs "${unpacked[$program]}" || return 1
    done
    for program in "$@"; do ln -sfn "${unpacked[$program]}" "$peers/bin/$program"; done
}

obtain() {
    local need word packages programs package missing=() install=() unpackable=() there=''
    for need in "${needs[@]}"; do
        read -r word packages programs <<<"$need"
        wanted "$word" || continue
        # shellcheck disable=SC2086 # several programs
        if all_work $programs || link_again $programs; then there+=" ${programs%% *}"; else missing+=("$need"); fi
    done
    if [ -n "$there" ]; then say "there already:$there"; fi
    if [ "${#missing[@]}" = 0 ]; then return; fi
    need_root "missing: $(printf '%s\n' "${missing[@]}" | awk '{ printf "%s%s", n++ ? " " : "", $3 }'),"
    system_update
    for need in "${missing[@]}"; do
        read -r word packages programs <<<"$need"
        package=$(known "$packages")
        if apt_can "$package"; then
            case " ${install[*]-} " in *" $package "*) ;; *) install+=("$package") ;; esac
        else
            unpackable+=("$need")
        fi
    done
    if [ "${#install[@]}" -gt 0 ]; then
        # What can be had one by one may not go together.
        if ! apt_can "${install[@]}" || ! apt_install "${install[@]}"; then
            say "together they can't be installed: $(why)"
            for package in "${install[@]}"; do
                if apt_can "$package"; then apt_install "$package" || say "$package: $(why)"; fi
            done
        fi
    fi
    for need in "${missing[@]}"; do
        read -r word packages programs <<<"$need"
        package=$(known "$packages")
        # shellcheck disable=SC2086 # several programs
        if all_work $programs; then continue; fi
        say "$package: not by apt: $(apt_would "$package")"
        # shellcheck disable=SC2086 # several programs
        if ! unpack_need "$package" $programs || ! all_work $programs; then
            lacks "${programs%% *}" "$(why)"
        fi
    done
}
obtain
for tool in make gcc static-libc certificates; do
    if wanted build && ! works "$tool"; then die "nothing can be built here without $tool"; fi
done

# ------------------------------------------------------------------- peers --

# Debian's sid moves on: it may have later versions than the names say; the
# file `versions` has the truth.
if wanted test; then
    peer containerd-1.7 containerd '1.7.*' 'containerd ctr containerd-shim-runc-v2' trixie
    peer containerd-2.1 containerd '2.*' 'containerd ctr containerd-shim-runc-v2' sid
    peer runc-1.3 runc '1.[3-9].*' runc trixie sid
    peer crun crun '*.*' crun trixie sid
    # Debian 12's own, 3.17, does not know the vDSO of newer kernels.
    peer criu criu '[4-9].*' criu trixie sid
    # Beside the docker.io of this machine, the newest that runs here.
    peer docker docker.io '2[6-9].*' dockerd sid trixie
    peer docker-cli docker-cli '2[6-9].*' docker sid trixie
    if [ "$(uname -m)" = x86_64 ]; then
        # What serves files to the VM that the tests themselves run in.
        peer virtiofsd virtiofsd '1.*' virtiofsd trixie sid
        peer qemu-7.2 qemu-system-x86 '1:7.2*' qemu-system-x86_64 bookworm
        peer qemu-10.0 qemu-system-x86 '1:10.*' qemu-system-x86_64 trixie
        peer qemu-11 qemu-system-x86 '1:1[1-9]*' qemu-system-x86_64 sid
    fi
fi

# ------------------------------------------------- root filesystem, image --

# Not installed but unpacked: the package conflicts with Debian's usual busybox.
if [ ! -e "$peers/rootfs/bin/busybox" ] && (wanted demo || wanted vm || wanted test); then
    own_apt
    [ -n "$(apt-cache show busybox-static 2>/dev/null)" ] || system_update
    say "making the busybox root filesystem"
    unpack "$work/busybox" "$conf" busybox-static || die "busybox-static: $(why)"
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
    # What is mounted on these would make them, and this root filesystem is nobody's to write to.
    touch "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf"
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

if [ -e "$peers/rootfs" ] && [ ! -e "$peers/busybox.tar" ]; then
    scratch
    make_image "$image" "$peers/rootfs" \
        '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"],"WorkingDir":"/"}' \
        "$peers/busybox.tar"
fi

# The first container of a pod holds its namespaces: it only waits, and reaps
# whoever is orphaned in a pid namespace of the whole pod.
if wanted test && [ ! -e "$peers/pause.tar" ]; then
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

# version_of <package> <program>: as Debian counts, else as it says itself.
version_of() {
    local path=$2 version
    version=$(dpkg-query -W -f '${Version}' "$1" 2>/dev/null) &&
        dpkg-query -L "$1" 2>/dev/null | grep -xF "$path" >/dev/null || version=''
    [ -n "$version" ] || version=$("$path" --version | grep -oE '[0-9]+\.[0-9]+\.[0-9][^ ,]*' | head -n 1)
    echo "${version:-0.0}"
}

# The machine's own are called by their first two numbers: containerd-1.6.
own() {
    local path version
    path=$(type -P "$1") || return 0
    version=$(version_of "$1" "$path")
    printf '%s-%s %s %s\n' "$1" "$(cut -d. -f1,2 <<<"$version")" "$version" "$(dirname "$path")"
}

# containerd's own shim, whoever else is in PATH under its name.
go_shim() {
    local path
    type -P -a containerd-shim-runc-v2 | while read -r path; do
        case $("$path" -v 2>/dev/null) in
            *'Go version'*)
                echo "go-shim $(version_of containerd "$path") ${path%/*}"
                break
                ;;
        esac
    done
}

# The first of a name counts.
{
    own containerd
    own runc
    go_shim
    for name in containerd-1.7 containerd-2.1 runc-1.3 crun criu docker docker-cli qemu-7.2 qemu-10.0 qemu-11; do
        if [ -e "$peers/$name/VERSION" ]; then
            echo "$name $(cat "$peers/$name/VERSION") $peers/$name/bin"
        fi
    done
} | awk '!seen[$1]++' | sort >"$peers/.versions"
cmp -s "$peers/.versions" "$peers/versions" || cp "$peers/.versions" "$peers/versions"
rm "$peers/.versions"

# Without KVM, so that they are the same everywhere.
# The file itself, not a link to it.
qemu=$(readlink -f "$(type -P qemu-system-x86_64 || echo /dev/null)")
[ "$qemu" != /dev/null ] || qemu=
cat >"$peers/.vm.toml" <<END
accel = "tcg"
image = "$PWD/target/dist/guest"
start_timeout = 60
qemu = "${qemu:-qemu-system-x86_64}"
END
cmp -s "$peers/.vm.toml" "$peers/vm.toml" || cp "$peers/.vm.toml" "$peers/vm.toml"
rm "$peers/.vm.toml"

say "ready: $(awk '{ printf "%s%s %s", (NR > 1 ? ", " : ""), $1, $2 }' "$peers/versions")"
if [ "${#absent[@]}" -gt 0 ]; then
    say "not to be had: ${absent[*]}; what needs it will say so"
    if [ "${CI:-}" = true ]; then die "all of it is needed in CI"; fi
    exit 3
fi
