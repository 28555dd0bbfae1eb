"""The images of a lab, made of this machine's own programs and the products of `build.py`: no registry is asked.

Owns the cache `<cache>/images/<name>-<key>.tar`. `pause` and `coredns` hold one static program; `shop` is a small
userland (sh, bash, curl, dig, getent, nc, wget and busybox's applets) plus the static server. Keyed by the content
of every file. Quirks: busybox's shell prefers its own applets whatever PATH says, so `sh` is dash; busybox's nc
knows no -t, so `nc` is OpenBSD's; busybox-static's wget crashes in name service calls, so `wget` is Debian's.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.images.archive import File, Image, Link, pack
from lab.images.build import key
from lab.topology import LabError

PAUSE_IMAGE = "registry.k8s.io/pause:3.10.2"
COREDNS_IMAGE = "lab.local/coredns:1"
SHOP_IMAGE = "lab.local/shop:1"
PROGRAMS = {
    "bash": ("bash", "bash"),
    "curl": ("curl", "curl"),
    "dash": ("dash", "dash"),
    "dig": ("dig", "bind9-dnsutils"),
    "getent": ("getent", "libc-bin"),
    "nc": ("nc.openbsd", "netcat-openbsd"),
    "wget": ("wget", "wget"),
}
"""Name in the image → (program of this machine, the package that has it)."""
_ETC = {
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def libraries(ldd: str) -> list[str]:
    """Absolute paths in what `ldd` prints: the loader and every library found."""
    return [word for line in ldd.splitlines() for word in line.split() if word.startswith("/")]


def _read(path: str, mode: int = 0o755) -> File:
    return File(body=Path(path).read_bytes(), mode=mode)


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if not found:
        raise LabError(f"program {name} is not on this machine: apt-get install {package}")
    return os.path.realpath(found)


def _ldd(program: str) -> list[str]:
    asked = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=20, check=False)
    return libraries(asked.stdout)


def userland(more: Mapping[str, tuple[str, str]] | None = None) -> dict[str, File | Link]:
    """The tree of sh, busybox, the programs above and `more` with their libraries. Raises `LabError` when one
    is missing.
    """
    busybox = _program("busybox", "busybox-static")
    tree: dict[str, File | Link] = {"bin/busybox": _read(busybox)}
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, timeout=20, check=True).stdout.split()
    tree.update({f"bin/{applet}": Link(target="busybox") for applet in applets if applet != "busybox"})
    for name, (program, package) in {**PROGRAMS, **(more or {})}.items():
        path = _program(program, package)
        tree[f"bin/{name}"] = _read(path)
        for library in _ldd(path):
            tree[library.lstrip("/")] = _read(library)
    tree["bin/sh"] = Link(target="dash")
    tree.update({path: File(body=text.encode()) for path, text in _ETC.items()})
    tree.update({path: Link(target="/proc/mounts") for path in ("etc/mtab",)})
    return tree


def _one(names: tuple[str, ...], path: str, program: Path, *arguments: str) -> Image:
    return Image(names=names, entrypoint=(f"/{path}", *arguments), tree={path: _read(str(program))})


def images(products: Mapping[str, Path]) -> Iterable[tuple[str, Image]]:
    """(short name, image) of each image, in the order in which a node wants them."""
    yield "pause", _one((PAUSE_IMAGE,), "pause", products["pause"])
    yield "coredns", _one((COREDNS_IMAGE,), "coredns", products["coredns"])
    shop = Image(
        names=(SHOP_IMAGE,),
        entrypoint=("/bin/shop", "serve"),
        tree={**userland(), "bin/shop": _read(str(products["shop"]))},
    )
    yield "shop", shop


def _key(image: Image) -> str:
    parts = {
        f"tree/{path}": what.body if isinstance(what, File) else what.target.encode()
        for path, what in image.tree.items()
    }
    return key({**parts, "names": repr((image.names, image.entrypoint, image.command, image.user)).encode()})


def build(products: Mapping[str, Path], cache: Path) -> dict[str, Path]:
    """Archives of the lab's own images by short name, written where the cache lacks them."""
    return write(dict(images(products)), cache)


def write(wanted: Mapping[str, Image], cache: Path) -> dict[str, Path]:
    """Archives by short name, written where the cache lacks them."""
    folder = cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, image in wanted.items():
        path = folder / f"{name}-{_key(image)}.tar"
        if not path.exists():
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            draft.write_bytes(pack(image))
            draft.replace(path)
        made[name] = path
    return made
