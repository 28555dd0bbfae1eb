"""Policy on packets: who may talk to whom, for IPv4 and IPv6, first packet and later ones."""

from __future__ import annotations

from typing import Any

import pytest

from proto.flow import DropReason
from proto.identity import Reserved
from proto.policy import Direction, Verdict
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from tests.bpf import frames
from tests.bpf.frames import ACK, FIN, RST, SCTP, SYN, TCP, UDP
from tests.bpf.world import OK, REDIRECT, SHOT, PeerKind, Pod, World, empty, scope_number

pytestmark = pytest.mark.privileged

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
ANY, IDENTITY, CIDR = PeerKind.ANY, PeerKind.IDENTITY, PeerKind.CIDR_SET
REMOTE = {4: "10.244.2.7", 6: "fd00:10:244:2::7"}
WORLD = {4: "192.0.2.5", 6: "2001:db8::5"}
NODE = {4: "172.30.0.11", 6: "fd00:172:30::11"}
FAMILIES = pytest.mark.parametrize("version", [4, 6])


def syn(
    source: object, destination: object, dport: int = 80, *, sport: int = 4000, flags: int = SYN, **more: Any
) -> bytes:
    return frames.ip(str(source), str(destination), TCP, frames.tcp(sport, dport, flags, **more))


def a_to_b(world: World, version: int, dport: int = 80, **more: Any) -> bytes:
    return syn(world.a.address(version), world.b.address(version), dport, **more)


def b_to_a(world: World, version: int, sport: int = 80, *, flags: int = SYN | ACK, **more: Any) -> bytes:
    return syn(world.b.address(version), world.a.address(version), 4000, sport=sport, flags=flags, **more)


@FAMILIES
class TestUnknown:
    def test_subject_without_rules_may_send_nothing(self, world: World, version: int) -> None:
        world.tables.subjects.remove(pl.SubjectKey(identity=world.a.identity))
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "drop POLICY_UNKNOWN"

    def test_subject_without_rules_may_receive_nothing(self, world: World, version: int) -> None:
        world.tables.subjects.remove(pl.SubjectKey(identity=world.b.identity))
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "drop POLICY_UNKNOWN"
        assert str(world.from_wire(syn(REMOTE[version], world.b.address(version)))) == "drop POLICY_UNKNOWN"
        assert str(world.to_pod(world.b, syn(WORLD[version], world.b.address(version)), received_on=world.wire)) == (
            "drop POLICY_UNKNOWN"
        )

    def test_rules_without_a_subject_entry_allow_nothing(self, world: World, version: int) -> None:
        world.rule(world.b, INGRESS)
        world.tables.subjects.remove(pl.SubjectKey(identity=world.b.identity))
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "drop POLICY_UNKNOWN"

    def test_link_without_a_pod_is_silent(self, world: World, version: int) -> None:
        world.tables.links.remove(at.LinkKey(ifindex=world.a.ifindex))
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "drop LINK_UNKNOWN"
        assert str(world.to_pod(world.a, b_to_a(world, version))) == "drop LINK_UNKNOWN"


