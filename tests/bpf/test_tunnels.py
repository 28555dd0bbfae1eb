"""Packets into tunnels and out of them: what stands on the wire, who is believed, what is dropped and why."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from linux import bpf
from proto.flow import DropReason
from proto.identity import Reserved
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import tunnel_layout as tl
from services.dataplane.core.datapath.tunnel_layout import TunnelKind
from tests.bpf import frames
from tests.bpf.frames import ACK, ICMP, TCP, UDP
from tests.bpf.frontends import packet, read, serve
from tests.bpf.tunnels import (
    DEVICES,
    IPIP,
    LOCAL,
    MTU,
    OTHER,
    OWN_MAC,
    PODS,
    PORT,
    REMOTE,
    REMOTE_MAC,
    STRANGER,
    VNI,
    WAYS,
    fill,
    less_a_hop,
    read_outer,
    switch,
    tos_of,
    tunnel_devices,
    vxlan,
    with_tos,
    wrapped,
)
from tests.bpf.world import OUR_MAC, REDIRECT, Outcome, World, inside, routes_changed, run

pytestmark = pytest.mark.privileged

EVERY_WAY = pytest.mark.parametrize(("tunnel", "version"), WAYS, ids=[f"{name}-IPv{v}" for name, v in WAYS])
UPLINK_MACS = frames.mac("02:bb:00:00:00:12") + OUR_MAC
ENCRYPT = {4: at.ConfigFlag.ENCRYPT4, 6: at.ConfigFlag.ENCRYPT6}
REFUSE = {4: at.ConfigFlag.REFUSE_PLAIN4, 6: at.ConfigFlag.REFUSE_PLAIN6}


@pytest.fixture(scope="module")
def devices(node: World) -> Iterator[dict[str, int]]:
    with tunnel_devices(node.netns) as made:
        yield made


@pytest.fixture
def tunnels(world: World, devices: dict[str, int]) -> Iterator[World]:
    fill(world, devices)
    yield world
    switch(world, 0)


def to_pod(world: World, tunnel: str, version: int, *, sport: int = 4000, body: bytes = b"abc") -> bytes:
    """A datagram of pod a to a pod of the other node."""
    return frames.ip(str(world.a.address(version)), PODS[tunnel, version], UDP, frames.udp(sport, 80, body))


def back(world: World, tunnel: str, version: int, *, body: bytes = b"abc") -> bytes:
    """A datagram of the other node's pod to pod b."""
    return frames.ip(PODS[tunnel, version], str(world.b.address(version)), UDP, frames.udp(80, 4000, body))


def on_device(world: World, program: str, raw: bytes, ifindex: int, *, received_on: int = 0, mark: int = 0) -> Outcome:
    """One of a tunnel device's own programs on a frame."""
    frame = frames.eth(raw, source=OUR_MAC, kind=0x0800 if raw[0] >> 4 == 4 else 0x86DD)
    context = struct.pack("<8xI24xII", mark, received_on, ifindex)
    with inside(world.netns):
        result = bpf.run_on(world.datapath.programs[program], frame, context=context)
    reported = world.reader.drain()
    event = reported[-1] if reported else None
    return Outcome(result.value, DropReason(event.reason) if event else None, result.packet, event)


