"""Services from outside, a packet at a time: there and back, for each kind of backend, in both families."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from proto.identity import Reserved
from proto.policy import Direction
from services.dataplane.core.datapath import nat_layout as nat
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.datapath.service_layout import ServiceFlag
from services.dataplane.core.doctor.masquerade import Denials, Denied
from tests.bpf import frames
from tests.bpf.frames import ACK, RST, SYN, TCP
from tests.bpf.frontends import PLAIN, PROTOCOLS, Names, answer, packet, port_of, read, sent, serve
from tests.bpf.world import PeerKind, World

pytestmark = pytest.mark.privileged

SECOND = 1_000_000_000
NEXT_HOP = frames.mac("02:bb:00:00:00:12")
FAMILIES = pytest.mark.parametrize("version", [4, 6])
BOTH = pytest.mark.parametrize("kind", ["tcp", "udp"])


@pytest.fixture
def n(version: int) -> Names:
    return Names(version)


@FAMILIES
@BOTH
class TestLocalBackend:
    def test_there_and_back(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.pod}:8080", protocol=PROTOCOLS[kind])
        there = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080"))
        assert (str(there), sent(there)) == ("redirect", f"{kind} {n.client}:4000 > {n.pod}:8080")
        assert there.frame[:6] == world.b.mac
        back = world.from_pod(world.b, packet(f"{kind} {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK))
        assert (str(back), sent(back)) == ("redirect", f"{kind} {n.node}:30080 > {n.client}:4000")
        assert back.frame[:6] == NEXT_HOP
        assert read(back.frame[14:]).ttl == 63

    def test_policy_sees_the_client_itself(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.pod}:8080", protocol=PROTOCOLS[kind])
        world.isolate(world.b.identity, ingress=True)
        world.cidr("192.0.2.0/24" if n.version == 4 else "2001:db8::/64", 5)
        world.rule(world.b, Direction.INGRESS, PeerKind.CIDR_SET, 5, protocol=PROTOCOLS[kind], port=8080, bits=16)
        assert str(world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080"))) == "redirect"
        denied = world.from_wire(packet(f"{kind} {n.other}:4000 > {n.node}:30080"))
        assert str(denied) == "drop POLICY_DENIED"
        assert denied.event is not None
        assert (denied.event.peer, denied.event.destination_port) == (Reserved.REMOTE_NODE, 8080)

    def test_a_translated_packet_of_another_node_that_is_denied_is_known_as_one(
        self, world: World, n: Names, kind: str
    ) -> None:
        world.isolate(world.b.identity, ingress=True)
        denials, events = Denials(), list[Event]()
        for port in (4000, nat.FIRST_PORT):
            denied = world.from_wire(packet(f"{kind} {n.other}:{port} > {n.pod}:8080"))
            assert str(denied) == "drop POLICY_DENIED"
            events += [] if denied.event is None else [denied.event]
        denials.take(events)
        key = Denied(
            endpoint=events[-1].endpoint,
            source=ip_address(n.other.strip("[]")),
            protocol=PROTOCOLS[kind],
            port=8080,
        )
        assert denials.now(events[-1].time) == {key: 1}, "what the node sends of its own is none"

    def test_a_pod_elsewhere_is_a_client_like_any_other(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.pod}:8080", protocol=PROTOCOLS[kind])
        there = world.from_wire(packet(f"{kind} {n.away}:4000 > {n.node}:30080"))
        assert sent(there) == f"{kind} {n.away}:4000 > {n.pod}:8080"
        back = world.from_pod(world.b, packet(f"{kind} {n.pod}:8080 > {n.away}:4000", flags=SYN | ACK))
        assert (str(back), sent(back)) == ("redirect", f"{kind} {n.node}:30080 > {n.away}:4000")

    def test_directly_and_by_the_frontend_from_the_same_port(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.pod}:8080", protocol=PROTOCOLS[kind])
        answers = packet(f"{kind} {n.pod}:8080 > {n.away}:4000", flags=ACK)
        world.from_wire(packet(f"{kind} {n.away}:4000 > {n.node}:30080"))
        assert sent(world.from_pod(world.b, answers)) == f"{kind} {n.node}:30080 > {n.away}:4000"
        world.from_wire(packet(f"{kind} {n.away}:4000 > {n.pod}:8080"))
        assert sent(world.from_pod(world.b, answers)) == f"{kind} {n.pod}:8080 > {n.away}:4000"
        world.from_wire(packet(f"{kind} {n.away}:4000 > {n.node}:30080", flags=ACK))
        assert sent(world.from_pod(world.b, answers)) == f"{kind} {n.node}:30080 > {n.away}:4000"

    def test_two_frontends_and_one_client_port_are_kept_apart(self, world: World, n: Names, kind: str) -> None:
        for number, port in ((7, 30080), (8, 30081)):
            serve(world, f"{n.node}:{port}", f"{n.pod}:8080", protocol=PROTOCOLS[kind], number=number)
        first = sent(world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080")))
        second = sent(world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30081")))
        assert first == f"{kind} {n.client}:4000 > {n.pod}:8080"
        assert nat.FIRST_PORT <= port_of(second, 0) <= nat.LAST_PORT
        for text, port in ((first, 30080), (second, 30081)):
            back = world.from_pod(world.b, packet(answer(text), flags=SYN | ACK))
            assert sent(back) == f"{kind} {n.node}:{port} > {n.client}:4000"


@FAMILIES
@BOTH
class TestBackendElsewhere:
    @pytest.mark.parametrize("where", ["away", "other"])
    def test_there_and_back(self, world: World, n: Names, kind: str, where: str) -> None:
        backend = getattr(n, where)
        serve(world, f"{n.node}:30080", f"{backend}:8080", protocol=PROTOCOLS[kind])
        there = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080"))
        text = sent(there)
        port = port_of(text, 0)
        assert (str(there), text) == ("redirect", f"{kind} {n.node}:{port} > {backend}:8080")
        assert nat.FIRST_PORT <= port <= nat.LAST_PORT
        assert there.frame[:6] == NEXT_HOP
        assert read(there.frame[14:]).ttl == 63
        back = world.from_wire(packet(answer(text), flags=SYN | ACK))
        assert (str(back), sent(back)) == ("redirect", f"{kind} {n.node}:30080 > {n.client}:4000")
        again = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080", flags=ACK))
        assert sent(again) == text

    def test_address_that_is_not_the_nodes(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.vip}:80", f"{n.away}:8080", protocol=PROTOCOLS[kind], flags=ServiceFlag.FOREIGN)
        text = sent(world.from_wire(packet(f"{kind} {n.client}:4000 > {n.vip}:80")))
        assert text == f"{kind} {n.node}:{port_of(text, 0)} > {n.away}:8080"
        back = world.from_wire(packet(answer(text), flags=SYN | ACK))
        assert sent(back) == f"{kind} {n.vip}:80 > {n.client}:4000"
        world.tables.speak_as(())
        refused = world.from_wire(packet(f"{kind} {n.client}:4001 > {n.vip}:80"))
        assert str(refused) == "drop SERVICE_NO_SOURCE"

    def test_unknown_neighbour_is_asked_for(self, world: World, n: Names, kind: str) -> None:
        backend = "10.244.2.200" if n.version == 4 else "[fd00:172:30::77]"
        serve(world, f"{n.node}:30080", f"{backend}:8080", protocol=PROTOCOLS[kind])
        there = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080"))
        assert str(there) == "redirect"
        assert read(there.frame[14:]).ttl == 63

    def test_no_way(self, world: World, n: Names, kind: str) -> None:
        backend = "198.51.100.1" if n.version == 4 else "[2001:db8:1::1]"
        serve(world, f"{n.node}:30080", f"{backend}:8080", protocol=PROTOCOLS[kind])
        assert str(world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080"))) == "drop NO_ROUTE"

    def test_last_hop(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.away}:8080", protocol=PROTOCOLS[kind])
        dying = packet(f"{kind} {n.client}:4000 > {n.node}:30080", ttl=1)
        assert str(world.from_wire(dying)) == "drop TTL_EXCEEDED"

    def test_ports_are_each_a_flows_own(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.away}:8080", protocol=PROTOCOLS[kind])
        texts = [sent(world.from_wire(packet(f"{kind} {n.client}:{p} > {n.node}:30080"))) for p in range(1, 301)]
        assert len({port_of(text, 0) for text in texts}) == 300
        for client_port, text in enumerate(texts, 1):
            back = sent(world.from_wire(packet(answer(text), flags=ACK)))
            assert back == f"{kind} {n.node}:30080 > {n.client}:{client_port}"

    def test_a_stranger_on_such_a_port_is_the_stacks(self, world: World, n: Names, kind: str) -> None:
        assert str(world.from_wire(packet(f"{kind} {n.client}:8080 > {n.node}:62000", flags=ACK))) == "stack"


@FAMILIES
@BOTH
class TestNodeBackend:
    def test_there_and_back(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.node}:8080", protocol=PROTOCOLS[kind])
        there = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080"))
        assert (str(there), sent(there)) == ("stack", f"{kind} {n.client}:4000 > {n.node}:8080")
        answers = packet(f"{kind} {n.node}:8080 > {n.client}:4000", flags=SYN | ACK)
        back = world.to_wire(answers)
        assert (str(back), sent(back)) == ("stack", f"{kind} {n.node}:30080 > {n.client}:4000")
        forwarded = world.to_wire(answers, received_on=world.a.ifindex)
        assert sent(forwarded) == answer(f"{kind} {n.client}:4000 > {n.node}:8080")

    def test_everything_else_goes_out_as_it_is(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:30080", f"{n.node}:8080", protocol=PROTOCOLS[kind])
        world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:30080"))
        for text in (f"{kind} {n.node}:8080 > {n.client}:4001", f"{kind} {n.node}:33000 > {n.client}:80"):
            outcome = world.to_wire(packet(text, flags=ACK))
            assert (str(outcome), sent(outcome)) == ("stack", text)

    def test_frontend_that_is_its_own_backend(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.node}:8080", f"{n.node}:8080", protocol=PROTOCOLS[kind])
        assert str(world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:8080"))) == "stack"
        assert world.tables.nats.items() == {}


@FAMILIES
class TestNobody:
    FRONTENDS = (
        # flags, front -> outcome
        (PLAIN, "node", "stack"),
        (ServiceFlag.LOCAL_ONLY, "node", "drop SERVICE_NO_LOCAL_BACKEND"),
        (ServiceFlag.FOREIGN | ServiceFlag.LOCAL_ONLY, "vip", "drop SERVICE_NO_LOCAL_BACKEND"),
    )

    @pytest.mark.parametrize(("flags", "frontend", "outcome"), FRONTENDS)
    def test_no_backends(self, world: World, n: Names, flags: ServiceFlag, frontend: str, outcome: str) -> None:
        serve(world, f"{getattr(n, frontend)}:80", flags=flags)
        assert str(world.from_wire(packet(f"tcp {n.client}:4000 > {getattr(n, frontend)}:80"))) == outcome

    @BOTH
    def test_address_that_is_not_the_nodes_is_refused_by_its_stack(self, world: World, n: Names, kind: str) -> None:
        serve(world, f"{n.vip}:80", protocol=PROTOCOLS[kind], flags=ServiceFlag.FOREIGN)
        there = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.vip}:80"))
        assert (str(there), sent(there)) == ("stack SERVICE_NO_BACKEND", f"{kind} {n.client}:4000 > {n.node}:0")
        back = world.to_wire(packet(f"{kind} {n.node}:0 > {n.client}:4000", flags=RST | ACK))
        assert sent(back) == f"{kind} {n.vip}:80 > {n.client}:4000"
        serve(world, f"{n.vip}:80", f"{n.pod}:8080", protocol=PROTOCOLS[kind], flags=ServiceFlag.FOREIGN)
        again = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.vip}:80"))
        assert sent(again) == f"{kind} {n.client}:4000 > {n.pod}:8080"
        world.tables.speak_as(())
        serve(world, f"{n.vip}:80", protocol=PROTOCOLS[kind], flags=ServiceFlag.FOREIGN)
        assert str(world.from_wire(packet(f"{kind} {n.client}:4001 > {n.vip}:80"))) == "drop SERVICE_NO_BACKEND"

    def test_local_only_never_leaves_the_node(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.away}:8080", flags=ServiceFlag.LOCAL_ONLY)
        outcome = world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80"))
        assert str(outcome) == "drop SERVICE_NO_LOCAL_BACKEND"
        serve(world, f"{n.node}:80", f"{n.pod}:8080", flags=ServiceFlag.LOCAL_ONLY)
        there = world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80"))
        assert sent(there) == f"tcp {n.client}:4000 > {n.pod}:8080"

    def test_other_ports_protocols_and_sockets_services(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        key = lb.ServiceKey(address=ip_address(n.node.strip("[]")), port=81, protocol=TCP)
        world.tables.services.put(key, lb.Service(number=7, backends=1))
        for text in ("tcp {c}:4000 > {n}:81", "udp {c}:4000 > {n}:80", "tcp {c}:4000 > {n}:8080"):
            outcome = world.from_wire(packet(text.format(c=n.client, n=n.node)))
            assert str(outcome) == "stack"

    def test_frame_for_another_mac_is_nobodys(self, world: World, n: Names) -> None:
        serve(world, f"{n.vip}:80", f"{n.pod}:8080", flags=ServiceFlag.FOREIGN)
        raw = frames.eth(
            packet(f"tcp {n.client}:4000 > {n.vip}:80"), source=NEXT_HOP, destination=frames.mac("02:00:00:00:00:09"),
            kind=0x0800 if n.version == 4 else 0x86DD,
        )  # fmt: skip
        assert str(world._run("from_wire", raw, world.wire, world.wire)) == "stack"
        assert world.tables.nats.items() == {}


@FAMILIES
class TestSourceRanges:
    def test_only_who_is_named(self, world: World, n: Names) -> None:
        ranges = ("192.0.2.0/25",) if n.version == 4 else ("2001:db8::/96",)
        serve(world, f"{n.vip}:80", f"{n.pod}:8080", flags=ServiceFlag.FOREIGN, ranges=ranges)
        assert str(world.from_wire(packet(f"tcp {n.client}:4000 > {n.vip}:80"))) == "redirect"
        stranger = "192.0.2.200" if n.version == 4 else "[2001:db8::1:0:5]"
        assert str(world.from_wire(packet(f"tcp {stranger}:4000 > {n.vip}:80"))) == "drop SERVICE_SOURCE"
        world.tables.source_ranges.apply({}, list(world.tables.source_ranges.items()))
        late = packet(f"tcp {n.client}:4000 > {n.vip}:80", flags=ACK)
        assert str(world.from_wire(late)) == "drop SERVICE_SOURCE"

    def test_another_services_ranges_do_not_count(self, world: World, n: Names) -> None:
        everyone = ("0.0.0.0/0",) if n.version == 4 else ("::/0",)
        serve(world, f"{n.vip}:80", f"{n.pod}:8080", ranges=everyone, number=8)
        serve(world, f"{n.vip}:81", f"{n.pod}:8080", ranges=("198.51.100.0/24",), number=9)
        assert str(world.from_wire(packet(f"tcp {n.client}:4000 > {n.vip}:80"))) == "redirect"
        assert str(world.from_wire(packet(f"tcp {n.client}:4000 > {n.vip}:81"))) == "drop SERVICE_SOURCE"


@FAMILIES
class TestAffinity:
    def chosen(self, world: World, n: Names, sport: int, client: str = "") -> str:
        return sent(world.from_wire(packet(f"tcp {client or n.client}:{sport} > {n.node}:80"))).split("> ")[1]

    def test_a_client_keeps_its_backend(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080", f"{n.second}:8080", affinity=100)
        first = self.chosen(world, n, 1)
        assert {self.chosen(world, n, sport) for sport in range(2, 40)} == {first}
        others = [f"192.0.2.{i}" if n.version == 4 else f"[2001:db8::{i}]" for i in range(6, 40)]
        assert len({self.chosen(world, n, 1, other) for other in others}) == 2

    def test_without_it_all_serve(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080", f"{n.second}:8080")
        assert len({self.chosen(world, n, sport) for sport in range(1, 40)}) == 2

    def test_not_a_backend_that_left_and_not_for_ever(self, world: World, n: Names) -> None:
        both = [f"{n.pod}:8080", f"{n.second}:8080"]
        serve(world, f"{n.node}:80", *both, affinity=100)
        first = self.chosen(world, n, 1)
        both.remove(first)
        serve(world, f"{n.node}:80", *both, affinity=100)
        assert {self.chosen(world, n, sport) for sport in range(2, 20)} == set(both)
        serve(world, f"{n.node}:80", f"{n.pod}:8080", f"{n.second}:8080", affinity=100)
        for seconds, backend in ((99, both[0]), (101, first)):
            had = world.tables.clients.items()
            past = time.monotonic_ns() - seconds * SECOND
            world.tables.clients.apply({key: replace(value, last=past) for key, value in had.items()})
            assert self.chosen(world, n, 100 * seconds) == backend, "then it chooses as it did at first"
