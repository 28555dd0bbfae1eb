"""Writes container images as archives that `ctr images import` takes (the `docker save` layout), without a
container engine.

Owns the format: one layer, a config and a manifest (https://github.com/moby/docker-image-spec, image archive 1.2).
Pure: content in, bytes out; the same content gives the same bytes, so an archive can be cached under a key of its
content. Everything in a layer belongs to root and has one fixed time. Refuses paths that are absolute or climb out.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CREATED = "2026-01-01T00:00:00Z"
_MTIME = 1767225600


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A regular file of the layer."""

    body: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """`names`: full references (registry/path:tag). `tree`: path without a leading slash → what lies there."""

    names: tuple[str, ...]
    entrypoint: tuple[str, ...]
    tree: Mapping[str, File | Link]
    user: str = ""
    command: tuple[str, ...] = ()
    """What the entrypoint is given where a container names no arguments of its own."""


def _member(path: str) -> tarfile.TarInfo:
    if path.startswith("/") or ".." in path.split("/") or not path:
        raise ValueError(f"image path {path!r}: give one below the root, without '..'")
    member = tarfile.TarInfo(path)
    member.mtime = _MTIME
    return member


def _folders(paths: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for path in paths:
        parts = path.split("/")[:-1]
        found.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return sorted(found)


def layer(tree: Mapping[str, File | Link]) -> bytes:
    """The layer's tar: folders first, then files in the order of their names. Raises `ValueError` for a bad path."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _folders(list(tree)):
            member = _member(path)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for path in sorted(tree):
            member, what = _member(path), tree[path]
            if isinstance(what, Link):
                member.type, member.linkname = tarfile.SYMTYPE, what.target
                tar.addfile(member)
            else:
                member.size, member.mode = len(what.body), what.mode
                tar.addfile(member, io.BytesIO(what.body))
    return out.getvalue()


def pack(image: Image) -> bytes:
    """The whole archive."""
    body = layer(image.tree)
    layer_id = hashlib.sha256(body).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": _CREATED,
            "config": {
                "Entrypoint": list(image.entrypoint),
                "Cmd": list(image.command),
                "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin:/"],
                "User": image.user,
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
            "history": [{"created": _CREATED}],
        },
        sort_keys=True,
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": list(image.names), "Layers": [f"{layer_id}/layer.tar"]}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        listing = json.dumps(manifest).encode()
        for path, content in ((name, config), (f"{layer_id}/layer.tar", body), ("manifest.json", listing)):
            member = _member(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()