class TestOut:
    @EVERY_WAY
    def test_the_packet_and_its_headers(self, tunnels: World, tunnel: str, version: int) -> None:
        _, kind, family, overhead = DEVICES[tunnel]
        sent = to_pod(tunnels, tunnel, version)
        outcome = tunnels.from_pod(tunnels.a, sent)
        assert str(outcome) == "redirect"
        assert len(outcome.frame) == 14 + len(sent) + overhead
        outer = read_outer(outcome.frame)
        assert outcome.frame[:12] == UPLINK_MACS
        assert (str(outer.source), str(outer.destination)) == (LOCAL[family], REMOTE[family])
        assert (outer.ttl, outer.tos) == (64, 0)
        assert outer.inner == less_a_hop(sent)
        if kind is TunnelKind.VXLAN:
            assert (outer.port, outer.vni, outer.macs) == (PORT, VNI, REMOTE_MAC + OWN_MAC)

    @EVERY_WAY
    def test_tos_and_ecn_are_those_of_the_packet(self, tunnels: World, tunnel: str, version: int) -> None:
        """RFC 6040, normal mode: congestion that was met before is shown on the way."""
        for tos in (0, 1, 2, 3, 0xB8, 0xBB):
            sent = with_tos(to_pod(tunnels, tunnel, version), tos)
            outer = read_outer(tunnels.from_pod(tunnels.a, sent).frame)
            assert (outer.tos, tos_of(outer.inner)) == (tos, tos)

    @pytest.mark.parametrize(("tunnel", "version"), [way for way in WAYS if way[0] != "ipip4"])
    def test_the_source_port_is_the_flow_s(self, tunnels: World, tunnel: str, version: int) -> None:
        tunnels.limit(tunnels.a, 10_000)
        ports = {}
        for sport in range(2000, 2400):
            outers = [
                read_outer(tunnels.from_pod(tunnels.a, to_pod(tunnels, tunnel, version, sport=sport, body=body)).frame)
                for body in (b"", b"longer")
            ]
            assert len({(outer.source_port, outer.label) for outer in outers}) == 1, "packets of a flow take one way"
            ports[sport] = outers[0].source_port
        assert min(ports.values()) >= 49152
        assert len(set(ports.values())) > 360, "flows are spread"
        halves = [sum(port % 2 for port in ports.values()), sum(port >> 13 & 1 for port in ports.values())]
        assert all(120 < ones < 280 for ones in halves), "by every bit"

    def test_fragments_take_the_way_of_their_flow(self, tunnels: World) -> None:
        a, there = str(tunnels.a.address(4)), PODS["vxlan4", 4]
        whole = frames.udp(4000, 80, bytes(64))
        first = frames.ip(a, there, UDP, whole[:40], frag=0x2000, ident=9)
        second = frames.ip(a, there, UDP, whole[40:], frag=5, ident=9)
        outers = [read_outer(tunnels.from_pod(tunnels.a, part).frame) for part in (first, second)]
        assert len({outer.source_port for outer in outers}) == 1
        assert outers[1].inner == less_a_hop(second)

    def test_its_last_hop_is_the_stack_s_matter(self, tunnels: World) -> None:
        sent = frames.ip(str(tunnels.a.address(4)), PODS["vxlan4", 4], UDP, frames.udp(4000, 80), ttl=1)
        assert str(tunnels.from_pod(tunnels.a, sent)) == "stack"

    @EVERY_WAY
    def test_sizes_around_the_mtu(self, tunnels: World, tunnel: str, version: int) -> None:
        head = 28 if version == 4 else 48
        for size, verdict in ((1, "redirect"), (MTU - head, "redirect"), (MTU - head + 1, "stack"), (1500, "stack")):
            assert str(tunnels.from_pod(tunnels.a, to_pod(tunnels, tunnel, version, body=bytes(size)))) == verdict

    def test_without_tunnels_the_device_is_one_as_any(self, tunnels: World) -> None:
        """Nothing is looked for that the agent has not announced."""
        switch(tunnels, 0)
        outcome = tunnels.from_pod(tunnels.a, to_pod(tunnels, "vxlan4", 4))
        assert (str(outcome), outcome.frame[:12]) == ("redirect", REMOTE_MAC + OWN_MAC)

    def test_an_outer_neighbour_that_is_not_known_is_asked_for(self, tunnels: World) -> None:
        run("ip", "-n", tunnels.netns, "neigh", "del", REMOTE[4], "dev", "am-wire")
        routes_changed()
        try:
            outcome = tunnels.from_pod(tunnels.a, to_pod(tunnels, "ipip4", 4))
            assert str(outcome) == "redirect"
            assert read_outer(outcome.frame).inner == less_a_hop(to_pod(tunnels, "ipip4", 4))
        finally:
            lladdr = UPLINK_MACS[:6].hex(":")
            run(
                "ip",
                "-n",
                tunnels.netns,
                *f"neigh replace {REMOTE[4]} lladdr {lladdr} dev am-wire nud permanent".split(),
            )
            routes_changed()

    @pytest.mark.parametrize("takes", list(DEVICES))
    @pytest.mark.parametrize("version", [4, 6])
    def test_to_the_other_node_itself(self, tunnels: World, devices: dict[str, int], version: int, takes: str) -> None:
        """Answers to its kubelet and its translated clients go as packets to its pods do."""
        if (takes, version) == ("ipip4", 6):
            takes = "vxlan4"
        fill(tunnels, devices, takes=takes)
        sent = frames.ip(str(tunnels.a.address(version)), REMOTE[version], UDP, frames.udp(4000, 80))
        outcome = tunnels.from_pod(tunnels.a, sent)
        assert str(outcome) == "redirect"
        outer = read_outer(outcome.frame)
        assert (str(outer.destination), outer.inner) == (REMOTE[DEVICES[takes][2]], less_a_hop(sent))
        if takes != "ipip4":
            assert outer.macs == REMOTE_MAC + OWN_MAC
        fill(tunnels, devices, takes="")
        assert str(tunnels.from_pod(tunnels.a, sent)) == "stack", "a pair without a tunnel: as ever"


