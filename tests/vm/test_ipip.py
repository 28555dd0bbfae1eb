"""IPIP against the kernel's own driver: our programs on n1, `ipip` of another kernel on n2."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from proto.flow import DropReason
from proto.policy import Direction
from proto.routes import NodeRoutes
from tests.bpf import frames
from tests.bpf.test_tunnels_live import captured
from tests.bpf.tunnels import IPIP, Outer, read_outer, with_tos
from tests.bpf.world import run
from tests.drills.minicluster import pools
from tests.vm.conftest import BLOCKS_OF_FAR, FAR, FAR_POD, NEAR, SERVED, TAP, UNDERLAY, Ends, hear

pytestmark = [pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(600)]

NEAR_NODE, FAR_NODE = UNDERLAY[NEAR][0], UNDERLAY[FAR][0]
MTU = 1480
UDP_HEADERS = 28
ECT0, CE = 2, 3
TOO_LONG = "Message too long"
MEGABYTES = 4 << 20
SAID = NodeRoutes(
    FAR, tuple(map(ip_address, UNDERLAY[FAR])), tuple(map(ip_network, BLOCKS_OF_FAR)), ("host-gw", "ipip"), 1500
)


@pytest.fixture(scope="module")
def tunnel(ends: Ends) -> Ends:
    """The pools ask for IPIP, and n2 has the kernel's device for it."""
    lay(ends, "am-kernel", FAR_NODE, FAR_POD[4])
    four, six = pools(four="10.244.0.0/16", six="fd00:10:244::/56")
    ends.put(replace(four, ipip_mode="Always"), six)
    ends.announce(SAID)
    ends.wait("the way by IPIP", lambda: "dev am-ipip" in ends.route(FAR_POD[4]))
    ends.wait("packets by it", lambda: ends.arrive([10]))
    return ends


def lay(ends: Ends, device: str, local: str, pod: str) -> None:
    """The kernel's device, and the way to n1's pod by it."""
    ends.vm.run(f"ip link add {device} mtu {MTU} type ipip local {local} ttl 64 tos inherit pmtudisc")
    ends.vm.run(f"ip link set {device} up")
    ends.vm.run(f"ip route replace {ends.addresses[4]} via {NEAR_NODE} dev {device} onlink src {pod}")


def wire(found: list[bytes]) -> list[Outer]:
    """What is IPIP; each header of it is right, or reading fails."""
    return [read_outer(raw) for raw in found if raw[12:14] == b"\x08\x00" and raw[23] == IPIP]


def in_the_clear(ends: Ends, found: list[bytes]) -> list[bytes]:
    """IPv4 packets of pods that are in no tunnel."""
    pods = {ip_address(address).packed for address in (ends.addresses[4], FAR_POD[4])}
    return [raw for raw in found if raw[12:14] == b"\x08\x00" and {raw[26:30], raw[30:34]} & pods]


def test_each_takes_what_the_other_sends(tunnel: Ends) -> None:
    """Ping and datagrams, both ways; on the wire is protocol 4, node to node, and no packet of a pod as it is."""
    for port, act in ((TAP, tunnel.vm), (f"to-{NEAR}", tunnel.pod)):
        own, other = (FAR_POD[4], tunnel.addresses[4]) if act is tunnel.vm else (tunnel.addresses[4], FAR_POD[4])
        ends_of_outer = (FAR_NODE, NEAR_NODE) if act is tunnel.vm else (NEAR_NODE, FAR_NODE)
        with captured(tunnel.cluster.label, port) as found:
            assert "3 packets received" in act.run(f"busybox ping -c 3 -W 5 -I {own} {other}")
        seen = wire(found)
        assert len(seen) == 3
        assert {(str(one.source), str(one.destination), one.ttl) for one in seen} == {(*ends_of_outer, 64)}
        assert in_the_clear(tunnel, found) == []
    assert tunnel.from_pod([1, 100]) == tunnel.from_far([1, 100]) == ["", ""]
    for end in (tunnel.vm, tunnel.pod):
        assert [(one["size"], one["whole"]) for one in hear(end, 2)] == [(1, True), (100, True)]


