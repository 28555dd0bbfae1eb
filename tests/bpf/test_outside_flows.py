"""Flows from outside while they live: backends that leave, lost halves, errors, fragments, and whose they are."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from proto.policy import Direction
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import nat_layout as nat
from tests.bpf import frames
from tests.bpf.frames import ACK, FIN, RST, SYN, UDP
from tests.bpf.frontends import PROTOCOLS, Names, answer, error, packet, read, sent, serve
from tests.bpf.world import World

pytestmark = pytest.mark.privileged

SECOND = 1_000_000_000
FAMILIES = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def n(version: int) -> Names:
    return Names(version)


@FAMILIES
class TestExpiry:
    def from_client(self, world: World, n: Names, kind: str = "tcp", *, flags: int = SYN) -> str:
        return sent(world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:80", flags=flags)))

    def test_tcp_stays_with_a_backend_that_left(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        self.from_client(world, n)
        world.from_pod(world.b, packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK))
        serve(world, f"{n.node}:80", f"{n.second}:8080")
        assert self.from_client(world, n, flags=ACK).endswith(f"{n.pod}:8080")
        serve(world, f"{n.node}:80")
        assert self.from_client(world, n, flags=ACK).endswith(f"{n.pod}:8080")
        world.tables.services.apply({}, list(world.tables.services.items()))
        assert self.from_client(world, n, flags=ACK).endswith(f"{n.pod}:8080")
        back = world.from_pod(world.b, packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=ACK))
        assert sent(back) == f"tcp {n.node}:80 > {n.client}:4000"

    @pytest.mark.parametrize("last", [FIN | ACK, RST])
    def test_a_new_connection_on_a_finished_one_chooses_again(self, world: World, n: Names, last: int) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        self.from_client(world, n)
        world.from_pod(world.b, packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK))
        serve(world, f"{n.node}:80", f"{n.second}:8080")
        assert self.from_client(world, n).endswith(f"{n.pod}:8080"), "a SYN on a live flow is a late one"
        self.from_client(world, n, flags=last)
        assert self.from_client(world, n).endswith(f"{n.second}:8080")
        assert len(world.tables.nats.items()) == 2

    def test_first_packet_sent_again_to_a_backend_that_left(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080", f"{n.second}:8080")
        first = {self.from_client(world, n) for _ in range(8)}
        assert len(first) == 1
        left = first.pop().split("> ")[1]
        stays = ({f"{n.pod}:8080", f"{n.second}:8080"} - {left}).pop()
        serve(world, f"{n.node}:80", stays)
        assert self.from_client(world, n).endswith(stays)

    def test_udp_leaves_a_backend_that_left(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080", f"{n.second}:8080", protocol=UDP)
        first = {self.from_client(world, n, "udp") for _ in range(8)}
        assert len(first) == 1
        left = first.pop().split("> ")[1]
        stays = ({f"{n.pod}:8080", f"{n.second}:8080"} - {left}).pop()
        serve(world, f"{n.node}:80", stays, protocol=UDP)
        assert self.from_client(world, n, "udp").endswith(stays)

    def test_udp_after_a_long_silence_chooses_again(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.away}:8080", protocol=UDP)
        first = self.from_client(world, n, "udp")
        self.grow_old(world, 29)
        assert self.from_client(world, n, "udp") == first
        self.grow_old(world, 31)
        ports = set()
        for _ in range(3):
            ports.add(self.from_client(world, n, "udp"))
            self.grow_old(world, 31)
        assert len(ports | {first}) > 1

    def grow_old(self, world: World, seconds: int) -> None:
        now = time.monotonic_ns()
        entries = world.tables.nats.items()
        world.tables.nats.apply({k: replace(v, last_seen=now - seconds * SECOND) for k, v in entries.items()})

    def test_pod_that_is_gone_and_its_address_anothers(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        self.from_client(world, n)
        key = at.AddressKey(address=world.b.address(n.version))
        now = world.tables.endpoints.get(key)
        assert now is not None
        world.tables.endpoints.put(key, replace(now, endpoint=99))
        world.tables.set_budget(99, 10)
        serve(world, f"{n.node}:80", f"{n.second}:8080")
        assert self.from_client(world, n, flags=ACK).endswith(f"{n.second}:8080")

    def test_either_half_brings_the_other_back(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        self.from_client(world, n)
        whole = world.tables.nats.items()
        answers = packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK)
        for key in whole:
            world.tables.nats.remove(key)
            if key.hook == nat.Hook.POD:
                self.from_client(world, n, flags=ACK)
            else:
                assert sent(world.from_pod(world.b, answers)) == f"tcp {n.node}:80 > {n.client}:4000"
            assert world.tables.nats.items().keys() == whole.keys()

    def test_halves_that_disagree_are_no_flow(self, world: World, n: Names) -> None:
        """The port went to another client meanwhile: neither may speak through it for this one."""
        serve(world, f"{n.node}:80", f"{n.away}:8080")
        text = self.from_client(world, n)
        key, back = next((k, v) for k, v in world.tables.nats.items().items() if v.is_back)
        anothers = replace(back, destination_port=9)
        world.tables.nats.put(key, anothers)
        assert self.from_client(world, n, flags=ACK) != text
        assert world.tables.nats.get(key) == anothers
        mine = nat.NatKey(
            source=back.destination, destination=back.source, source_port=back.destination_port,
            destination_port=back.source_port, protocol=key.protocol, hook=nat.Hook.WIRE,
        )  # fmt: skip
        world.tables.nats.put(key, back)
        assert world.tables.nats.get(mine) is not None
        assert str(world.from_wire(packet(answer(text), flags=RST))) == "stack"

    def test_a_finished_flows_port_is_given_again(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.away}:8080")
        text = self.from_client(world, n)
        key, one = next((k, v) for k, v in world.tables.nats.items().items() if v.is_back)
        over = replace(one, last_seen=time.monotonic_ns() - 11 * SECOND, period=10, destination_port=9)
        every = {replace(key, destination_port=port): over for port in range(nat.FIRST_PORT, nat.LAST_PORT + 1)}
        world.tables.nats.apply(every)
        again = sent(world.from_wire(packet(f"tcp {n.client}:4001 > {n.node}:80")))
        assert again.endswith(f"{n.away}:8080")
        young = replace(over, last_seen=time.monotonic_ns(), seen=at.Seen.REPLY | at.Seen.ESTABLISHED)
        world.tables.nats.apply(dict.fromkeys(every, young))
        assert str(world.from_wire(packet(f"tcp {n.client}:4002 > {n.node}:80"))) == "drop SERVICE_NO_SOURCE"
        half_open = replace(young, seen=at.Seen.SYN | at.Seen.REPLY, period=60)
        world.tables.nats.apply(dict.fromkeys(every, half_open))
        assert sent(world.from_wire(packet(f"tcp {n.client}:4003 > {n.node}:80"))).endswith(f"{n.away}:8080")
        assert text.endswith(f"{n.away}:8080")


@FAMILIES
class TestErrors:
    @pytest.mark.parametrize("kind", ["tcp", "udp"])
    @pytest.mark.parametrize("keep", [28, 64, 200])
    def test_too_big_on_the_way_to_a_backend(self, world: World, n: Names, kind: str, keep: int) -> None:
        keep += 20 * (n.version == 6)
        serve(world, f"{n.node}:80", f"{n.away}:8080", protocol=PROTOCOLS[kind])
        there = world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:80", body=bytes(range(100))))
        router = "172.30.0.12" if n.version == 4 else "fd00:172:30::12"
        outcome = world.from_wire(error(router, there.frame[14:], keep=keep))
        client = n.client.strip("[]")
        assert (str(outcome), sent(outcome)) == (
            "redirect", f"icmp {n.node.strip('[]')} > {client} ({kind} {n.client}:4000 > {n.node}:80)",
        )  # fmt: skip

    @pytest.mark.parametrize("kind", ["tcp", "udp"])
    def test_too_big_on_the_way_to_the_client(self, world: World, n: Names, kind: str) -> None:
        router = "192.0.2.1" if n.version == 4 else "2001:db8::1"
        pod = n.pod.strip("[]")
        serve(world, f"{n.node}:80", f"{n.pod}:8080", protocol=PROTOCOLS[kind])
        world.from_wire(packet(f"{kind} {n.client}:4000 > {n.node}:80"))
        back = world.from_pod(world.b, packet(f"{kind} {n.pod}:8080 > {n.client}:4000", flags=ACK))
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, Direction.INGRESS, protocol=PROTOCOLS[kind])
        outcome = world.from_wire(error(router, back.frame[14:]))
        assert (str(outcome), sent(outcome)) == (
            "redirect", f"icmp {router} > {pod} ({kind} {n.pod}:8080 > {n.client}:4000)",
        )  # fmt: skip

    def test_too_big_about_a_fragment(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080", protocol=UDP)
        world.from_wire(packet(f"udp {n.client}:4000 > {n.node}:80"))
        one, other = ip_address(n.node.strip("[]")), ip_address(n.client.strip("[]"))
        body = frames.udp(80, 4000, bytes(96))
        for offset in (0, 104):
            if n.version == 4:
                about = frames.ip(one, other, UDP, body, frag=0x2000 | offset // 8)
            else:
                about = frames.ip(one, other, 44, frames.fragment6(UDP, offset=offset, more=True, ident=1) + body)
            outcome = world.from_wire(error(str(other), about, keep=56))
            assert str(outcome) == ("stack" if offset else "redirect"), "a later fragment has no ports"

    def test_too_big_for_an_answer_from_elsewhere(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.away}:8080")
        text = sent(world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80")))
        back = world.from_wire(packet(answer(text), flags=ACK))
        outcome = world.from_wire(error(n.client.strip("[]"), back.frame[14:]))
        assert (str(outcome), sent(outcome)) == (
            "redirect", f"icmp {n.node.strip('[]')} > {n.away.strip('[]')} ({answer(text)})",
        )  # fmt: skip

    def test_nobody_listens_in_the_pod(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080", protocol=UDP)
        there = world.from_wire(packet(f"udp {n.client}:4000 > {n.node}:80"))
        refusal = error(n.pod.strip("[]"), there.frame[14:], kind=(3, 3) if n.version == 4 else (1, 4))
        outcome = world.from_pod(world.b, refusal)
        assert (str(outcome), sent(outcome)) == (
            "redirect", f"icmp {n.node.strip('[]')} > {n.client.strip('[]')} (udp {n.client}:4000 > {n.node}:80)",
        )  # fmt: skip

    def test_nobody_listens_on_the_node(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.node}:8080", protocol=UDP)
        there = world.from_wire(packet(f"udp {n.client}:4000 > {n.node}:80"))
        refusal = error(n.node.strip("[]"), there.frame[14:], kind=(3, 3) if n.version == 4 else (1, 4))
        outcome = world.to_wire(refusal)
        assert (str(outcome), sent(outcome)) == (
            "stack", f"icmp {n.node.strip('[]')} > {n.client.strip('[]')} (udp {n.client}:4000 > {n.node}:80)",
        )  # fmt: skip

    def test_about_no_flow_of_ours(self, world: World, n: Names) -> None:
        about = packet(f"tcp {n.node}:33000 > {n.client}:80")
        raw = error(n.client.strip("[]"), about)
        outcome = world.from_wire(raw)
        assert (str(outcome), outcome.frame[14:]) == ("stack", raw)


class TestUnsummed:
    @pytest.mark.parametrize("backend", ["10.244.1.2:8080", "10.244.2.7:8080", "172.30.0.11:8080"])
    def test_udp_without_a_checksum_stays_so(self, world: World, backend: str) -> None:
        serve(world, "172.30.0.11:80", backend, protocol=UDP)
        outcome = world.from_wire(packet("udp 192.0.2.5:4000 > 172.30.0.11:80", unsummed=True))
        assert outcome.frame[14 + 26 : 14 + 28] == b"\0\0"
        assert sent(outcome).endswith(backend)


@FAMILIES
class TestFragments:
    def pieces(self, n: Names) -> tuple[bytes, bytes]:
        whole = packet(f"udp {n.client}:4000 > {n.node}:80", body=bytes(range(200)))
        one, other = ip_address(n.client.strip("[]")), ip_address(n.node.strip("[]"))
        body = whole[20:] if n.version == 4 else whole[40:]
        if n.version == 4:
            return (
                frames.ip(one, other, UDP, body[:104], frag=0x2000, ident=9),
                frames.ip(one, other, UDP, body[104:], frag=13, ident=9),
            )
        first, last = (frames.fragment6(UDP, offset=o, more=not o, ident=9) for o in (0, 104))
        return frames.ip(one, other, 44, first + body[:104]), frames.ip(one, other, 44, last + body[104:])

    def joined(self, n: Names, one: bytes, other: bytes) -> bytes:
        head, skip = (20, 20) if n.version == 4 else (40, 48)
        body = one[14 + skip :] + other[14 + skip :]
        size = 4 if n.version == 4 else 16
        addresses = one[14 + head - 2 * size : 14 + head]
        assert addresses == other[14 + head - 2 * size : 14 + head]
        return frames.ip(ip_address(addresses[:size]), ip_address(addresses[size:]), UDP, body)

    @pytest.mark.parametrize("where", ["pod", "away"])
    def test_all_pieces_go_to_one_backend(self, world: World, n: Names, where: str) -> None:
        serve(world, f"{n.node}:80", f"{getattr(n, where)}:8080", protocol=UDP)
        outcomes = [world.from_wire(piece) for piece in self.pieces(n)]
        assert [str(outcome) for outcome in outcomes] == ["redirect", "redirect"]
        for outcome in outcomes:
            if n.version == 4:
                assert frames.checksum(outcome.frame[14:34]) == 0
        together = read(self.joined(n, outcomes[0].frame, outcomes[1].frame))
        assert together.text.endswith(f"{getattr(n, where)}:8080")
        assert together.payload == bytes(range(200))


@FAMILIES
class TestInNobodyElsesName:
    def test_another_pods_flow_is_not_its_own(self, world: World, n: Names) -> None:
        """The entry of a flow is no way out for a pod that merely has the address now."""
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80"))
        answers = packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK)
        for key, entry in world.tables.nats.items().items():
            world.tables.nats.put(key, replace(entry, endpoint=entry.endpoint + 40))
        assert str(world.from_pod(world.b, answers)) == "drop TRANSLATION_UNKNOWN"

    def test_translation_does_not_spare_policy(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80"))
        for flow in world.tables.flows.items():
            world.tables.flows.remove(flow)
        world.isolate(world.b.identity, egress=True)
        answers = packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK)
        assert str(world.from_pod(world.b, answers)) == "drop POLICY_DENIED"

    def test_a_pods_own_connection_is_not_translated(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.away}:8080")
        text = sent(world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80")))
        assert world.from_pod(world.b, packet(f"tcp {n.pod}:8080 > {n.away}:8080")).action == 7
        assert str(world.from_pod(world.b, packet(answer(text)))) == "drop SPOOFED_ADDRESS"

    def test_right_taken_away_ends_a_translated_flow(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80"))
        world.isolate(world.b.identity, ingress=True)
        world.tables.bump_generation()
        answers = packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK)
        assert str(world.from_pod(world.b, answers)) == "drop POLICY_REVOKED"
        assert str(world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80", flags=ACK))) == "drop POLICY_REVOKED"

    def test_local_sources_stay_outside(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        for source in (n.node, n.second):
            assert str(world.from_wire(packet(f"tcp {source}:4000 > {n.node}:80"))) == "drop SPOOFED_ADDRESS"