@FAMILIES
class TestNotIsolated:
    def test_local_pod_is_reached_past_the_stack(self, world: World, version: int) -> None:
        outcome = world.from_pod(world.a, a_to_b(world, version))
        assert str(outcome) == "redirect"
        assert outcome.frame[:6] == world.b.mac

    def test_remote_pod_is_reached_by_the_fast_path(self, world: World, version: int) -> None:
        outcome = world.from_pod(world.a, syn(world.a.address(version), REMOTE[version]))
        assert str(outcome) == "redirect"
        assert outcome.frame[:6] == frames.mac("02:bb:00:00:00:12")
        assert outcome.frame[14 + (8 if version == 4 else 7)] == 63
        if version == 4:
            assert frames.checksum(outcome.frame[14:34]) == 0

    def test_hop_leaves_every_checksum_right(self, world: World, version: int) -> None:
        """One less to live adds 0x100: also where that runs over."""
        for ident in range(0, 1 << 16, 251) if version == 4 else ():
            packet = frames.ip(str(world.a.address(4)), REMOTE[4], TCP, frames.tcp(4000, 80), ident=ident)
            assert frames.checksum(world.from_pod(world.a, packet).frame[14:34]) == 0, f"{ident:04x}"

    def test_world_goes_up_to_the_stack(self, world: World, version: int) -> None:
        assert str(world.from_pod(world.a, syn(world.a.address(version), WORLD[version]))) == "stack"

    def test_node_goes_up_to_the_stack(self, world: World, version: int) -> None:
        assert str(world.from_pod(world.a, syn(world.a.address(version), NODE[version]))) == "stack"

    def test_from_wire(self, world: World, version: int) -> None:
        outcome = world.from_wire(syn(REMOTE[version], world.b.address(version)))
        assert str(outcome) == "redirect"
        assert outcome.frame[:6] == world.b.mac

    def test_expired_packet_is_the_stacks_to_answer(self, world: World, version: int) -> None:
        ttl = {"ttl": 1} if version == 4 else {"hops": 1}
        packet = frames.ip(world.a.address(version), REMOTE[version], TCP, frames.tcp(1, 2), **ttl)
        assert str(world.from_pod(world.a, packet)) == "stack"


def test_no_neighbour_is_the_stacks_to_find(world: World) -> None:
    assert str(world.from_pod(world.a, syn(world.a.address4, "10.244.2.200"))) == "stack"


# subject b isolated for ingress; one line; what then passes from a to b
LINES = [
    # peer kind, peer, protocol, port, bits | packet protocol, port | passes
    pytest.param(IDENTITY, "a", 0, 0, 0, TCP, 80, True, id="identity, anything"),
    pytest.param(IDENTITY, "b", 0, 0, 0, TCP, 80, False, id="another identity"),
    pytest.param(ANY, "", 0, 0, 0, UDP, 53, True, id="anyone, anything"),
    pytest.param(ANY, "", TCP, 0, 0, TCP, 80, True, id="any port of TCP"),
    pytest.param(ANY, "", TCP, 0, 0, UDP, 80, False, id="any port of TCP is not UDP"),
    pytest.param(ANY, "", TCP, 80, 16, TCP, 80, True, id="port 80"),
    pytest.param(ANY, "", TCP, 80, 16, TCP, 81, False, id="port 80 is not 81"),
    pytest.param(ANY, "", TCP, 80, 16, SCTP, 80, False, id="TCP 80 is not SCTP 80"),
    pytest.param(ANY, "", SCTP, 80, 16, SCTP, 80, True, id="SCTP 80"),
    pytest.param(ANY, "", TCP, 8080, 12, TCP, 8080, True, id="8080/12 first"),
    pytest.param(ANY, "", TCP, 8080, 12, TCP, 8095, True, id="8080/12 last"),
    pytest.param(ANY, "", TCP, 8080, 12, TCP, 8096, False, id="8080/12 one beyond"),
    pytest.param(ANY, "", TCP, 8080, 12, TCP, 8079, False, id="8080/12 one before"),
    pytest.param(ANY, "", TCP, 32768, 1, TCP, 65535, True, id="upper half, last"),
    pytest.param(ANY, "", TCP, 32768, 1, TCP, 32767, False, id="upper half, one before"),
    pytest.param(ANY, "", TCP, 0, 16, TCP, 0, True, id="port 0 is a port"),
    pytest.param(CIDR, "77", TCP, 443, 16, TCP, 443, True, id="CIDR set"),
    pytest.param(CIDR, "78", TCP, 443, 16, TCP, 443, False, id="another CIDR set"),
]


