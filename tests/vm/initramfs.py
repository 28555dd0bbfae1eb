"""An initramfs: busybox, an init and kernel modules in the order of their dependencies, as a cpio archive (newc).

Format: Documentation/driver-api/early-userspace/buffer-format.rst. Modules are taken unpacked of a tree that `depmod`
has been run on; what the kernel has built in needs none.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
INIT = Path(__file__).with_name("init.sh")


def modules(tree: Path, names: Iterable[str]) -> list[Path]:
    """Files of these modules and of all that they need, each after what it needs; none for one that is built in.

    ``tree``: lib/modules/<release>. Raises LookupError with the name of a module that this kernel lacks.
    """
    needs: dict[str, list[str]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {_name(path): path for path in needs}
    built_in = {_name(path) for path in (tree / "modules.builtin").read_text().splitlines()}
    found: dict[str, None] = {}
    for name in names:
        if name in built_in:
            continue
        if name not in by_name:
            raise LookupError(f"this kernel has no module {name}")
        path = by_name[name]
        found |= dict.fromkeys([*reversed(needs[path]), path])  # depmod lists what is needed first last
    return [tree / path for path in found]


def _name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def initramfs(files: Iterable[Path], command: str) -> bytes:
    """The archive. ``files``: modules in the order in which they are loaded; ``command``: a script of the shell."""
    loaded = list(files)
    contents = {"bin/busybox": BUSYBOX.read_bytes(), "init": INIT.read_bytes(), "command": command.encode()}
    contents |= {f"modules/{path.name}": path.read_bytes() for path in loaded}
    contents["modules/order"] = "".join(f"{path.name}\n" for path in loaded).encode()
    return b"".join(_entries(contents))


def _entries(contents: Mapping[str, bytes]) -> Iterator[bytes]:
    folders = sorted({str(parent) for name in contents for parent in Path(name).parents} - {"."})
    for number, name in enumerate((*folders, "dev", *contents), start=1):
        content = contents.get(name)
        mode = stat.S_IFDIR | 0o755 if content is None else stat.S_IFREG | 0o755
        yield _entry(number, name, mode, content or b"")
    yield _entry(0, "TRAILER!!!", 0, b"")


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    words = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % word for word in words) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