class TestIn:
    @EVERY_WAY
    def test_for_a_pod(self, tunnels: World, tunnel: str, version: int) -> None:
        inner = back(tunnels, tunnel, version)
        outcome = tunnels.from_wire(wrapped(tunnel, inner))
        assert str(outcome) == "redirect"
        assert outcome.frame[14:] == inner
        assert outcome.frame[:14] == tunnels.b.mac + OUR_MAC + (b"\x08\x00" if version == 4 else b"\x86\xdd")

    @EVERY_WAY
    def test_the_pod_s_policy_judges_the_packet_inside(self, tunnels: World, tunnel: str, version: int) -> None:
        tunnels.isolate(tunnels.b.identity, ingress=True)
        outcome = tunnels.from_wire(wrapped(tunnel, back(tunnels, tunnel, version)))
        assert str(outcome) == "drop POLICY_DENIED"
        assert outcome.event is not None
        assert (outcome.event.peer, str(outcome.event.source)) == (2003, PODS[tunnel, version])

    @EVERY_WAY
    def test_for_the_node_itself(self, tunnels: World, tunnel: str, version: int) -> None:
        """By the tunnel's device, so that the stack answers the way that it came."""
        inner = frames.ip(PODS[tunnel, version], LOCAL[version], TCP, frames.tcp(4000, 10250))
        outcome = tunnels.from_wire(wrapped(tunnel, inner))
        assert (str(outcome), outcome.frame[14:]) == ("redirect", inner)

    @EVERY_WAY
    def test_from_the_other_node_itself(self, tunnels: World, tunnel: str, version: int) -> None:
        inner = frames.ip(REMOTE[version], str(tunnels.b.address(version)), TCP, frames.tcp(4000, 8080))
        outcome = tunnels.from_wire(wrapped(tunnel, inner))
        assert (str(outcome), outcome.frame[14:]) == ("redirect", inner)

    @EVERY_WAY
    def test_for_nobody_here(self, tunnels: World, tunnel: str, version: int) -> None:
        for there in ("10.244.1.99", "192.0.2.1") if version == 4 else ("fd00:10:244:1::99", "2001:db8::1", "ff02::1"):
            inner = frames.ip(PODS[tunnel, version], there, UDP, frames.udp(1, 2))
            assert str(tunnels.from_wire(wrapped(tunnel, inner))) == "drop ENDPOINT_GONE"

    @EVERY_WAY
    def test_a_service_is_found_in_it(self, tunnels: World, tunnel: str, version: int) -> None:
        """A pod of the other node asks this node's port; a pod here serves."""
        serve(tunnels, f"{text_of(LOCAL[version])}:30080", f"{text_of(tunnels.b.address(version))}:8080")
        inner = packet(f"tcp {text_of(PODS[tunnel, version])}:4000 > {text_of(LOCAL[version])}:30080")
        outcome = tunnels.from_wire(wrapped(tunnel, inner))
        assert str(outcome) == "redirect"
        assert read(outcome.frame[14:]).text.endswith(f"> {text_of(tunnels.b.address(version))}:8080")
        answer = packet(
            f"tcp {text_of(tunnels.b.address(version))}:8080 > {text_of(PODS[tunnel, version])}:4000", flags=ACK
        )
        outcome = tunnels.from_pod(tunnels.b, answer)
        assert str(outcome) == "redirect"
        outer = read_outer(outcome.frame)
        assert read(outer.inner).text == f"tcp {text_of(LOCAL[version])}:30080 > {text_of(PODS[tunnel, version])}:4000"
        assert read(outer.inner).ttl == 63

    @EVERY_WAY
    @pytest.mark.parametrize(
        ("outer", "inner", "becomes"),
        [
            (0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 3),
            (1, 0, 0), (1, 1, 1), (1, 2, 1), (1, 3, 3),
            (2, 0, 0), (2, 1, 1), (2, 2, 2), (2, 3, 3),
            (3, 0, None), (3, 1, 3), (3, 2, 3), (3, 3, 3),
        ],
    )  # fmt: skip
    def test_congestion_on_the_way_is_seen_at_the_end(
        self, tunnels: World, tunnel: str, version: int, outer: int, inner: int, becomes: int | None
    ) -> None:
        """RFC 6040, figure 4. The DSCP stays the packet's own."""
        sent = with_tos(back(tunnels, tunnel, version), 0xB8 | inner)
        outcome = tunnels.from_wire(wrapped(tunnel, sent, tos=0x28 | outer))
        if becomes is None:
            assert str(outcome) == "drop TUNNEL_MALFORMED"
        else:
            assert (str(outcome), outcome.frame[14:]) == ("redirect", with_tos(sent, 0xB8 | becomes))

    @EVERY_WAY
    def test_options_and_padding(self, tunnels: World, tunnel: str, version: int) -> None:
        """An outer header with options, and an Ethernet card's padding behind the packet."""
        inner, whole = back(tunnels, tunnel, version), wrapped(tunnel, back(tunnels, tunnel, version))
        if DEVICES[tunnel][2] == 4:
            whole = frames.ip(REMOTE[4], LOCAL[4], whole[9], whole[20:], options=b"\x01\x01\x01\x00")
        outcome = tunnels.from_wire(whole + bytes(7))
        assert (str(outcome), outcome.frame[14:]) == ("redirect", inner + bytes(7))