@FAMILIES
@pytest.mark.parametrize(("kind", "peer", "protocol", "port", "bits", "sent", "dport", "passes"), LINES)
def test_line(
    world: World, version: int, kind: PeerKind, peer: str, protocol: int, port: int, bits: int, sent: int, dport: int,
    passes: bool,
) -> None:  # fmt: skip
    number = {"a": world.a.identity, "b": world.b.identity, "": 0}.get(peer) if peer in ("a", "b", "") else int(peer)
    assert number is not None
    world.cidr("10.244.1.0/24" if version == 4 else "fd00:10:244:1::/64", 77)
    world.isolate(world.b.identity, ingress=True)
    world.rule(world.b, INGRESS, kind, number, protocol=protocol, port=port, bits=bits)
    bodies = {TCP: frames.tcp(4000, dport), UDP: frames.udp(4000, dport), SCTP: frames.sctp(4000, dport)}
    outcome = world.from_pod(world.a, frames.ip(world.a.address(version), world.b.address(version), sent, bodies[sent]))
    assert str(outcome) == ("redirect" if passes else "drop POLICY_DENIED")


@FAMILIES
class TestIsolation:
    def test_isolated_ingress_denies_and_says_who(self, world: World, version: int) -> None:
        world.isolate(world.b.identity, ingress=True)
        outcome = world.from_pod(world.a, a_to_b(world, version, 443))
        assert outcome.event is not None
        event = outcome.event
        assert (event.reason, event.direction) == (DropReason.POLICY_DENIED, INGRESS)
        assert (event.subject, event.peer, event.endpoint) == (world.b.identity, world.a.identity, world.b.number)
        assert (event.source, event.destination) == (world.a.address(version), world.b.address(version))
        assert (event.source_port, event.destination_port, event.protocol) == (4000, 443, TCP)
        assert event.rule == at.NO_RULE

    def test_isolated_egress_denies_everywhere(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, egress=True)
        own = world.a.address(version)
        for destination in (world.b.address(version), REMOTE[version], WORLD[version], NODE[version]):
            assert str(world.from_pod(world.a, syn(own, destination))) == "drop POLICY_DENIED"

    def test_ingress_isolation_does_not_bind_egress(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "redirect"

    def test_world_by_cidr(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, egress=True)
        world.cidr("192.0.2.0/24" if version == 4 else "2001:db8::/32", 5)
        world.rule(world.a, EGRESS, CIDR, 5, protocol=TCP, port=80, bits=16)
        own = world.a.address(version)
        assert str(world.from_pod(world.a, syn(own, WORLD[version], 80))) == "stack"
        assert str(world.from_pod(world.a, syn(own, WORLD[version], 81))) == "drop POLICY_DENIED"
        assert str(world.from_pod(world.a, syn(own, REMOTE[version], 80))) == "drop POLICY_DENIED"

    def test_except_is_another_set(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, egress=True)
        world.cidr("0.0.0.0/0" if version == 4 else "::/0", 5)
        world.cidr("192.0.2.0/30" if version == 4 else "2001:db8::/126", 6)
        world.rule(world.a, EGRESS, CIDR, 5)
        own = world.a.address(version)
        assert str(world.from_pod(world.a, syn(own, WORLD[version]))) == "stack"
        excepted = "192.0.2.1" if version == 4 else "2001:db8::1"
        assert str(world.from_pod(world.a, syn(own, excepted))) == "drop POLICY_DENIED"

    def test_stranger_is_world(self, world: World, version: int) -> None:
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, INGRESS, IDENTITY, Reserved.WORLD)
        assert str(world.from_wire(syn(WORLD[version], world.b.address(version)))) == "redirect"
        assert str(world.from_wire(syn(REMOTE[version], world.b.address(version)))) == "drop POLICY_DENIED"

    def test_lowest_precedence_wins(self, world: World, version: int) -> None:
        world.rule(world.b, INGRESS, IDENTITY, world.a.identity, precedence=5, verdict=Verdict.DENY, rule=9)
        world.rule(world.b, INGRESS, ANY, precedence=10)
        outcome = world.from_pod(world.a, a_to_b(world, version))
        assert str(outcome) == "drop POLICY_DENIED"
        assert outcome.event is not None
        assert outcome.event.rule == 9
        world.rule(world.b, INGRESS, ANY, precedence=1)
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "redirect"

    def test_a_rule_that_is_missing_denies(self, world: World, version: int) -> None:
        world.rule(world.b, INGRESS, ANY)
        assert str(world.from_pod(world.a, a_to_b(world, version, 81))) == "redirect"
        empty(world.tables, ("scope_rules",))
        assert str(world.from_pod(world.a, a_to_b(world, version, 80))) == "drop POLICY_DENIED"

    def test_any_pod_is_whoever_has_a_computed_identity(self, world: World, version: int) -> None:
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, INGRESS, ANY)
        scope = scope_number(world.b.identity, INGRESS)
        world.tables.scope_peers.remove(pl.ScopePeerKey(scope=scope, kind=pl.PeerMatch.ANYBODY))
        assert str(world.from_wire(syn(REMOTE[version], world.b.address(version)))) == "redirect"
        assert str(world.from_wire(syn(WORLD[version], world.b.address(version)))) == "drop POLICY_DENIED"
        remote_node = "172.30.0.12" if version == 4 else "fd00:172:30::12"
        assert str(world.from_wire(syn(remote_node, world.b.address(version)))) == "drop POLICY_DENIED"

    def test_ping_needs_a_line_of_any_protocol(self, world: World, version: int) -> None:
        protocol = 1 if version == 4 else 58
        ping = frames.ip(world.a.address(version), world.b.address(version), protocol, frames.echo(version))
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, INGRESS, ANY, protocol=TCP)
        assert str(world.from_pod(world.a, ping)) == "drop POLICY_DENIED"
        world.rule(world.b, INGRESS, ANY)
        assert str(world.from_pod(world.a, ping)) == "redirect"


