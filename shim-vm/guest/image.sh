#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# image.sh <distro|tuned>: makes the image that the VM shim boots, below
# target/dist/guest/<flavour>:
#
#   vmlinux     the kernel, unpacked, with the PVH entry that QEMU starts it by
#   initrd      an initramfs: the agent as /init, the OCI runtime, the modules
#   guest.toml  what is in them; the shim reads it before it boots them
#   copyright   whose that is, under which licences, and where its source is
#
# The flavours differ in the kernel: Debian's cloud kernel with the modules it
# needs, or our own of kernel.sh with every driver built in.  The same agent,
# packages and kernel make the same image, to the byte.
#
#   AGENT          the static agent (target/<host>/release/dunnage-guest)
#   GUEST_RUNTIME  the OCI runtime: Debian's package crun or runc; without it,
#                  crun as crun.sh builds it, which runs containers sooner
#   CACHE          where packages and kernels are kept between builds (target/guest)
#   OUT            where to put the image (target/dist/guest/<flavour>)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
umask 022
export LC_ALL=C

flavour=${1:?usage: image.sh distro|tuned}
agent=${AGENT:?AGENT is not set: the path of the static agent}
runtime=${GUEST_RUNTIME:-}
cache=${CACHE:-target/guest}
out=${OUT:-target/dist/guest/$flavour}

# What a guest needs of the kernel: its link, its filesystems, its network.  In
# Debian's kernel they are modules.
drivers=(virtio_mmio virtio_console virtiofs overlay virtio_net virtio_balloon erofs loop dm_verity
    bridge veth dummy macvlan tun)

say() { printf 'guest: %s\n' "$*"; }
die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

case $runtime in '' | crun | runc) ;; *) die "GUEST_RUNTIME=$runtime: must be crun, runc, or not set" ;; esac
[ "$(uname -m)" = x86_64 ] || die "the guest image is for x86_64; this machine is $(uname -m)"
for tool in lz4 cpio objcopy strip readelf od; do
    command -v "$tool" >/dev/null || die "$tool is missing: run tests/setup.sh"
done
[ -x "$agent" ] || die "$agent: no agent to put into the image"
agent=$(readlink -f "$agent")
if readelf -lW "$agent" | grep INTERP >/dev/null; then die "$agent: the agent must be static"; fi

mkdir -p "$out" "$cache"
work=$(mktemp -d "$cache/.image.XXXXXX")
work=$(cd "$work" && pwd)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$work/root
mkdir -p "$root"/{dev,etc/dunnage,proc,root,run,sys,tmp,usr/bin,usr/lib/modules,usr/lib64}
for link in bin lib lib64; do ln -s "usr/$link" "$root/$link"; done

# ------------------------------------------------------------------ kernel --

# number <file> <offset> <bytes>: the little-endian number there.
number() { od -An -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# unpack_kernel <bzImage> <vmlinux>: the setup header (Documentation/arch/x86/
# boot.rst) says where the compressed kernel is.
unpack_kernel() {
    local sectors start length # of the payload; its last four bytes are the size of what is unpacked
    sectors=$(number "$1" $((0x1f1)) 1)
    start=$(((sectors + 1) * 512 + $(number "$1" $((0x248)) 4)))
    length=$(number "$1" $((0x24c)) 4)
    head -c $((start + length - 4)) "$1" | tail -c $((length - 4)) >"$work/payload"
    case $(od -An -t x1 -N 4 "$work/payload" | tr -d ' ') in
        02214c18) lz4 -dcq "$work/payload" >"$2" ;;
        28b52ffd) zstd -dcq "$work/payload" >"$2" ;;
        *) die "$1: neither lz4 nor zstd" ;;
    esac
    rm "$work/payload"
}

# depends <module file>: what it must be loaded after.
depends() {
    objcopy -O binary -j .modinfo "$1" /dev/stdout | tr '\0' '\n' |
        sed -n 's/^depends=//p; s/^softdep=pre: //p' | tr -s ', ' '\n' | sed '/^$/d; s/-/_/g'
}