class TestStrangers:
    @EVERY_WAY
    def test_an_address_that_no_node_has(self, tunnels: World, tunnel: str, version: int) -> None:
        source = STRANGER if DEVICES[tunnel][2] == 4 else "fd00:172:30::13"
        outcome = tunnels.from_wire(wrapped(tunnel, back(tunnels, tunnel, version), source=source))
        assert str(outcome) == "drop TUNNEL_PEER"
        assert outcome.event is not None
        assert str(outcome.event.source) == source

    @EVERY_WAY
    def test_a_source_that_is_not_the_sender_s(self, tunnels: World, tunnel: str, version: int) -> None:
        """Another node's pod, a pod here, this node, the world, nobody's."""
        sources = {
            4: ("10.244.6.7", "10.244.1.1", LOCAL[4], "192.0.2.5", "0.0.0.0", "127.0.0.1"),
            6: ("fd00:10:244:6::7", "fd00:10:244:1::1", LOCAL[6], "2001:db8::5", "::", "fe80::1"),
        }[version]
        for source in sources:
            inner = frames.ip(source, str(tunnels.b.address(version)), UDP, frames.udp(80, 4000))
            assert str(tunnels.from_wire(wrapped(tunnel, inner))) == "drop TUNNEL_SOURCE", source

    def test_the_longest_prefix_says_whose_it_is(self, tunnels: World) -> None:
        """An address that another node has kept, or nobody, out of the sender's block."""
        inner = back(tunnels, "vxlan4", 4)
        key = at.PrefixKey.of(ip_network(f"{PODS['vxlan4', 4]}/32"))
        for number, verdict in ((8, "drop TUNNEL_SOURCE"), (0, "drop TUNNEL_SOURCE"), (7, "redirect")):
            tunnels.tables.tunnel_sources.put(key, tl.TunnelSource(node=number))
            assert str(tunnels.from_wire(wrapped("vxlan4", inner))) == verdict
        assert str(tunnels.from_wire(wrapped("vxlan4", inner, source=OTHER))) == "drop TUNNEL_SOURCE"

    def test_neighbours_are_no_matter_of_tunnels(self, tunnels: World) -> None:
        """A router's advertisement from the other node's address is a word of this link alone."""
        advert = frames.icmp6(134, bytes(12))
        inner = frames.ip(PODS["vxlan4", 6], str(tunnels.b.address(6)), 58, advert)
        assert str(tunnels.from_wire(wrapped("vxlan4", inner))) == "drop SPOOFED_NEIGHBOUR"

    @pytest.mark.parametrize("family", [4, 6])
    def test_what_is_no_packet_of_ours(self, tunnels: World, family: int) -> None:
        """Malformed by its length, its flags, its VNI, what is in it; a fragment; a tunnel in a tunnel."""
        tunnel = f"vxlan{family}"
        inner = back(tunnels, tunnel, 4)

        def outer(body: bytes, **more: int) -> bytes:
            return frames.ip(REMOTE[family], LOCAL[family], UDP, body, **more)

        nested = frames.ip(REMOTE[4], LOCAL[4], UDP, vxlan(inner))
        bad = {
            "other VNI": outer(vxlan(inner, vni=VNI + 1)),
            "no VNI": outer(vxlan(inner, flags=0)),
            "unknown flag": outer(vxlan(inner, flags=0x0C000000)),
            "ARP": outer(vxlan(frames.arp(1, REMOTE_MAC, "10.244.3.7", "10.244.1.1"), kind=0x0806)),
            "a tag": outer(vxlan(inner, kind=0x8100)),
            "ends in the VXLAN header": outer(vxlan(inner)[:12]),
            "ends in the inner header": outer(vxlan(inner[:19])),
            "IPv6 by name alone": outer(vxlan(inner, kind=0x86DD)),
            "VXLAN in VXLAN": outer(vxlan(nested)),
            "IPIP in VXLAN": outer(vxlan(frames.ip(REMOTE[4], LOCAL[4], IPIP, inner))),
            "longer than what carries it": outer(vxlan(frames.ip("10.244.3.7", "10.244.1.2", UDP, b"", total=200))),
        }
        if family == 4:
            bad["first fragment"] = outer(vxlan(inner), frag=0x2000)
            bad["cut short"] = outer(vxlan(inner), total=20 + 8 + 8 + 14 + 20)
        verdicts = {name: str(tunnels.from_wire(raw)) for name, raw in bad.items()}
        assert verdicts == dict.fromkeys(bad, "drop TUNNEL_MALFORMED")

    def test_what_is_no_packet_of_ipip(self, tunnels: World) -> None:
        inner = back(tunnels, "ipip4", 4)
        bad = {
            "IPv6 in IPv4": frames.ip(REMOTE[4], LOCAL[4], IPIP, back(tunnels, "vxlan4", 6)),
            "nothing": frames.ip(REMOTE[4], LOCAL[4], IPIP, b""),
            "cut short": frames.ip(REMOTE[4], LOCAL[4], IPIP, inner[:19]),
            "first fragment": frames.ip(REMOTE[4], LOCAL[4], IPIP, inner, frag=0x2000),
            "later fragment": frames.ip(REMOTE[4], LOCAL[4], IPIP, inner, frag=5),
            "IPIP in IPIP": frames.ip(REMOTE[4], LOCAL[4], IPIP, frames.ip(REMOTE[4], LOCAL[4], IPIP, inner)),
        }
        verdicts = {name: str(tunnels.from_wire(raw)) for name, raw in bad.items()}
        assert verdicts == dict.fromkeys(bad, "drop TUNNEL_MALFORMED")

    def test_others_use_of_the_same_protocols(self, tunnels: World) -> None:
        """Another port, another destination, no tunnel of this kind here: the stack's, or a pod's."""
        inner = back(tunnels, "vxlan4", 4)
        assert str(tunnels.from_wire(frames.ip(STRANGER, LOCAL[4], UDP, vxlan(inner, port=PORT + 1)))) == "stack"
        assert str(tunnels.from_wire(frames.ip(STRANGER, "172.30.0.200", UDP, vxlan(inner)))) == "stack"
        to_b = str(tunnels.b.address(4))
        for raw in (frames.ip("192.0.2.5", to_b, UDP, vxlan(inner)), frames.ip("192.0.2.5", to_b, IPIP, inner)):
            outcome = tunnels.from_wire(raw)
            assert (str(outcome), outcome.frame[14:]) == ("redirect", raw)
        tunnels.tables.tunnel_ends.apply({}, list(tunnels.tables.tunnel_ends.items()))
        assert str(tunnels.from_wire(wrapped("ipip4", inner))) == "stack"

    def test_errors_about_outer_packets_are_the_stack_s(self, tunnels: World) -> None:
        sent = read_outer(tunnels.from_pod(tunnels.a, to_pod(tunnels, "ipip4", 4)).frame).frame[14:]
        error = frames.ip("172.30.0.1", LOCAL[4], ICMP, frames.icmp_error(4, sent))
        assert str(tunnels.from_wire(error)) == "stack"

    def test_errors_inside_find_their_flow(self, tunnels: World) -> None:
        """A pod may not be sent to any more, but what is told about its flow it hears."""
        tunnels.isolate(tunnels.a.identity, ingress=True)
        sent = to_pod(tunnels, "vxlan4", 4)
        assert str(tunnels.from_pod(tunnels.a, sent)) == "redirect"
        for source in (PODS["vxlan4", 4], REMOTE[4]):
            error = frames.ip(source, str(tunnels.a.address(4)), ICMP, frames.icmp_error(4, sent))
            assert str(tunnels.from_wire(wrapped("vxlan4", error))) == "redirect"
        other = frames.icmp_error(4, to_pod(tunnels, "vxlan4", 4, sport=4001))
        error = frames.ip(REMOTE[4], str(tunnels.a.address(4)), ICMP, other)
        assert str(tunnels.from_wire(wrapped("vxlan4", error))) == "drop POLICY_DENIED"


