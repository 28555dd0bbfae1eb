"""What this kernel and this machine offer: facts that a program asks before it begins, found by trying.

Owns the ways of finding out. Changes nothing that outlives the question: a map is made and closed, and the clsact
qdisc and a WireGuard device are made in network namespaces of their own (``python -m linux.features WHAT``, a child of
``look``, prints what the kernel said of it). What cannot be asked for want of a right is told with the kernel's word,
never taken for "missing".
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from linux import bpf, clsact
from linux.netlink import Netlink
from linux.wireguard import add_link

CAPABILITIES: Mapping[str, int] = {
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SYS_RESOURCE": 24,
    "PERFMON": 38,
    "BPF": 39,
}
"""Bit of each in a capability set (include/uapi/linux/capability.h)."""
_LOOPBACK = 1
_MAP_TYPE_ARRAY = 2
_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mounted file system."""

    point: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What was seen. An empty text says that it works; another is the kernel's word."""

    release: str
    capabilities: frozenset[str]
    """Of :data:`CAPABILITIES`, those that this process has."""
    mounts: tuple[Mount, ...]
    bpf: str
    tcx: str
    clsact: str
    wireguard: str
    """A device of the kernel's own driver."""
    tun: bool
    """There is /dev/net/tun, which wireguard-go needs."""

    @property
    def kernel(self) -> tuple[int, int]:
        """Major and minor number."""
        return version_of(self.release)


def version_of(release: str) -> tuple[int, int]:
    """(6, 1) of ``6.1.0-18-amd64``; (0, 0) where there is none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Of the text of /proc/self/mounts (proc(5))."""
    rows = (line.split() for line in text.splitlines())
    return tuple(Mount(point=row[1], kind=row[2]) for row in rows if len(row) > 2)


def parse_capabilities(status: str) -> frozenset[str]:
    """The effective ones, of the text of /proc/self/status."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.M)
    mask = int(found[1], 16) if found else 0
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def look() -> Features:
    """See what there is; blocks for some hundredths of a second."""
    return Features(
        release=os.uname().release,
        capabilities=parse_capabilities(Path("/proc/self/status").read_text()),
        mounts=parse_mounts(Path("/proc/self/mounts").read_text()),
        bpf=map_error(),
        tcx=_tcx_error(),
        clsact=_error_of("clsact"),
        wireguard=_error_of("wireguard"),
        tun=Path("/dev/net/tun").is_char_device(),
    )


def map_error() -> str:
    """Empty when a bpf map can be made here, else the kernel's word."""
    try:
        os.close(bpf.map_create(_MAP_TYPE_ARRAY, 4, 4, 1))
    except bpf.BpfError as refused:
        return os.strerror(refused.errno or 0)
    return ""


def _tcx_error() -> str:
    """A kernel without tcx refuses the very question (EINVAL)."""
    try:
        bpf.query(_LOOPBACK, bpf.AttachKind.TCX_INGRESS)
    except bpf.BpfError as refused:
        return os.strerror(refused.errno or 0)
    return ""


def _error_of(what: str) -> str:
    try:
        child = subprocess.run(
            ["unshare", "--net", sys.executable, "-P", "-m", "linux.features", what],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it cannot be tried: {error}"
    said = (child.stdout + child.stderr).strip().splitlines()
    return "" if not child.returncode else (said[-1] if said else f"exit {child.returncode}")


def _try(what: str) -> int:
    """In a namespace of our own: nothing of the machine is touched."""
    messages = [add_link("am-wg")] if what == "wireguard" else clsact.set_filters(_LOOPBACK, ())
    try:
        with Netlink() as rtnetlink:
            rtnetlink.run(messages)
    except OSError as refused:
        sys.stdout.write(f"{os.strerror(refused.errno or 0)}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_try(sys.argv[1]))
