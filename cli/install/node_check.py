"""What airmesh asks of a node: judged from what the kernel offers and what lies in its folders. Pure but for `look`.

Each finding is one sentence that names what is missing and what brings it. Run on the node itself, in its own mount and
network namespace: `airmesh check --node`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.install.findings import Finding, note, well, wrong
from linux import features
from linux.features import Features

KERNEL = (5, 10)
"""Programs redirect between network namespaces (bpf_redirect_peer), and links of cgroup programs are there."""
TCX_KERNEL = (6, 6)
NEEDED = ("NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE")
"""What deploy/kubernetes gives the dataplane; here of whoever runs the check."""
OURS = "10-airmesh.conflist"
"""The configuration that the dataplane writes; the runtime takes the first by name."""
BPFFS = "/sys/fs/bpf"
CGROUPS = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """What lies in the runtime's folders."""

    cni_conf: Path = Path("/etc/cni/net.d")
    cni_bin: Path = Path("/opt/cni/bin")
    configurations: tuple[str, ...] = ()
    """Files in `cni_conf`, sorted as the runtime sorts them."""
    writable: tuple[Path, ...] = ()
    executable: bool = False
    """`airmesh-cni` is in `cni_bin`."""


def judge(seen: Features, folders: Folders) -> Iterator[Finding]:
    """Every requirement, met or not."""
    yield _kernel(seen)
    yield from _capabilities(seen)
    yield _bpf(seen)
    yield _mounted(seen, BPFFS, "bpf", "bpffs", f"mount -t bpf bpffs {BPFFS} (systemd does it at boot)")
    yield _cgroup2(seen)
    yield _attachment(seen)
    yield _wireguard(seen)
    yield from _cni(folders)


def _kernel(seen: Features) -> Finding:
    if seen.kernel < KERNEL:
        least = ".".join(map(str, KERNEL))
        return wrong(
            "kernel", f"Linux {seen.release} is too old", f"boot Linux {least} or newer (6.6 or newer has tcx)"
        )
    return well("kernel", f"Linux {seen.release}")


def _capabilities(seen: Features) -> Iterator[Finding]:
    missing = [name for name in NEEDED if name not in seen.capabilities]
    if missing:
        yield wrong(
            "capabilities",
            f"this process lacks {', '.join(missing)}",
            "run the check as root on the node, not in a container that takes these away",
        )
    else:
        yield well("capabilities", ", ".join(NEEDED))


def _bpf(seen: Features) -> Finding:
    if seen.bpf:
        remedy = "allow bpf(2): CONFIG_BPF_SYSCALL, no seccomp profile or lockdown that forbids it"
        return wrong("bpf(2)", f"no map can be made: {seen.bpf}", remedy)
    return well("bpf(2)", "maps can be made")


def _mounted(seen: Features, point: str, kind: str, what: str, remedy: str) -> Finding:
    if any(mount.point == point and mount.kind == kind for mount in seen.mounts):
        return well(what, f"mounted at {point}")
    return wrong(what, f"{what} is not mounted at {point}: pins of programs and maps would be lost", remedy)


def _cgroup2(seen: Features) -> Finding:
    where = next((mount.point for mount in seen.mounts if mount.kind == "cgroup2"), "")
    if where == CGROUPS:
        return well("cgroup v2", f"mounted at {CGROUPS}")
    if where:
        return note(
            "cgroup v2", f"mounted at {where}, beside version 1", f"set AIRMESH_CGROUP={where}, and mount it there"
        )
    remedy = "boot with systemd.unified_cgroup_hierarchy=1"
    return wrong("cgroup v2", f"it is mounted nowhere: Services need it at {CGROUPS}", remedy)


def _attachment(seen: Features) -> Finding:
    if not seen.clsact:
        if seen.tcx:
            return note("tcx, clsact", f"clsact; no tcx before Linux {'.'.join(map(str, TCX_KERNEL))} ({seen.tcx})")
        return well("tcx, clsact", "both")
    remedy = "load the modules sch_ingress and cls_bpf (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)"
    if seen.tcx:
        return wrong("tcx, clsact", f"neither: tcx: {seen.tcx}; clsact: {seen.clsact}", f"{remedy}, or boot Linux 6.6")
    return note("tcx, clsact", f"tcx alone; clsact: {seen.clsact}", f"{remedy}, or set AIRMESH_TCX=true")


def _wireguard(seen: Features) -> Finding:
    if not seen.wireguard:
        return well("WireGuard", "the kernel's own")
    remedy = "load the module wireguard (CONFIG_WIREGUARD) before encryption is asked for"
    if seen.tun:
        return note(
            "WireGuard",
            f"wireguard-go in the container of routing, which packets wait for when it starts again; "
            f"the kernel has none ({seen.wireguard})",
            remedy,
        )
    return note("WireGuard", f"neither in the kernel ({seen.wireguard}) nor by /dev/net/tun", remedy)


def _cni(folders: Folders) -> Iterator[Finding]:
    for folder in (folders.cni_conf, folders.cni_bin):
        if folder not in folders.writable:
            yield wrong(
                "CNI", f"{folder} cannot be written to", f"make {folder} a writable folder of the container runtime"
            )
        else:
            yield well("CNI", f"{folder} can be written to")
    first = folders.configurations[0] if folders.configurations else ""
    if first and first < OURS:
        yield note(
            "CNI",
            f"{first} comes before ours: the runtime uses the first of {folders.cni_conf} by name",
            "take the other network's configuration away when airmesh is to take over",
        )
    elif first == OURS and not folders.executable:
        yield wrong("CNI", f"{first} is there, {folders.cni_bin}/airmesh-cni is not", "run `airmesh install` again")


def look(cni_conf: Path, cni_bin: Path) -> tuple[Features, Folders]:
    """See what this node has."""
    suffixes = {".conf", ".conflist", ".json"}
    names = sorted(path.name for path in cni_conf.glob("*") if path.suffix in suffixes) if cni_conf.is_dir() else []
    writable = tuple(folder for folder in (cni_conf, cni_bin) if _writable(folder))
    return features.look(), Folders(
        cni_conf=cni_conf,
        cni_bin=cni_bin,
        configurations=tuple(names),
        writable=writable,
        executable=shutil.which(cni_bin / "airmesh-cni") is not None,
    )


def _writable(folder: Path) -> bool:
    """Whether it is, or could be made: kubelet makes folders that are not there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return folder.is_dir() and os.access(folder, os.W_OK) and not read_only