class TestDevice:
    def test_from_tunnel_takes_what_was_judged(self, tunnels: World, devices: dict[str, int]) -> None:
        inner = frames.ip(PODS["vxlan4", 4], LOCAL[4], TCP, frames.tcp(4000, 10250))
        for name in ("vxlan4", "ipip4"):
            assert str(on_device(tunnels, "from_tunnel", inner, devices[name], mark=tl.TUNNEL_MARK)) == "stack"
            for mark in (0, 1, at.REPLY_MARK):
                assert str(on_device(tunnels, "from_tunnel", inner, devices[name], mark=mark)) == "drop TUNNEL_PEER"

    def test_a_device_that_nobody_knows(self, tunnels: World) -> None:
        inner = frames.ip(PODS["vxlan4", 4], LOCAL[4], TCP, frames.tcp(4000, 10250))
        for program in ("from_tunnel", "to_tunnel"):
            outcome = on_device(tunnels, program, inner, tunnels.wire, mark=tl.TUNNEL_MARK)
            assert str(outcome) == "drop LINK_UNKNOWN"

    def test_to_tunnel_makes_ipip_of_what_the_stack_sends(self, tunnels: World, devices: dict[str, int]) -> None:
        """By the route of the packet; a probe by the address that it is for. No hop is taken: the stack has."""
        for there in (PODS["ipip4", 4], REMOTE[4]):
            sent = with_tos(frames.ip(LOCAL[4], there, UDP, frames.udp(4000, 80)), 0xBA)
            outcome = on_device(tunnels, "to_tunnel", sent, devices["ipip4"])
            assert str(outcome) == "redirect"
            outer = read_outer(outcome.frame)
            assert (str(outer.source), str(outer.destination), outer.inner) == (LOCAL[4], REMOTE[4], sent)
            assert outer.tos == 0xBA
        lost = frames.ip(LOCAL[4], "10.244.77.1", UDP, frames.udp(4000, 80))
        assert str(on_device(tunnels, "to_tunnel", lost, devices["ipip4"])) == "drop NO_ROUTE"

    def test_to_tunnel_leaves_the_rest_to_the_kernel_s_device(self, tunnels: World, devices: dict[str, int]) -> None:
        for version in (4, 6):
            sent = frames.ip(LOCAL[version], PODS["vxlan4", version], UDP, frames.udp(4000, 80))
            assert str(on_device(tunnels, "to_tunnel", sent, devices["vxlan4"])) == "stack"

    def test_nothing_is_forwarded_into_a_tunnel_in_another_s_name(
        self, tunnels: World, devices: dict[str, int]
    ) -> None:
        for name in ("vxlan4", "ipip4"):
            forged = frames.ip(str(tunnels.a.address(4)), PODS[name, 4], UDP, frames.udp(4000, 80))
            assert (
                str(on_device(tunnels, "to_tunnel", forged, devices[name], received_on=9999)) == "drop SPOOFED_ADDRESS"
            )
            verdict = "redirect" if name == "ipip4" else "stack"
            own = on_device(tunnels, "to_tunnel", forged, devices[name], received_on=tunnels.a.ifindex)
            assert str(own) == verdict

    def test_answers_of_the_node_s_own_backends_are_turned_back(self, tunnels: World, devices: dict[str, int]) -> None:
        serve(tunnels, f"{LOCAL[4]}:30080", f"{LOCAL[4]}:8080")
        inner = packet(f"tcp {PODS['vxlan4', 4]}:4000 > {LOCAL[4]}:30080")
        outcome = tunnels.from_wire(wrapped("vxlan4", inner))
        assert read(outcome.frame[14:]).text.endswith(f"> {LOCAL[4]}:8080")
        answer = packet(f"tcp {LOCAL[4]}:8080 > {PODS['vxlan4', 4]}:4000", flags=ACK)
        outcome = on_device(tunnels, "to_tunnel", answer, devices["vxlan4"])
        assert read(outcome.frame[14:]).text == f"tcp {LOCAL[4]}:30080 > {PODS['vxlan4', 4]}:4000"