@FAMILIES
class TestReplies:
    def test_reply_passes_two_isolated_ends(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        world.isolate(world.b.identity, egress=True)
        assert str(world.from_pod(world.b, b_to_a(world, version))) == "drop POLICY_DENIED"
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "redirect"
        assert str(world.from_pod(world.b, b_to_a(world, version))) == "redirect"

    def test_reply_from_the_wire(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        own = world.a.address(version)
        reply = syn(REMOTE[version], own, 4000, sport=80, flags=SYN | ACK)
        assert str(world.from_wire(reply)) == "drop POLICY_DENIED"
        assert str(world.from_pod(world.a, syn(own, REMOTE[version]))) == "redirect"
        assert str(world.from_wire(reply)) == "redirect"

    def test_reply_from_the_world_comes_by_the_stack(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        own = world.a.address(version)
        reply = syn(WORLD[version], own, 4000, sport=80, flags=SYN | ACK)
        assert str(world.to_pod(world.a, reply, received_on=world.wire)) == "drop POLICY_DENIED"
        world.from_pod(world.a, syn(own, WORLD[version]))
        assert str(world.to_pod(world.a, reply, received_on=world.wire)) == "stack"

    def test_other_ports_are_not_the_reply(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        world.from_pod(world.a, a_to_b(world, version))
        assert str(world.from_pod(world.b, b_to_a(world, version, sport=81))) == "drop POLICY_DENIED"

    def test_echo_reply_is_one_and_echo_request_is_not(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        protocol = 1 if version == 4 else 58
        one, other = world.a.address(version), world.b.address(version)
        assert str(world.from_pod(world.a, frames.ip(one, other, protocol, frames.echo(version)))) == "redirect"
        back = frames.ip(other, one, protocol, frames.echo(version, reply=True))
        assert str(world.from_pod(world.b, back)) == "redirect"
        asked = frames.ip(other, one, protocol, frames.echo(version))
        assert str(world.from_pod(world.b, asked)) == "drop POLICY_DENIED"

    def test_icmp_error_about_a_flow_passes(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        protocol = 1 if version == 4 else 58
        sent = syn(world.a.address(version), REMOTE[version])
        router = "172.30.0.1" if version == 4 else "fd00:172:30::1"
        error = frames.ip(router, world.a.address(version), protocol, frames.icmp_error(version, sent))
        assert str(world.from_wire(error)) == "drop POLICY_DENIED"
        world.from_pod(world.a, sent)
        assert str(world.from_wire(error)) == "redirect"
        forged = syn(world.a.address(version), REMOTE[version], 81)
        other = frames.ip(router, world.a.address(version), protocol, frames.icmp_error(version, forged))
        assert str(world.from_wire(other)) == "drop POLICY_DENIED"


@FAMILIES
class TestHost:
    def test_kubelet_reaches_an_isolated_pod_and_gets_its_answer(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True, egress=True)
        own = world.a.address(version)
        assert str(world.to_pod(world.a, syn(NODE[version], own, 8080))) == "stack"
        answer = syn(own, NODE[version], 4000, sport=8080, flags=SYN | ACK)
        assert str(world.from_pod(world.a, answer)) == "stack"
        world.tables.bump_generation()
        assert str(world.from_pod(world.a, answer)) == "stack"

    def test_a_stranger_has_not_the_nodes_address(self, world: World, version: int) -> None:
        packet = syn(NODE[version], world.a.address(version), 8080)
        assert str(world.to_pod(world.a, packet, received_on=world.wire)) == "drop SPOOFED_ADDRESS"

    def test_another_node_is_judged(self, world: World, version: int) -> None:
        world.isolate(world.a.identity, ingress=True)
        packet = syn("172.30.0.12" if version == 4 else "fd00:172:30::12", world.a.address(version))
        assert str(world.to_pod(world.a, packet)) == "drop POLICY_DENIED"
        assert str(world.from_wire(packet)) == "drop POLICY_DENIED"


@FAMILIES
class TestGeneration:
    def allowed(self, world: World, version: int) -> None:
        world.isolate(world.b.identity, ingress=True)
        self.key = world.rule(world.b, INGRESS, IDENTITY, world.a.identity)
        assert str(world.from_pod(world.a, a_to_b(world, version))) == "redirect"

    def test_right_taken_away_ends_the_flow(self, world: World, version: int) -> None:
        self.allowed(world, version)
        world.unrule(self.key)
        assert str(world.from_pod(world.a, a_to_b(world, version, flags=ACK))) == "redirect"
        world.tables.bump_generation()
        assert str(world.from_pod(world.a, a_to_b(world, version, flags=ACK))) == "drop POLICY_REVOKED"
        assert str(world.from_pod(world.a, a_to_b(world, version, flags=ACK))) == "drop POLICY_REVOKED"

    def test_answer_on_its_way_does_not_open_it_again(self, world: World, version: int) -> None:
        self.allowed(world, version)
        world.unrule(self.key)
        world.tables.bump_generation()
        assert str(world.from_pod(world.a, a_to_b(world, version, flags=ACK))) == "drop POLICY_REVOKED"
        assert str(world.from_pod(world.b, b_to_a(world, version))).startswith("drop")
        assert str(world.from_pod(world.a, a_to_b(world, version, flags=ACK))).startswith("drop")

    def test_reply_is_judged_as_its_flow(self, world: World, version: int) -> None:
        self.allowed(world, version)
        world.isolate(world.b.identity, ingress=True, egress=True)
        world.tables.bump_generation()
        assert str(world.from_pod(world.b, b_to_a(world, version))) == "redirect"
        world.unrule(self.key)
        world.tables.bump_generation()
        assert str(world.from_pod(world.b, b_to_a(world, version))) == "drop POLICY_REVOKED"

    def test_flow_that_is_still_allowed_goes_on(self, world: World, version: int) -> None:
        self.allowed(world, version)
        number = world.tables.bump_generation()
        assert str(world.from_pod(world.a, a_to_b(world, version, flags=ACK))) == "redirect"
        assert {flow.generation for flow in world.tables.flows.items().values()} == {number}

    def test_subject_forgotten_ends_the_flow(self, world: World, version: int) -> None:
        self.allowed(world, version)
        world.tables.subjects.remove(pl.SubjectKey(identity=world.b.identity))
        world.tables.bump_generation()
        assert str(world.from_pod(world.a, a_to_b(world, version, flags=ACK))) == "drop POLICY_REVOKED"


class TestConntrack:
    def key(self, world: World, side: Direction, dport: int = 80) -> at.FlowKey:
        """Of the flow from a to b, as the one that it is tracked for sees it: a its egress, b its ingress."""
        a, b = (world.a.address4, 4000), (world.b.address4, dport)
        local, remote = (a, b) if side == EGRESS else (b, a)
        return at.FlowKey(local=local[0], remote=remote[0], local_port=local[1], remote_port=remote[1], protocol=TCP)

    def test_each_side_has_its_entry(self, world: World) -> None:
        world.from_pod(world.a, a_to_b(world, 4))
        flows = world.tables.flows.items()
        assert {key: (flow.endpoint, flow.side) for key, flow in flows.items()} == {
            self.key(world, EGRESS): (world.a.number, EGRESS),
            self.key(world, INGRESS): (world.b.number, INGRESS),
        }

    def test_what_is_seen_of_tcp(self, world: World) -> None:
        def seen() -> at.Seen:
            flow = world.tables.flows.get(self.key(world, EGRESS))
            assert flow is not None
            return at.Seen(flow.seen)

        lives = at.Seen.SYN | at.Seen.REPLY | at.Seen.ESTABLISHED
        world.from_pod(world.a, a_to_b(world, 4))
        assert seen() == at.Seen.SYN
        world.from_pod(world.b, b_to_a(world, 4, sequence=70, acknowledged=2))
        assert seen() == at.Seen.SYN | at.Seen.REPLY
        world.from_pod(world.a, a_to_b(world, 4, flags=ACK, sequence=2, acknowledged=71))
        assert seen() == lives
        world.from_pod(world.a, a_to_b(world, 4, flags=FIN | ACK, sequence=2, acknowledged=71))
        world.from_pod(world.b, b_to_a(world, 4, flags=FIN | ACK, sequence=71, acknowledged=3))
        assert seen() == lives | at.Seen.FIN_ORIGINAL | at.Seen.FIN_REPLY
        world.from_pod(world.a, a_to_b(world, 4, flags=SYN))
        assert seen() == at.Seen.SYN
        world.from_pod(world.b, b_to_a(world, 4, flags=RST))
        assert seen() == at.Seen.SYN | at.Seen.RESET

    def test_budget(self, world: World) -> None:
        world.limit(world.a, 2)
        for dport in (1, 2):
            world.connect(world.a, world.b, dport)
        outcomes = [str(world.from_pod(world.a, a_to_b(world, 4, dport))) for dport in (3, 1)]
        assert outcomes == ["drop CONNTRACK_BUDGET", "redirect"]
        budget = world.tables.budgets.get(at.EndpointKey(endpoint=world.a.number))
        assert budget is not None
        assert (budget.egress, budget.ingress) == (2, 0)

    def test_no_budget_no_flow(self, world: World) -> None:
        world.tables.budgets.remove(at.EndpointKey(endpoint=world.b.number))
        assert str(world.from_pod(world.a, a_to_b(world, 4))) == "drop CONNTRACK_BUDGET"

    def test_denied_flow_costs_no_budget(self, world: World) -> None:
        world.isolate(world.b.identity, ingress=True)
        world.from_pod(world.a, a_to_b(world, 4))
        budget = world.tables.budgets.get(at.EndpointKey(endpoint=world.b.number))
        assert budget is not None
        assert budget.count == 0

    def test_address_with_a_new_owner_starts_afresh(self, world: World) -> None:
        world.from_pod(world.a, a_to_b(world, 4))
        successor = Pod(world.b.ifindex, 9, 1009, world.b.address4, world.b.address6, world.b.mac)
        world.add(successor)
        world.isolate(successor.identity, ingress=True)
        assert str(world.from_pod(world.a, a_to_b(world, 4, flags=ACK))) == "drop POLICY_DENIED"
        budget = world.tables.budgets.get(at.EndpointKey(endpoint=world.b.number))
        assert budget is not None
        assert budget.count == 0


def test_actions_have_the_kernels_numbers() -> None:
    assert (OK, SHOT, REDIRECT) == (0, 2, 7)