@pytest.mark.parametrize("way", ["upload", "download"])
def test_bulk(tunnel: Ends, way: str) -> None:
    """Begun by either end: long segments with pending sums here, the kernel's own cutting there."""
    assert tunnel.pod(way, source=tunnel.addresses[4], host=FAR_POD[4], port=SERVED, size=MEGABYTES)
    assert tunnel.vm(way, source=FAR_POD[4], host=tunnel.addresses[4], port=SERVED, size=MEGABYTES)


def test_datagrams_around_the_mtu(tunnel: Ends) -> None:
    """Without DF all arrive, in fragments inside of the tunnel; with it whoever is too long is told at the sender."""
    fits = MTU - UDP_HEADERS
    sizes = [fits - 1, fits, fits + 1, 1472, 1473, 3000, 9000]
    for send, end, port in ((tunnel.from_pod, tunnel.vm, f"to-{NEAR}"), (tunnel.from_far, tunnel.pod, TAP)):
        with captured(tunnel.cluster.label, port) as found:
            assert send(sizes) == [""] * len(sizes)
            assert [(one["size"], one["whole"]) for one in hear(end, len(sizes))] == [(size, True) for size in sizes]
        inner = [one.inner for one in wire(found)]
        assert len(inner) == 2 * 1 + 3 * 2 + 3 + 7
        assert max(map(len, inner)) <= MTU
        assert send([fits, fits + 1], df=True) == ["", TOO_LONG]
        assert [one["size"] for one in hear(end, 1)] == [fits]


def test_a_port_where_nobody_listens_is_answered_through_the_tunnel(tunnel: Ends) -> None:
    """The kernel's ICMP error about a packet of ours, and ours about one of the kernel's."""
    for end, own, other in (
        (tunnel.pod, tunnel.addresses[4], FAR_POD[4]),
        (tunnel.vm, FAR_POD[4], tunnel.addresses[4]),
    ):
        assert end("answered", source=own, host=other, port=SERVED + 1, size=100) == "Connection refused"


def test_tos_and_ttl(tunnel: Ends) -> None:
    """RFC 6040: DSCP and ECN of the packet are the tunnel's too and come out as they went in. Of congestion that a
    packet met before, this kernel shows ECT(0) on the way (RFC 3168, 9.1.1), ours CE (RFC 6040, normal mode). A hop is
    taken of what a pod sends, none of what is delivered to it; the outer TTL is not the packet's.
    """
    marks = [0x00, 0x01, 0x02, 0x03, 0xB8, 0xBA, 0xBB, 0x28]
    for send, end, port, ttl, congested in (
        (tunnel.from_pod, tunnel.vm, f"to-{NEAR}", 4, CE),
        (tunnel.from_far, tunnel.pod, TAP, 5, ECT0),
    ):
        for tos in marks:
            with captured(tunnel.cluster.label, port) as found:
                assert send([10], tos=tos, ttl=5) == [""]
                [one] = hear(end, 1)
            assert (one["tos"], one["ttl"]) == (tos, ttl)
            [outer] = wire(found)
            assert (outer.tos, outer.ttl) == (tos if tos & CE != CE else tos & ~CE | congested, 64)


def test_congestion_on_the_way_is_seen_as_the_kernel_sees_it(tunnel: Ends) -> None:
    """The same sixteen pairs of marks to both ends (RFC 6040, figure 4): what comes out, and what does not."""
    macs = {NEAR: frames.mac(mac_of(tunnel)), FAR: frames.mac("02:00:00:00:00:12")}
    seen: dict[str, list[object]] = {NEAR: [], FAR: []}
    for outer in range(4):
        for inner in range(4):
            for node, end, own, other in (
                (NEAR, tunnel.pod, tunnel.addresses[4], FAR_POD[4]),
                (FAR, tunnel.vm, FAR_POD[4], tunnel.addresses[4]),
            ):
                inside_ = with_tos(frames.ip(other, own, frames.UDP, frames.udp(4000, SERVED, b"")), 0xB8 | inner)
                ways = (FAR_NODE, NEAR_NODE) if node == NEAR else (NEAR_NODE, FAR_NODE)
                packet = with_tos(frames.ip(*ways, IPIP, inside_), 0x28 | outer)
                tunnel.inject(
                    node,
                    frames.eth(packet, source=macs[FAR if node == NEAR else NEAR], destination=macs[node], kind=0x0800),
                )
                found = hear(end, 1, 0.5 if (outer, inner) == (3, 0) else 5.0)
                seen[node].append([one["tos"] for one in found])
    assert seen[NEAR] == seen[FAR]
    assert seen[FAR].count([]) == 1, "congestion that the packet cannot show"


