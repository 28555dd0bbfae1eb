"""``python -m services.dataplane.remove HOST``: takes away all that this service made on a node, for an uninstall.

Run as root in the node's network namespace when the agent has ended; ``HOST`` is where the node's root is mounted. In
this order: programs off their hooks and every pin, pods' links (their routes and filters go along), the nftables table,
files. Only what bears our names and marks goes; a second run finds nothing to do. Last it looks again: exit code 1, and
what is left, when anything is.

Pods that still run lose their network by this.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from linux import bpf, clsact, rtnl
from linux.netlink import Netlink
from services.dataplane.cni.conf import NAME
from services.dataplane.core.endpoint.links import GROUP_DELETING, GROUP_LIVE
from services.dataplane.egress.masquerade import delete_table, listed_table

PINS = Path("sys/fs/bpf/airmesh")
LINKS = "links"
"""Folder of a version's pins, below which each interface has its programs' (a map's name may end as theirs do)."""
CONF, PROGRAMS = Path("etc/cni/net.d"), Path("opt/cni/bin")
EXECUTABLE = "airmesh-cni"
FOLDERS = (Path("var/lib/airmesh"), Path("var/lib/airmesh-nats"), Path("run/airmesh"), Path("etc/airmesh"))
"""State, the bus' store, sockets, seeds."""


def files(host: Path) -> Iterator[Path]:
    """Files and folders of ours below ``host``, those that an interrupted write left too."""
    for folder, name in ((CONF, NAME), (PROGRAMS, EXECUTABLE)):
        yield from (path for path in (host / folder).glob(f"*{name}*") if path.name.lstrip(".").startswith(name))
    yield from (host / folder for folder in FOLDERS if (host / folder).exists())


def remove_pins(root: Path) -> None:
    """Detaches every link pinned below ``root``, takes filters off uplinks, removes all pins. Raises OSError."""
    for path in sorted(root.rglob("*"), key=lambda one: len(one.parts), reverse=True):
        if path.is_dir():
            path.rmdir()
            continue
        descriptor = bpf.pinned(path)
        try:
            with suppress(bpf.BpfError):  # a map or a program is no link
                bpf.link_detach(descriptor)
        finally:
            os.close(descriptor)
        if path.relative_to(root).parts[1:2] == (LINKS,):
            _remove_filter(path.name)
        path.unlink()
    if root.is_dir():
        root.rmdir()


def _remove_filter(pin: str) -> None:
    """Of a pin that is named for its hook and interface (kernels without tcx)."""
    ifindex = pin.rpartition("-")[2]
    if ifindex.isdecimal():
        for parent in clsact.Parent:
            clsact.remove_filter(int(ifindex), parent)


def remove_links() -> None:
    """Pods' links of this network namespace. Raises NetlinkRefused."""
    with Netlink() as rtnetlink:
        gone = (errno.ENODEV, errno.ENOENT)
        rtnetlink.run([rtnl.delete_group(group, tolerated=gone) for group in (GROUP_LIVE, GROUP_DELETING)])


def remove_path(path: Path) -> None:
    """A file, or a folder and all in it. A folder that is a mount (a disk of its own) is emptied and stays.
    Raises OSError.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    for inside in list(path.iterdir()):
        remove_path(inside)
    try:
        path.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def remove(host: Path) -> list[str]:
    """Everything; what is left all the same. Raises OSError."""
    remove_pins(host / PINS)
    remove_links()
    delete_table()
    for path in list(files(host)):
        remove_path(path)
    left = [str(path) for path in files(host) if not _is_empty(path)]
    left += [str(host / PINS)] if (host / PINS).exists() else []
    return [*left, "table inet airmesh"] if listed_table() else left


def main(arguments: list[str]) -> int:
    """The exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_absolute():
        print(f"dataplane.remove: {arguments}: give the folder where the node's root is", file=sys.stderr)  # noqa: T201
        return 1
    try:
        left = remove(Path(arguments[0]))
    except OSError as error:
        left = [str(error)]
    if left:
        print(f"dataplane.remove: left: {', '.join(left)}; run the uninstall again", file=sys.stderr)  # noqa: T201
        return 1
    print("dataplane.remove: nothing of airmesh is left on this node")  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