class TestTooBig:
    """Packets that cannot go up the stack: translated ones, and those to a node whose address has a plain route."""

    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("kind", ["udp", "tcp"])
    def test_a_client_s_packet_for_a_backend_behind_a_tunnel(self, tunnels: World, version: int, kind: str) -> None:
        client = "192.0.2.5" if version == 4 else "2001:db8::5"
        serve(
            tunnels,
            f"{text_of(LOCAL[version])}:30080",
            f"{text_of(PODS['vxlan4', version])}:8080",
            protocol=UDP if kind == "udp" else TCP,
        )
        there = f"{kind} {text_of(client)}:4000 > {text_of(LOCAL[version])}:30080"
        assert str(tunnels.from_wire(packet(there))) == "redirect"
        sent = packet(there, body=bytes(MTU), flags=ACK)
        outcome = tunnels.from_wire(sent)
        assert (outcome.action, outcome.reason.name if outcome.reason else "") == (REDIRECT, "TOO_BIG")
        assert outcome.frame[:12] == OUR_MAC + OUR_MAC, "back to where it came from"
        check_too_big(outcome.frame[14:], sent, source=LOCAL[version], mtu=MTU)

    @pytest.mark.parametrize("version", [4, 6])
    def test_a_pod_s_packet_for_the_other_node_itself(self, tunnels: World, version: int) -> None:
        sent = packet(
            f"udp {text_of(tunnels.a.address(version))}:4000 > {text_of(REMOTE[version])}:80", body=bytes(MTU)
        )
        outcome = tunnels.from_pod(tunnels.a, sent)
        assert (outcome.action, outcome.reason.name if outcome.reason else "") == (REDIRECT, "TOO_BIG")
        assert outcome.frame[:12] == tunnels.a.mac + OUR_MAC
        check_too_big(outcome.frame[14:], sent, source=LOCAL[version], mtu=MTU)

    @pytest.mark.parametrize("version", [4, 6])
    def test_no_error_about_an_error(self, tunnels: World, version: int) -> None:
        there = REMOTE[version]
        about = frames.icmp_error(version, frames.ip(there, str(tunnels.a.address(version)), UDP, frames.udp(1, 2)))
        sent = frames.ip(str(tunnels.a.address(version)), there, ICMP if version == 4 else 58, about + bytes(MTU))
        assert str(tunnels.from_pod(tunnels.a, sent)) == "drop TOO_BIG"

    def test_the_outer_packet_is_measured_too(self, tunnels: World) -> None:
        """The device's MTU is more than the uplink takes: nothing vanishes until `routing` has mended it."""
        run("ip", "-n", tunnels.netns, "link", "set", "am-vxlan", "mtu", "1480")
        try:
            sent = packet(f"udp {tunnels.a.address(4)}:4000 > {PODS['vxlan4', 4]}:80", body=bytes(1450 - 28 + 1))
            outcome = tunnels.from_pod(tunnels.a, sent)
            assert (outcome.action, outcome.reason.name if outcome.reason else "") == (REDIRECT, "TOO_BIG")
            check_too_big(outcome.frame[14:], sent, source=LOCAL[4], mtu=1450)
        finally:
            run("ip", "-n", tunnels.netns, "link", "set", "am-vxlan", "mtu", str(MTU))