declare -A file_of taken
order=()
# take <module>: puts it and, before it, what it depends on, into the load order.
take() {
    local dependency file=${file_of[$1]-}
    if [ -n "${taken[$1]-}" ]; then return; fi
    taken[$1]=yes
    if [ -z "$file" ]; then
        tr '\0' '\n' <"$modules/modules.builtin.modinfo" | tr - _ |
            grep -xE "$1\.file=.*|[a-z0-9_]+\.alias=$1" >/dev/null || die "kernel $release has no module $1"
        return
    fi
    for dependency in $(depends "$file"); do take "$dependency"; done
    order+=("$file")
}

case $flavour in
    distro)
        package=
        for kept in "$cache"/linux-image-*-cloud-amd64; do
            if [ -e "$kept/VERSION" ]; then package=$(basename "$kept"); fi
        done
        if [ -z "$package" ]; then
            # It is empty but for the name of the newest.
            "$here/fetch.sh" "$cache" linux-image-cloud-amd64 >/dev/null
            package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *//p' | head -n 1)
        fi
        tree=$("$here/fetch.sh" "$cache" "$package")
        release=${package#linux-image-}
        kernel_version=$(cat "$tree/VERSION")
        modules=$tree/lib/modules/$release
        unpack_kernel "$tree/boot/vmlinuz-$release" "$work/vmlinux"
        while read -r file; do
            name=$(basename "$file" .ko)
            file_of[${name//-/_}]=$file
        done < <(find "$modules" -name '*.ko' | sort)
        for driver in "${drivers[@]}"; do
            taken=()
            order=()
            take "$driver"
            for file in "${order[@]}"; do
                # Without its signature, which takes a while to verify.
                objcopy --strip-debug "$file" "$root/usr/lib/modules/$(basename "$file")"
                echo "$driver /usr/lib/modules/$(basename "$file")" >>"$root/usr/lib/modules/load"
            done
        done
        command_line_devices=false
        zeroes_file_pages=false
        ;;
    tuned)
        tree=$cache/kernel
        [ -e "$tree/RELEASE" ] || die "there is no tuned kernel yet: make kernel"
        release=$(cat "$tree/RELEASE")
        kernel_version=$(cat "$tree/VERSION")
        cp "$tree/vmlinux" "$work/vmlinux"
        command_line_devices=true
        zeroes_file_pages=false
        if cmp -s "$tree/patch" "$here/kernel.patch"; then zeroes_file_pages=true; fi
        ;;
    *) die "no flavour $flavour: distro or tuned" ;;
esac
strip -s "$work/vmlinux"
readelf -nW "$work/vmlinux" 2>/dev/null | grep '^ *Xen ' >/dev/null || die "kernel $release has no PVH entry"

# ----------------------------------------------------------------- runtime --

program=$root/usr/bin/runc
found=()
# libraries <program>: copies what it links, and what that links.
libraries() {
    local name file
    for name in $(objdump -p "$1" | sed -n 's/^ *NEEDED *//p'); do
        if [ -e "$root/usr/lib/$name" ] || [ -e "$root/usr/lib64/$name" ]; then continue; fi
        file=$(find "${found[@]}" -path "*lib/x86_64-linux-gnu/$name" | head -n 1)
        [ -n "$file" ] || die "no package of $runtime has $name"
        case $name in
            ld-linux-*) install -m755 "$(readlink -f "$file")" "$root/usr/lib64/$name" ;;
            *) install -m644 "$(readlink -f "$file")" "$root/usr/lib/$name" ;;
        esac
        libraries "$file"
    done
}
case $runtime in
    '')
        "$here/crun.sh"
        # What it is made of, and for the licence its own package.
        mapfile -t licensed < <("$here/fetch.sh" "$cache" crun libseccomp-dev libcap-dev libyajl-dev)
        source_version=$(cat "$cache/crun-static/VERSION")
        install -m755 "$cache/crun-static/crun" "$program"
        ;;
    *)
        # With the packages of the libraries they link.
        packages=(libc6 libseccomp2)
        if [ "$runtime" = crun ]; then
            packages+=(libsystemd0 libcap2 libyajl2 libgcrypt20 libgpg-error0 liblzma5 libzstd1 liblz4-1)
        fi
        mapfile -t found < <("$here/fetch.sh" "$cache" "$runtime" "${packages[@]}")
        licensed=("${found[@]}")
        source_version=$(cat "${found[0]}/VERSION")
        install -m755 "$(find "${found[0]}" -path "*bin/$runtime" -type f)" "$program"
        libraries "$program"
        ;;