def mac_of(ends: Ends) -> str:
    """Of n1's uplink."""
    return run("ip", "-n", ends.node, "-o", "link", "show", "fab0").split("link/ether ")[1].split()[0]


def dropped(ends: Ends, reason: DropReason) -> int:
    """How many packets from outside n1 has dropped for this reason."""
    metric = ends.tables.metrics().get((reason, Direction.INGRESS))
    return 0 if metric is None else metric.packets


def test_strangers(tunnel: Ends) -> None:
    """The kernel sends what ours refuses: from an address of no node, in the name of a pod that n2 does not have."""
    tunnel.vm.run("ip addr add 172.30.0.99/24 dev eth0")
    tunnel.vm.run("ip addr add 10.244.78.1 dev lo")
    lay(tunnel, "am-stranger", "172.30.0.99", FAR_POD[4])
    try:
        before = dropped(tunnel, DropReason.TUNNEL_PEER)
        assert tunnel.from_far([11] * 5) == [""] * 5
        tunnel.wait("five packets of a stranger dropped", lambda: dropped(tunnel, DropReason.TUNNEL_PEER) == before + 5)
    finally:
        tunnel.vm.run("ip link del am-stranger")
    tunnel.vm.run(f"ip route replace {tunnel.addresses[4]} via {NEAR_NODE} dev am-kernel onlink src {FAR_POD[4]}")
    before = dropped(tunnel, DropReason.TUNNEL_SOURCE)
    assert tunnel.from_far([12] * 5, source="10.244.78.1") == [""] * 5
    tunnel.wait("five lies dropped", lambda: dropped(tunnel, DropReason.TUNNEL_SOURCE) == before + 5)
    assert tunnel.from_far([13]) == [""]
    assert [one["size"] for one in hear(tunnel.pod, 1)] == [13], "n2 itself is heard, and nothing else was"


def test_a_smaller_link_at_the_other_end(tunnel: Ends) -> None:
    """n2's link takes 1400 bytes, so the pod's packets to it 1380: told to who may not fragment, cut for who may."""
    tunnel.vm.run("ip link set eth0 mtu 1400")
    tunnel.vm.run("ip link set am-kernel mtu 1380")
    tunnel.announce(replace(SAID, mtu=1400))
    try:
        tunnel.wait("n1's route with the size", lambda: "mtu lock 1380" in run("ip", "-n", tunnel.node, "route"))
        fits = 1380 - UDP_HEADERS
        assert tunnel.from_pod([MTU - UDP_HEADERS], df=True) == [""], "as long as the pod's own link takes"
        tunnel.wait(
            "ICMP, fragmentation needed",
            lambda: tunnel.from_pod([fits + 1], df=True) == [TOO_LONG],
        )
        assert hear(tunnel.vm, 1, 0.5) == [], "what is too long did not pass"
        assert tunnel.from_pod([fits], df=True) == [""]
        assert tunnel.from_pod([fits + 1, 3000]) == ["", ""]
        assert [(one["size"], one["whole"]) for one in hear(tunnel.vm, 3)] == [
            (size, True) for size in (fits, fits + 1, 3000)
        ]
        assert tunnel.pod("upload", source=tunnel.addresses[4], host=FAR_POD[4], port=SERVED, size=1 << 20)
        assert tunnel.vm("upload", source=FAR_POD[4], host=tunnel.addresses[4], port=SERVED, size=1 << 20)
    finally:
        tunnel.vm.run("ip link set eth0 mtu 1500")
        tunnel.vm.run(f"ip link set am-kernel mtu {MTU}")
        tunnel.announce(SAID)
