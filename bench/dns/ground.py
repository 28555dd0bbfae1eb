"""A pod, CoreDNS servers and a resolver at a distance, in one network namespace for each way.

The pod has an address of its own there and an object in a real Kubernetes API, so that ``autopath`` and ``pods
verified`` find it. Nothing lies between pod and server but loopback: a link adds the same to each query of each way.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from bench.dns.report import Looked
from bench.dns.ways import BEHIND, NAMESPACE, NODE_DOMAIN, Way
from linux.netns import command
from services.dns.core.samples import Counts, parse
from tests.coredns import RESOLVER, CoreDNS, Room
from tests.kubeapi import KubeApi

POD, GATEWAY = "10.244.1.9", "192.0.2.1/24"
GLIBC, MUSL = "glibc", "musl"
_COMPILERS = {GLIBC: ("gcc", "lookups"), MUSL: ("musl-gcc -static", "lookups"), "upstream": ("gcc", "upstream")}
_FOLDER = Path(__file__).parent
_IN_POD = 'mount --bind "$1" /etc && shift && exec "$@"'
_SECONDS = 60.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod looks up: one name each ``interval_us``."""

    lookups: int = 2000
    interval_us: int = 8000
    names: int = 20
    """External names that it asks for again and again, each as often as another."""
    fresh: int = 0
    """Of 1,000 lookups, those of a name that nobody has asked for."""


def compiled(folder: Path) -> Path:
    """The folder with the programs: `glibc`, `musl` and `upstream`."""
    for name, (compiler, source) in _COMPILERS.items():
        argv = [*compiler.split(), "-O2", "-Wall", "-o", str(folder / name), str(_FOLDER / f"{source}.c")]
        subprocess.run(argv, check=True, timeout=120)
    return folder


def make_pod(api: KubeApi) -> None:
    """The pod's object, running, with its address."""
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    api.call("POST", pods, {"metadata": {"name": "client"}, "spec": {"containers": [{"name": "c", "image": "c"}]}})
    status = {"phase": "Running", "podIP": POD, "podIPs": [{"ip": POD}]}
    api.call("PATCH", f"{pods}/client/status", {"status": status}, "application/merge-patch+json")


class Ground:
    """One way, running. ``look_up`` runs the pod; ``write`` gives the server that it asks another Corefile."""

    def __init__(self, way: Way, room: Room, programs: Path, servers: list[CoreDNS]) -> None:
        self.way = way
        self._room = room
        self._programs = programs
        self._servers = servers

    def look_up(self, library: str, load: Load, seed: int) -> Looked:
        """Lookups by the resolver of a C library."""
        etc = self._room.folder / "pod"
        etc.mkdir(exist_ok=True)
        (etc / "resolv.conf").write_text(self.way.resolv_conf)
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        (etc / "nsswitch.conf").write_text("hosts: files dns\n")
        numbers = (load.lookups, load.interval_us, load.names, load.fresh, seed)
        argv = [str(self._programs / library), *map(str, numbers)]
        inside = command(self._room.path, "unshare", "-m", "sh", "-c", _IN_POD, "sh", str(etc), *argv)
        limit = _SECONDS + load.lookups * (load.interval_us / 1e6 + 0.1)
        done = subprocess.run(inside, check=True, capture_output=True, timeout=limit)
        return msgspec.json.decode(done.stdout, type=Looked)

    def counts(self) -> Counts:
        """Of the server that the pod asks."""
        url = f"http://{self.way.server}:{self.way.metrics_port}/metrics"
        argv = command(self._room.path, "curl", "-sf", "-m", "10", url)
        return parse(subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout)

    def write(self, corefile: str) -> None:
        """Another Corefile, until it is read. Raises `SystemExit` where CoreDNS does not take it."""
        before = self.counts()
        self._servers[-1].write(corefile)
        end = time.monotonic() + _SECONDS
        while (now := self.counts()).version == before.version:
            if time.monotonic() > end or now.refused > before.refused:
                raise SystemExit(f"CoreDNS does not take the Corefile: {self._servers[-1].said[-2000:]}")
            time.sleep(0.1)


@contextmanager
def ground(
    way: Way, api: KubeApi, programs: Path, folder: Path, *, delay_us: int = 10_000, ttl: int = 5
) -> Iterator[Ground]:
    """``delay_us``: how far away the resolver for external names is; ``ttl``: of its answers, in seconds."""
    with ExitStack() as stack:
        room = stack.enter_context(Room(folder, api))
        (folder / "etc/resolv.conf").write_text(f"search {NODE_DOMAIN}\nnameserver {RESOLVER}\n")
        for address in (BEHIND, POD):
            _ip(f"-n {room.name} addr add {address}/32 dev lo")
        _ip(f"-n {room.name} route replace local {way.server} dev lo table local src {POD}")
        stack.enter_context(_upstream(room, programs, delay_us, ttl))
        servers = []
        for number, corefile in enumerate(way.corefiles):
            server = stack.enter_context(room.coredns(corefile, f"Corefile{number}"))
            if not server.starts():
                raise SystemExit(f"{way.name}: CoreDNS does not start: {server.said[-2000:]}")
            servers.append(server)
        yield Ground(way, room, programs, servers)


@contextmanager
def _upstream(room: Room, programs: Path, delay_us: int, ttl: int) -> Iterator[None]:
    """The resolver, in a namespace of its own on a link."""
    name = f"{room.name}-u"
    _ip(f"netns add {name}")
    try:
        _ip(f"-n {room.name} link add uplink type veth peer name eth0 netns {name}")
        _ip(f"-n {room.name} addr add {GATEWAY} dev uplink")
        _ip(f"-n {room.name} link set uplink up")
        _ip(f"-n {name} addr add {RESOLVER}/24 dev eth0")
        _ip(f"-n {name} link set eth0 up")
        argv = [str(programs / "upstream"), RESOLVER, "53", str(delay_us), str(ttl)]
        upstream = subprocess.Popen(command(f"/run/netns/{name}", *argv))
        try:
            yield
        finally:
            upstream.kill()
            upstream.wait(20)
    finally:
        _ip(f"netns del {name}")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, timeout=30)
