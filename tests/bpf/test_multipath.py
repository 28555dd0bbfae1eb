"""Routes with several next hops: the fast path takes the one that the kernel's stack takes for the same flow."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.bpf import frames
from tests.bpf.frontends import Names, packet, port_of, sent, serve
from tests.bpf.world import World, routes_changed, run

pytestmark = pytest.mark.privileged
FAMILIES = pytest.mark.parametrize("version", [4, 6])
FLOWS = range(20000, 20064)
FIRST, SECOND = frames.mac("02:bb:00:00:00:21"), frames.mac("02:bb:00:00:00:22")
ROUTERS = {
    4: ("172.30.0.21", "172.30.0.22"),
    6: ("fd00:172:30::21", "fd00:172:30::22"),
}
AWAY = {4: ("10.244.3.0/24", "10.244.3.7"), 6: ("fd00:10:244:3::/64", "fd00:10:244:3::7")}
OVER6 = ("10.244.4.0/24", "10.244.4.7")
"""IPv4 by IPv6 routers (RFC 8950)."""


def _route(network: str, version: int) -> str:
    """To a network by both routers of a family."""
    via = "via inet6" if version == 6 and "." in network else "via"
    return f"route add {network} " + " ".join(f"nexthop {via} {router} dev am-wire" for router in ROUTERS[version])


@pytest.fixture
def spread(node: World) -> Iterator[None]:
    """Two routers on the uplink, behind them pods of another node."""
    lines = [
        f"-{version} neigh add {router} lladdr {mac.hex(':')} dev am-wire nud permanent"
        for version, routers in ROUTERS.items()
        for router, mac in zip(routers, (FIRST, SECOND), strict=True)
    ]
    lines += [_route(AWAY[4][0], 4), f"-6 {_route(AWAY[6][0], 6)}", _route(OVER6[0], 6)]
    sysctl = ("nsenter", f"--net=/run/netns/{node.netns}", "sysctl", "-qw")
    for family in ("ipv4", "ipv6"):
        run(*sysctl, f"net.{family}.fib_multipath_hash_policy=1")
    for line in lines:
        run("ip", "-n", node.netns, *line.split())
    routes_changed()
    yield
    for family in ("ipv4", "ipv6"):
        run(*sysctl, f"net.{family}.fib_multipath_hash_policy=0")
    for line in reversed(lines):
        run("ip", "-n", node.netns, *line.replace(" add ", " del ").split())
    routes_changed()


def stack_takes(world: World, source: str, to: str, sport: int, dport: int, link: str) -> bytes:
    """The MAC address of the router that the kernel takes for a TCP flow received by a link, or its own without one."""
    received = f"iif {link}" if link else ""
    words = f"-j route get {to} from {source} {received} ipproto tcp sport {sport} dport {dport}"
    (found,) = json.loads(run("ip", "-n", world.netns, *words.split()))
    via = found["gateway"] if "gateway" in found else found["via"]["host"]
    return FIRST if via in (ROUTERS[4][0], ROUTERS[6][0]) else SECOND


def is_spread(hops: list[bytes]) -> bool:
    """Chi-square over two routers, one degree of freedom, p = 0.001."""
    expected = len(hops) / 2
    return 2 * (hops.count(FIRST) - expected) ** 2 / expected < 10.83


@pytest.mark.usefixtures("spread")
class TestFlowsSpread:
    @pytest.mark.parametrize(("version", "away"), [(4, AWAY[4]), (6, AWAY[6]), (4, OVER6)], ids=["4", "6", "4 over 6"])
    def test_of_pods(self, world: World, version: int, away: tuple[str, str]) -> None:
        world.know(away[0], 2001, 1)
        source, taken = str(world.a.address(version)), []
        for sport in FLOWS:
            raw = frames.ip(source, away[1], frames.TCP, frames.tcp(sport, 443, frames.SYN))
            outcomes = [world.from_pod(world.a, raw) for _ in range(2)]
            assert {str(one) for one in outcomes} == {"redirect"}
            (hop,) = {one.frame[:6] for one in outcomes}
            assert hop == stack_takes(world, source, away[1], sport, 443, "am-a")
            taken.append(hop)
        assert is_spread(taken)

    @FAMILIES
    def test_to_backends_elsewhere_by_what_leaves_the_node(self, world: World, version: int) -> None:
        n = Names(version)
        backend = AWAY[version][1] if version == 4 else f"[{AWAY[version][1]}]"
        serve(world, f"{n.node}:30080", f"{backend}:8080")
        taken = []
        for sport in FLOWS:
            there = world.from_wire(packet(f"tcp {n.client}:{sport} > {n.node}:30080"))
            own = port_of(sent(there), 0)
            assert there.frame[:6] == stack_takes(world, n.node.strip("[]"), AWAY[version][1], own, 8080, "")
            taken.append(there.frame[:6])
        assert is_spread(taken)

    @FAMILIES
    def test_answers_to_clients_by_the_frontends_port(self, world: World, version: int) -> None:
        """A client behind both routers."""
        client = AWAY[version][1] if version == 4 else f"[{AWAY[version][1]}]"
        n, taken = Names(version), []
        serve(world, f"{n.node}:30080", f"{n.pod}:8080")
        for sport in FLOWS:
            world.from_wire(packet(f"tcp {client}:{sport} > {n.node}:30080"))
            back = world.from_pod(
                world.b, packet(f"tcp {n.pod}:8080 > {client}:{sport}", flags=frames.SYN | frames.ACK)
            )
            assert sent(back) == f"tcp {n.node}:30080 > {client}:{sport}"
            taken.append(back.frame[:6])
        assert is_spread(taken)
