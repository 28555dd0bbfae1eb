"""One compilation and one loaded datapath a session; every test gets its maps emptied and filled anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from services.dataplane.datapath.programs import Datapath
from tests.bpf.world import OUR_MAC, World, bpffs, namespace, run

CACHE = Path(os.environ.get("AIRMESH_BPF_CACHE") or Path.home() / ".cache" / "airmesh" / "bpf")


@pytest.fixture(scope="session")
def cache() -> Path:
    return CACHE


@pytest.fixture(scope="module")
def pins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pins of one file's tests: the maps of a datapath take some 90 MB of the kernel's memory while they are pinned."""
    with bpffs(tmp_path_factory.mktemp("airmesh") / "bpffs") as folder:
        yield folder


@pytest.fixture
def folder(pins: Path, tmp_path: Path) -> Iterator[Path]:
    """Pins of the test alone, gone with it."""
    folder = pins / tmp_path.name
    yield folder
    rmtree(folder, ignore_errors=True)


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def way(request: pytest.FixtureRequest) -> bool:
    """Whether programs are attached by tcx, else by filters on a clsact qdisc."""
    return bool(request.param)


def build_node(netns: str) -> None:
    """Devices that stand for the host ends of two pods and for an uplink with a neighbour and routes."""
    for device in ("am-a", "am-b", "am-wire"):
        run("ip", "-n", netns, "link", "add", device, "type", "veth", "peer", "name", f"{device}p")
        run("ip", "-n", netns, "link", "set", device, "up")
        run("ip", "-n", netns, "link", "set", f"{device}p", "up")
    for setting in ("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding"):
        run("nsenter", f"--net=/run/netns/{netns}", "sysctl", "-qw", f"{setting}=1")
    commands = (
        f"link set am-wire address {OUR_MAC.hex(':')}",
        "addr add 172.30.0.11/24 dev am-wire",
        "addr add fd00:172:30::11/64 dev am-wire nodad",
        "neigh add 172.30.0.12 lladdr 02:bb:00:00:00:12 dev am-wire nud permanent",
        "neigh add fd00:172:30::12 lladdr 02:bb:00:00:00:12 dev am-wire nud permanent",
        "route add 10.244.2.0/24 via 172.30.0.12",
        "-6 route add fd00:10:244:2::/64 via fd00:172:30::12",
        "route add 10.244.2.128/25 via 172.30.0.99",
        "route add 192.0.2.0/24 via 172.30.0.12",
        "-6 route add 2001:db8::/64 via fd00:172:30::12",
    )
    for command in commands:
        run("ip", "-n", netns, *command.split())


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[World]:
    with bpffs(tmp_path_factory.mktemp("node") / "bpffs") as pins, namespace(f"am-bpf-{os.getpid()}") as netns:
        build_node(netns)
        datapath = Datapath.open(pins / "node", cache)
        world = World(datapath, netns)
        yield world
        world.reader.stop()
        datapath.close()


@pytest.fixture
def world(node: World) -> World:
    node.reset()
    return node
