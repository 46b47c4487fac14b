#!/usr/bin/env python3
"""Writes an image as an OCI archive, without a daemon: one layer, the same bytes for the same input.

Files belong to root and have no time; the layer is not compressed, so that no compressor's version shows in the digest.
Prints one JSON line: name, digest of the manifest (what `repository@sha256:...` means), bytes of the archive and of the layer.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import stat
import tarfile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def entry(name, kind, mode, content=b"", link=""):
    """One member of the layer; everything but these is the same for all."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, len(content)
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info, content


def folder_entries(root):
    """What lies below a folder, as it would be found from there: folders, files and links, nothing else."""
    for path in sorted(root.rglob("*")):
        name, mode = str(path.relative_to(root)), stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            yield entry(name, tarfile.SYMTYPE, 0o777, link=os.readlink(path))
        elif path.is_dir():
            yield entry(name, tarfile.DIRTYPE, mode)
        elif path.is_file():
            yield entry(name, tarfile.REGTYPE, mode, path.read_bytes())


def file_entries(words):
    """SOURCE=/PLACE[:MODE], with the folders above it."""
    seen = set()
    for word in words:
        source, _, place = word.partition("=")
        place, _, mode = place.partition(":")
        place = pathlib.PurePosixPath(place.lstrip("/"))
        for above in reversed(place.parents[:-1]):
            if above not in seen:
                seen.add(above)
                yield entry(str(above), tarfile.DIRTYPE, 0o755)
        yield entry(str(place), tarfile.REGTYPE, int(mode or "644", 8), pathlib.Path(source).read_bytes())


def text_entries(user):
    """A user of the image needs a name for nothing but messages."""
    number = user.partition(":")[0]
    if number and number != "0":
        passwd = f"root:x:0:0::/:/none\nsidegate:x:{number}:{number}::/:/none\n"
        yield entry("etc/passwd", tarfile.REGTYPE, 0o644, passwd.encode())
        yield entry("etc/group", tarfile.REGTYPE, 0o644, f"root:x:0:\nsidegate:x:{number}:\n".encode())


def layer(arguments):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        entries = list(folder_entries(pathlib.Path(arguments.root))) if arguments.root else []
        entries += file_entries(arguments.file)
        known = {info.name for info, _ in entries}
        if "etc" not in known:
            entries.insert(0, entry("etc", tarfile.DIRTYPE, 0o755))
        entries += [made for made in text_entries(arguments.user) if made[0].name not in known]
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def encoded(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="what is written")
    parser.add_argument("--name", required=True, help="REPOSITORY:TAG")
    parser.add_argument("--root", help="folder whose content the image has")
    parser.add_argument("--file", action="append", default=[], metavar="SOURCE=/PLACE[:MODE]")
    parser.add_argument("--user", default="", metavar="UID[:GID]")
    parser.add_argument("--entrypoint", action="append", default=[], metavar="WORD")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()

    blobs = {}

    def blob(kind, content):
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    content = layer(arguments)
    the_layer = blob(LAYER, content)
    running = {"Env": arguments.env or ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    if arguments.entrypoint:
        running["Entrypoint"] = arguments.entrypoint
    if arguments.user:
        running["User"] = arguments.user
    if arguments.label:
        running["Labels"] = dict(label.split("=", 1) for label in arguments.label)
    config = {
        "architecture": "amd64", "os": "linux", "config": running,
        "rootfs": {"type": "layers", "diff_ids": [the_layer["digest"]]},
        "history": [{"created_by": "images/oci.py"}],
    }
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "config": blob(CONFIG, encoded(config)), "layers": [the_layer],
    }
    described = blob(MANIFEST, encoded(manifest))
    repository, _, tag = arguments.name.rpartition(":")
    if not repository or "/" in tag:
        parser.error("--name is REPOSITORY:TAG")
    listed = {**described, "annotations": {
        "io.containerd.image.name": arguments.name, "org.opencontainers.image.ref.name": tag,
    }}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]}
    files = {
        "oci-layout": encoded({"imageLayoutVersion": "1.0.0"}), "index.json": encoded(index),
        **{f"blobs/sha256/{digest}": blobs[digest] for digest in sorted(blobs)},
    }
    fresh = pathlib.Path(arguments.archive + ".new")
    with tarfile.open(fresh, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            info, content = entry(name, tarfile.REGTYPE, 0o644, content)
            archive.addfile(info, io.BytesIO(content))
    size = fresh.stat().st_size
    fresh.rename(arguments.archive)
    print(json.dumps({"name": arguments.name, "digest": described["digest"], "bytes": size, "layer": the_layer["size"]}))


if __name__ == "__main__":
    main()