def text_of(address: object) -> str:
    """An address as ports follow it."""
    return f"[{address}]" if ":" in str(address) else str(address)


def check_too_big(raw: bytes, about: bytes, *, source: str, mtu: int) -> None:
    """``raw`` is the ICMP error "packet too big" about a packet. Its sums are right, also when a card computes the
    transport checksum of what is quoted, as it would for a packet whose checksum was pending.
    """
    version = raw[0] >> 4
    head = 20 if version == 4 else 40
    source_at = 12 if version == 4 else 8
    size = 4 if version == 4 else 16
    assert str(ip_address(raw[source_at : source_at + size])) == source
    assert raw[source_at + size : source_at + 2 * size] == about[source_at : source_at + size]
    length = struct.unpack_from(">H", raw, 2 if version == 4 else 4)[0] + (0 if version == 4 else 40)
    assert length == len(raw)
    if version == 4:
        assert frames.checksum(raw[:20]) == 0
    icmp = raw[head:]
    assert (icmp[0], icmp[1]) == ((3, 4) if version == 4 else (2, 0))
    assert struct.unpack_from(">I", icmp, 4)[0] == mtu
    quoted = icmp[8:]
    protocol = about[9] if version == 4 else about[6]
    at = head + (16 if protocol == TCP else 6)
    assert quoted[:at] + quoted[at + 2 :] == about[:at] + about[at + 2 : len(quoted)]
    pseudo = b"" if version == 4 else raw[8:40] + struct.pack(">II", len(icmp), 58)
    assert frames.checksum(pseudo + icmp) == 0
    filled = bytearray(quoted)
    filled[at : at + 2] = struct.pack(">H", frames.checksum(bytes(quoted[head:])) or 0xFFFF)
    assert frames.checksum(pseudo + icmp[:8] + bytes(filled)) == 0


