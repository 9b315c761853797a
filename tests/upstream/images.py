#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""images.py <busybox.tar> <registry or ""> <repository:tag>...

Makes stand-ins, out of one OCI image of busybox, for the images that containerd's
integration/client pulls, and puts them into the registry (a URL), if there is one.
Prints the name and digest of each.  The same busybox.tar gives the same images, to
the byte.  They are all alike: what one test wants of its image is in every one.
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile
import urllib.request

OCI = "application/vnd.oci.image."
USERS = {"root": 0, "daemon": 1, "bin": 2, "sys": 3, "sync": 4, "mail": 8, "www-data": 33, "backup": 34,
         "operator": 37, "nobody": 65534}
GROUPS = {"root": 0, "daemon": 1, "bin": 2, "sys": 3, "adm": 4, "tty": 5, "disk": 6, "lp": 7, "mail": 8, "kmem": 9,
          "wheel": 10, "www-data": 33, "backup": 34, "operator": 37, "nobody": 65534, "nogroup": 65534}
OTHER_GROUP = {"sync": 100}  # Of whom the group has another number.
# A tar archive's names, contents (None is a directory) and modes.
TOOLS = [
    ("etc/passwd", "".join(f"{u}:x:{n}:{OTHER_GROUP.get(u, n)}:{u}:/:/bin/sh\n" for u, n in USERS.items()), 0o644),
    ("etc/group", "".join(f"{g}:x:{n}:\n" for g, n in GROUPS.items()), 0o644),
    ("bin/bash", '#!/bin/sh\nexec sh "$@"\n', 0o755),
    ("bin/passwd", "", 0o4755),  # A set-user-ID program is wanted.
    # As a container's first process Debian's nc does not die of SIGTERM; that of the real image does.
    ("bin/nc", '#!/bin/sh\ntrap "exit 143" TERM\nbusybox nc "$@" &\nwait $!\n', 0o755),
]
# A regression test has a layer with files, and one above it that takes them away.
TO_DELETE = [("file-to-delete", "", 0o644), ("dir-to-delete", None, 0o755), ("dir-to-delete/file", "", 0o644)]
WHITEOUTS = [(".wh.file-to-delete", "", 0o644), (".wh.dir-to-delete", "", 0o644)]
PLATFORMS = ["amd64", "arm/v7", "arm64/v8", "ppc64le", "s390x"]  # Of the programs all are the same.

registry = sys.argv[2]


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def request(method, url, data=None, kind="application/octet-stream"):
    url = url if "://" in url else registry + url
    return urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": kind}, method=method))


def put_blob(repository, data):
    place = request("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"]
    request("PUT", place + ("&" if "?" in place else "?") + "digest=" + digest(data), data)


def put_manifest(repository, name, data, kind):
    request("PUT", f"/v2/{repository}/manifests/{name}", data, kind)


def layer(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, mode in files:
            info = tarfile.TarInfo(name)
            info.mode = mode
            if content is None:
                info.type = tarfile.DIRTYPE
            info.size = len(content or "")
            tar.addfile(info, io.BytesIO((content or "").encode()))
    return gzip.compress(out.getvalue(), mtime=0), digest(out.getvalue())


def descriptor(kind, data, **more):
    return {"mediaType": OCI + kind, "digest": digest(data), "size": len(data), **more}


def put_image(name, base, config):
    repository, tag = name.rsplit(":", 1)
    blobs, manifests = {}, []
    for platform in PLATFORMS:
        marker = [("etc/image", f"{repository} {platform}\n", 0o644)]  # No two images have one digest.
        layers = [base, *map(layer, [TOOLS, TO_DELETE, WHITEOUTS, marker])]
        platform = dict(zip(("architecture", "variant"), platform.split("/")), os="linux")
        own = json.dumps({**config, **platform, "rootfs": {"type": "layers", "diff_ids": [d for _, d in layers]},
                          "history": [{"created": "1970-01-01T00:00:00Z"}] * len(layers)}).encode()
        blobs |= {digest(data): data for data in [own] + [data for data, _ in layers]}
        manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
                               "config": descriptor("config.v1+json", own),
                               "layers": [descriptor("layer.v1.tar+gzip", data) for data, _ in layers]}).encode()
        manifests.append((manifest, platform))
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [
        descriptor("manifest.v1+json", data, platform=platform) for data, platform in manifests]}).encode()
    if registry:
        for data in blobs.values():
            put_blob(repository, data)
        for data, _ in manifests:
            put_manifest(repository, digest(data), data, OCI + "manifest.v1+json")
        put_manifest(repository, tag, index, OCI + "index.v1+json")
    print(name, digest(index))


with tarfile.open(sys.argv[1]) as tar:
    def read(name):
        return tar.extractfile(name).read()

    def blob(of):
        return read("blobs/" + of["digest"].replace(":", "/"))

    manifest = json.loads(blob(json.loads(read("index.json"))["manifests"][0]))
    config = json.loads(blob(manifest["config"]))
    base = blob(manifest["layers"][0]), config["rootfs"]["diff_ids"][0]

for name in sys.argv[3:]:
    put_image(name, base, config)
