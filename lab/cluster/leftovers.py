"""What of a lab is on this machine, found by looking: namespaces, processes, mounts, pins, cgroups, files, links,
routes.

Owns the ways of knowing whose a thing is; memory (the ledger) is only one of them, because a launcher may be killed
at any moment. Reads /proc, /sys and /run and changes nothing. Promises never to name another lab's things: a
process is ours by the marker in its environment, by the ledger with its start time, or by being in one of our
network namespaces; mounts, pins and pods' namespaces lie in our folders (containerd is told so); container ids come
from our containerd's folders.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from lab.cluster import ledger, namespaces
from lab.cluster.node import DEVICE_PLUGINS, HOST_FOLDERS
from lab.cluster.pinned import BpfObject, behind, exists
from lab.paths import MARKER, Paths
from lab.topology import MANAGEMENT4, SEGMENTS4, SEGMENTS6, SERVICES4, SERVICES6, TOR_LINKS4, TOR_LINKS6

PROC = Path("/proc")
RANGES = (
    SEGMENTS4,
    SEGMENTS6,
    MANAGEMENT4,
    TOR_LINKS4,
    TOR_LINKS6,
    SERVICES4,
    SERVICES6,
    IPv4Network("10.244.0.0/16"),
    IPv6Network("fd00:10:244::/56"),
)
"""Addresses inside labs (the last two: the default pools of `manifests/`); no route of the machine leads there."""
_CNI_RESULTS = Path("/var/lib/cni/results")
_POD_LOG_LINKS = Path("/var/log/containers")
_SHIM_SOCKETS = Path("/run/containerd/s")
SHARED_FOLDERS = (
    _CNI_RESULTS,
    _POD_LOG_LINKS,
    _SHIM_SOCKETS,
    Path("/var/lib/cni"),
    Path("/run/containerd"),
    DEVICE_PLUGINS,
    Path("/var/lib/kubelet"),
    *(folder for folder in HOST_FOLDERS if folder != namespaces.NETNS),
    Path("/etc/cni"),
    Path("/opt/cni"),
)
"""Folders at fixed places that libcni and shims make and share, and over which each node has a mount of its own;
`down` removes those that it leaves empty and over which nobody has one."""
_MAXIMUM_ENVIRONMENT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """One thing of a lab. `kind`: namespace, process, mount, pin, map, prog, cgroup, file, link, route."""

    kind: str
    what: str


def unescape(field: str) -> str:
    r"""A mount point as /proc writes it, where a space is \040 (proc(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def mounts_below(mounts: str, folders: Iterable[Path]) -> list[str]:
    """Mount points at or below `folders`, the deepest and newest first, from the text of /proc/self/mounts."""
    roots = [str(folder) for folder in folders]
    found = [unescape(line.split()[1]) for line in mounts.splitlines() if len(line.split()) > 1]
    return [point for point in reversed(found) if any(point == root or point.startswith(root + "/") for root in roots)]


def lab_mounts(where: Paths) -> list[str]:
    """Mount points of the lab: in its folders, and where a kubelet's own mount became the machine's."""
    escaped = DEVICE_PLUGINS.is_dir() and any(map(DEVICE_PLUGINS.samefile, where.state.glob("*/device-plugins")))
    outside = [str(DEVICE_PLUGINS)] if escaped else []
    return outside + mounts_below((PROC / "self/mounts").read_text(), (where.state, where.run))


def mount_points() -> set[str]:
    """Mount points of every mount namespace of the machine: a folder under one of them may be in use unseen."""
    seen, found = set[int](), set[str]()
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or (namespace := _inode(entry / "ns/mnt")) in seen | {0}:
            continue
        try:
            lines = (entry / "mounts").read_text().splitlines()
        except OSError:  # it has ended; another process may tell of its namespace
            continue
        seen.add(namespace)
        found |= {unescape(line.split()[1]) for line in lines if len(line.split()) > 1}
    return found


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def network_namespaces(where: Paths) -> set[int]:
    """Inodes (on nsfs) of the lab's network namespaces: its own and its pods'."""
    named = {_inode(namespaces.NETNS / name) for name in namespaces.existing(where.lab)}
    pods = {_inode(Path(point)) for point in lab_mounts(where) if "/netns/" in point}
    return (named | pods) - {0, _inode(PROC / "self/ns/net")}


def _own_family() -> set[int]:
    """Our own pid and those of our ancestors: never to be ended, even when run from inside a lab."""
    family, pid = set(), os.getpid()
    while pid > 1 and pid not in family:
        family.add(pid)
        try:
            pid = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            break
    return family


def _marked(pid: int, marker: bytes) -> bool:
    try:
        with (PROC / str(pid) / "environ").open("rb") as file:
            return marker in file.read(_MAXIMUM_ENVIRONMENT).split(b"\0")
    except OSError:
        return False


def lab_processes(where: Paths) -> dict[int, str]:
    """Live processes of the lab: pid → short name."""
    marker = f"{MARKER}={where.lab}".encode()
    inodes = network_namespaces(where)
    known = {entry.pid: entry.name for entry in ledger.alive(ledger.read(where.ledger))}
    family = _own_family()
    found = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        ours = pid in known or _inode(entry / "ns/net") in inodes or _marked(pid, marker)
        if ours and pid not in family and ledger.start_time_of(pid):
            found[pid] = known.get(pid) or _command_name(entry)
    return found


def _command_name(entry: Path) -> str:
    try:
        return (entry / "comm").read_text().strip()
    except OSError:
        return "?"


def pins(where: Paths) -> list[Path]:
    """Everything pinned in the nodes' bpffs mounts."""
    return [path for point in lab_mounts(where) if point.endswith("/bpf") for path in _files_below(Path(point))]


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder):
        yield from (Path(parent) / name for name in files)


def containers(where: Paths) -> set[str]:
    """Ids of every container and sandbox that the lab's containerds know, by the folders they keep for them."""
    patterns = (
        "*/containerd/state/io.containerd.runtime.v2.task/k8s.io/*",
        "*/containerd/root/io.containerd.grpc.v1.cri/sandboxes/*",
        "*/containerd/root/io.containerd.grpc.v1.cri/containers/*",
        "*/containerd/state/io.containerd.grpc.v1.cri/sandboxes/*",
        "*/containerd/state/io.containerd.grpc.v1.cri/containers/*",
    )
    return {path.name for pattern in patterns for path in where.state.glob(pattern)}


def cgroup_roots() -> list[Path]:
    """The cgroup above all containers of all containerds, in every hierarchy."""
    return [root for root in (Path("/sys/fs/cgroup/k8s.io"), *Path("/sys/fs/cgroup").glob("*/k8s.io")) if root.is_dir()]


def cgroups(ids: Iterable[str]) -> list[Path]:
    """Cgroup folders of containers, in every hierarchy, the deepest first."""
    wanted = set(ids)
    tops = [root / name for root in cgroup_roots() for name in os.listdir(root) if name in wanted]
    return sorted((Path(parent) for top in tops for parent, _, _ in os.walk(top)), reverse=True)


def outside_files(where: Paths, ids: Iterable[str]) -> list[Path]:
    """Files that libcni, the kubelet and the shims keep at fixed places outside the lab's folders."""
    wanted = set(ids)
    found = []
    if _CNI_RESULTS.is_dir():
        found += [path for path in _CNI_RESULTS.iterdir() if any(name in path.name for name in wanted)]
    if _POD_LOG_LINKS.is_dir():
        found += [path for path in _POD_LOG_LINKS.iterdir() if _points_into(path, where.state)]
    for address in where.run.parent.joinpath(where.lab).glob("*/containerd.sock"):
        found += [path for name in wanted if (path := shim_socket(address, name)).exists()]
    return found


def _points_into(path: Path, folder: Path) -> bool:
    return path.is_symlink() and str(path.readlink()).startswith(f"{folder}/")


def shim_socket(containerd: Path, container: str) -> Path:
    """Where a shim of containerd 1.6 listens (runtime/v2/shim/util_unix.go, SocketAddress)."""
    return _SHIM_SOCKETS / sha256(f"{containerd}/k8s.io/{container}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What must be asked while the lab's folders are still there, to be looked for when they are not."""

    containers: frozenset[str] = frozenset()
    objects: frozenset[BpfObject] = frozenset()
    routes: frozenset[str] | None = None
    """The machine's own routes before the lab; None when nobody wrote them down."""


def remember(where: Paths, before: Known | None = None) -> Known:
    """What is known now, and what was known `before`."""
    known = before or Known()
    try:
        routes = frozenset(where.machine_routes.read_text().splitlines())
    except OSError:
        routes = None
    return Known(
        containers=known.containers | containers(where),
        objects=known.objects | behind(pins(where)),
        routes=routes if routes is not None else known.routes,
    )


def machine_routes() -> list[str]:
    """The machine's own routes, both families, as `ip` prints them."""
    return [line.strip() for family in ("-4", "-6") for line in namespaces.run(["ip", family, "route"]).splitlines()]


def into_labs(route: str) -> bool:
    """Whether a route of the machine leads to an address that labs use."""
    try:
        network = ip_network(route.split(maxsplit=1)[0])
    except (ValueError, IndexError):  # default, unreachable…
        return False
    return any(network.version == ours.version and network.overlaps(ours) for ours in RANGES)


def _machine_network(where: Paths, known: Known) -> Iterator[Leftover]:
    """Links of the machine's own namespace that lead into the lab's, and routes that it did not have before."""
    names = set(namespaces.existing(where.lab))
    for line in namespaces.run(["ip", "-o", "link"]).splitlines() if names else ():
        if names.intersection(line.split()):
            yield Leftover(kind="link", what=line.split(":")[1].strip())
    if known.routes is not None:
        for route in machine_routes():
            if route not in known.routes and into_labs(route):
                yield Leftover(kind="route", what=route)


def find(where: Paths, known: Known | None = None) -> list[Leftover]:
    """Everything of the lab that is on the machine now, by looking and by what was `known` earlier."""
    known = remember(where, known)
    found = [Leftover(kind="process", what=f"{pid} {name}") for pid, name in sorted(lab_processes(where).items())]
    found += [Leftover(kind="pin", what=str(path)) for path in pins(where)]
    found += [Leftover(kind=one.kind, what=f"{one.number} {one.pin}") for one in sorted(known.objects) if exists(one)]
    found += [Leftover(kind="mount", what=point) for point in lab_mounts(where)]
    found += [Leftover(kind="namespace", what=name) for name in namespaces.existing(where.lab)]
    found += [Leftover(kind="cgroup", what=str(path)) for path in cgroups(known.containers)]
    found += [Leftover(kind="file", what=str(path)) for path in outside_files(where, known.containers)]
    found += [Leftover(kind="file", what=str(path)) for path in (where.state, where.run) if path.exists()]
    found += list(_machine_network(where, known))
    return found