class TestEncrypted:
    @pytest.mark.parametrize("version", [4, 6])
    def test_nothing_for_another_node_s_pod_goes_out_in_the_clear(
        self, tunnels: World, devices: dict[str, int], version: int
    ) -> None:
        """Neither plain nor by a tunnel that does not encrypt, whoever sends it; what is for others goes on."""
        switch(tunnels, at.ConfigFlag.TUNNELS | ENCRYPT[version])
        plain = "10.244.2.7" if version == 4 else "fd00:10:244:2::7"
        a = str(tunnels.a.address(version))
        for there in (plain, PODS["vxlan4", version], REMOTE[version]):
            sent = frames.ip(a, there, UDP, frames.udp(4000, 80))
            assert str(tunnels.from_pod(tunnels.a, sent)) == "drop UNENCRYPTED", there
            assert str(tunnels.to_wire(sent, received_on=tunnels.a.ifindex)) == "drop UNENCRYPTED", there
        for there in (plain, PODS["vxlan4", version]):
            own = frames.ip(LOCAL[version], there, UDP, frames.udp(4000, 80))
            assert str(tunnels.to_wire(own)) == "drop UNENCRYPTED"
            assert str(on_device(tunnels, "to_tunnel", own, devices["vxlan4"])) == "drop UNENCRYPTED"
        for there in ("192.0.2.5" if version == 4 else "2001:db8::5", REMOTE[version]):
            own = frames.ip(LOCAL[version], there, UDP, frames.udp(4000, 80))
            assert str(tunnels.to_wire(own)) == "stack"
        local = frames.ip(a, str(tunnels.b.address(version)), UDP, frames.udp(4000, 80))
        assert str(tunnels.from_pod(tunnels.a, local)) == "redirect"

    @pytest.mark.parametrize("version", [4, 6])
    def test_a_wireguard_device_takes_it_as_it_is(self, tunnels: World, devices: dict[str, int], version: int) -> None:
        """A device of this kind in name: what it is given is the packet with a hop less."""
        key = at.LinkKey(ifindex=devices["vxlan4"])
        tunnel = tunnels.tables.tunnels.get(key)
        assert tunnel is not None
        tunnels.tables.tunnels.put(key, replace(tunnel, kind=TunnelKind.WIREGUARD))
        switch(tunnels, at.ConfigFlag.TUNNELS | ENCRYPT[version])
        for there in (PODS["vxlan4", version], REMOTE[version]):
            sent = frames.ip(str(tunnels.a.address(version)), there, UDP, frames.udp(4000, 80))
            outcome = tunnels.from_pod(tunnels.a, sent)
            assert (str(outcome), outcome.frame[14:]) == ("redirect", less_a_hop(sent))

    @pytest.mark.parametrize("version", [4, 6])
    def test_where_the_route_is_missing_the_kernel_s_prohibition_stands(self, tunnels: World, version: int) -> None:
        there = "10.244.9.0/24" if version == 4 else "fd00:10:244:9::/64"
        tunnels.know(there, 2009, at.PeerFlag.POD)
        family = f"-{version}"
        run("ip", "-n", tunnels.netns, family, "route", "add", "prohibit", there)
        routes_changed()
        try:
            to = "10.244.9.7" if version == 4 else "fd00:10:244:9::7"
            sent = frames.ip(str(tunnels.a.address(version)), to, UDP, frames.udp(4000, 80))
            assert str(tunnels.from_pod(tunnels.a, sent)) == "drop UNENCRYPTED"
        finally:
            run("ip", "-n", tunnels.netns, family, "route", "del", "prohibit", there)
            routes_changed()

    @pytest.mark.parametrize("version", [4, 6])
    def test_nothing_of_another_node_s_pod_comes_in_in_the_clear(self, tunnels: World, version: int) -> None:
        switch(tunnels, at.ConfigFlag.TUNNELS | REFUSE[version])
        b = str(tunnels.b.address(version))
        plain = "10.244.2.7" if version == 4 else "fd00:10:244:2::7"
        for to in (b, LOCAL[version]):
            sent = frames.ip(plain, to, UDP, frames.udp(4000, 80))
            assert str(tunnels.from_wire(sent)) == "drop UNENCRYPTED"
        assert str(tunnels.from_wire(wrapped("vxlan4", back(tunnels, "vxlan4", version)))) == "drop UNENCRYPTED"
        for source in (REMOTE[version], "192.0.2.5" if version == 4 else "2001:db8::5"):
            sent = frames.ip(source, b, UDP, frames.udp(4000, 80))
            assert str(tunnels.from_wire(sent)) == "redirect"

    @pytest.mark.parametrize("version", [4, 6])
    def test_an_api_server_s_machine_need_not_have_wireguard(
        self, tunnels: World, devices: dict[str, int], version: int
    ) -> None:
        """It is no node with pods; what it has is what the agent says of its address: no tunnel, or one."""
        switch(tunnels, at.ConfigFlag.TUNNELS | ENCRYPT[version])
        server = "172.30.0.2" if version == 4 else "fd00:172:30::2"
        tunnels.know(f"{server}/{32 if version == 4 else 128}", Reserved.KUBE_APISERVER)
        sent = frames.ip(str(tunnels.a.address(version)), server, TCP, frames.tcp(4000, 6443))
        key, peer = at.AddressKey(address=ip_address(server)), tl.TunnelPeer(node=9, mac=REMOTE_MAC)
        tunnels.tables.tunnel_peers.put(key, peer)
        assert str(tunnels.from_pod(tunnels.a, sent)) == "stack"
        assert str(tunnels.to_wire(sent, received_on=tunnels.a.ifindex)) == "stack"
        by = replace(peer, ifindex=devices["vxlan4"], outer=ip_address(REMOTE[4]))
        tunnels.tables.tunnel_peers.put(key, by)
        outcome = tunnels.from_pod(tunnels.a, sent)
        assert (str(outcome), read_outer(outcome.frame).inner) == ("redirect", less_a_hop(sent))

    def test_the_families_are_apart(self, tunnels: World) -> None:
        switch(tunnels, at.ConfigFlag.TUNNELS | ENCRYPT[6] | REFUSE[6])
        assert str(tunnels.from_pod(tunnels.a, to_pod(tunnels, "vxlan4", 4))) == "redirect"
        assert str(tunnels.from_wire(wrapped("vxlan4", back(tunnels, "vxlan4", 4)))) == "redirect"