esac
loader=()
if [ "${#found[@]}" -gt 0 ]; then
    loader=("$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib")
fi
version=$("${loader[@]}" "$program" --version | sed -nE 's/^(crun|runc) version /\1 /p')
[ -n "$version" ] || die "$program does not run"

# ------------------------------------------------------------------- image --

install -m755 "$agent" "$root/init"
mkdir "$root/sbin"
ln -s ../init "$root/sbin/modprobe"
agent_version=$("$agent" --version) || die "$agent --version failed"
read -r _ agent_version agent_build <<<"$agent_version"
cat >"$root/etc/dunnage/guest.toml" <<END
# What this guest image is made of.
flavour = "$flavour"
# What uname -r says, and the package it is of.
kernel = "$release"
kernel_package = "$kernel_version"
# Whether it finds virtio-mmio devices by its command line, without ACPI.
command_line_devices = $command_line_devices
# Whether it zeroes the pages that a file server will write into (kernel.patch).
zeroes_file_pages = $zeroes_file_pages
agent = "$agent_version"
# Of which sources; the shim that was built of the same goes with it.
agent_build = "$agent_build"
runtime = "$version"
drivers = [$(printf '"%s", ' "${drivers[@]}" | sed 's/, $//')]
END
# copyrights <directory...>: what Debian says of the packages that are unpacked there.
copyrights() {
    local file
    while read -r file; do
        printf '\n%s\n\n' "==== $(basename "$(dirname "$file")")"
        cat "$file"
    done < <(find "$@" -path '*/usr/share/doc/*/copyright' | sort)
}
{
    printf 'The kernel is linux %s of Debian, and the runtime made of its %s %s. Their sources:\n' \
        "$kernel_version" "${runtime:-crun}" "$source_version"
    printf 'https://snapshot.debian.org/package/linux/%s/\n' "$kernel_version"
    printf 'https://snapshot.debian.org/package/%s/%s/\n' "${runtime:-crun}" "$source_version"
    copyrights "$(find "$cache" -maxdepth 1 \( -name 'linux-image-[0-9]*' -o -name 'linux-source-*' \) | sort | head -n 1)" \
        "${licensed[@]}"
} >"$work/copyright"
find "$root" -exec touch -hd @0 {} +
(cd "$root" && find . -mindepth 1 | sort | cpio --quiet -o -H newc -R 0:0 --reproducible) >"$work/initrd.cpio"
# The kernel reads lz4's legacy format only.
lz4 -lq -9 "$work/initrd.cpio" "$work/initrd"
# QEMU puts it where the machine's memory ends, from the beginning of a page, and the firmware of
# QEMU 10 has its ACPI tables at the end of the last page: only whole pages leave that alone.
truncate -s %4096 "$work/initrd"

size=$(stat -c %s "$work/initrd")
[ -n "$runtime" ] || [ "$size" -le 6000000 ] || die "the initrd has $size bytes, more than 6 MB"
for file in vmlinux initrd copyright; do
    chmod 644 "$work/$file"
    cmp -s "$work/$file" "$out/$file" || mv "$work/$file" "$out/$file"
done
cmp -s "$root/etc/dunnage/guest.toml" "$out/guest.toml" || install -m644 "$root/etc/dunnage/guest.toml" "$out/guest.toml"
say "$out: kernel $release, $version, initrd of $((size / 1024)) KiB"
