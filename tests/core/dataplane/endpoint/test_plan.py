"""Repairs of pod links, the order of an ADD and its undoing, the marks, the masquerade table, flow events."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from proto.flow import DropReason
from proto.policy import CompiledPolicy, Direction, RuleSource
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.datapath.layout import (
    NO_RULE,
    Event,
)
from services.dataplane.core.egress.masquerade import ruleset
from services.dataplane.core.endpoint import links as marks
from services.dataplane.core.endpoint.lifecycle import Step, Undo, way_back
from services.dataplane.core.endpoint.links import GROUP_DELETING, GROUP_LIVE, KernelLinks, Mark, SeenLink
from services.dataplane.core.endpoint.plan import Standing, repairs
from services.dataplane.core.monitor.flows import Budget, Interpreter, reason_name, verdict_of
from services.dataplane.core.policy.history import LINGER, MOST, PolicyHistory, number_of
from tests.core.dataplane.notation import endpoint, names_of, policy, pool

A, B = Attachment("aaa", "eth0"), Attachment("bbb", "eth0")
ADDRESSES = (ip_address("10.244.0.1"), ip_address("fd00::1"))


def link(attachment: Attachment, index: int, *, up: bool = True, group: int = GROUP_LIVE, alias: str = "") -> SeenLink:
    return SeenLink(
        index=index,
        name=marks.host_name(attachment),
        alias=alias or marks.alias(Mark(attachment, "uid", 7)),
        group=group,
        up=up,
        mtu=1500,
        mac=marks.HOST_MAC,
    )


def kernel(
    *links: SeenLink, routes: bool = True, neighbours: bool = True, more: tuple[object, ...] = ()
) -> KernelLinks:
    return KernelLinks(
        links=(*links, SeenLink(index=1, name="lo", alias="", group=0, up=True, mtu=65536, mac=b"")),
        routes=frozenset({(3, address) for address in ADDRESSES} if routes else set()) | frozenset(more),  # type: ignore[arg-type]
        neighbours=frozenset({(3, address, marks.pod_mac(A)) for address in ADDRESSES} if neighbours else set()),
    )


STANDING = [Standing(attachment=A, index=3, addresses=ADDRESSES, mtu=1500)]


def test_what_is_as_it_should_be_is_left_alone() -> None:
    found = repairs(STANDING, [], kernel(link(A, 3)))
    assert not found.drift
    assert (found.gone, found.orphans, found.stale_routes) == ((), (), ())


def test_each_kind_of_drift() -> None:
    assert set(repairs(STANDING, [], kernel(link(A, 3), routes=False)).routes) == {(3, a) for a in ADDRESSES}
    assert len(repairs(STANDING, [], kernel(link(A, 3), neighbours=False)).neighbours) == 2
    assert repairs(STANDING, [], kernel(link(A, 3, up=False), routes=False)).down == (A,)
    assert repairs(STANDING, [], kernel()).gone == (A,)
    assert repairs(STANDING, [], kernel(link(A, 9))).gone == (A,), "another link of that name is not the endpoint's"
    assert repairs(STANDING, [], kernel(link(A, 3, group=GROUP_DELETING))).gone == (A,)
    assert [one.index for one in repairs(STANDING, [], kernel(link(A, 3), link(B, 4))).orphans] == [4]
    assert repairs(STANDING, [], kernel(link(A, 3), link(B, 4))).sizes == ()
    small = replace(link(A, 3), mtu=1400, peer=2)
    wanted = marks.Size(name=marks.host_name(A), index=3, peer=2, cookie=7, before=1400, mtu=1500)
    assert repairs(STANDING, [], kernel(small)).sizes == (wanted,)
    stale = (3, ip_address("10.244.0.99"))
    assert repairs(STANDING, [], kernel(link(A, 3), more=(stale,))).stale_routes == (stale,)


def test_routes_of_a_routing_suite_with_the_same_number_are_not_ours() -> None:
    foreign = (1, ip_address("192.0.2.1"))
    assert repairs(STANDING, [], kernel(link(A, 3), more=(foreign,))).stale_routes == ()


def test_what_is_being_made_or_undone_is_left_alone() -> None:
    for state in (
        kernel(),
        kernel(replace(link(A, 3), mtu=9000)),
        kernel(link(A, 3, up=False), routes=False, neighbours=False),
    ):
        found = repairs(STANDING, [A], state)
        assert (found.gone, found.down, found.routes, found.orphans, found.sizes) == ((), (), (), (), ())


def test_a_link_whose_maker_died_is_known_by_its_group() -> None:
    begun = link(A, 3, alias="?")
    assert kernel(begun).unmarked() == (begun,)
    assert kernel(link(A, 3)).unmarked() == ()


@given(
    st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,100}", fullmatch=True),
    st.from_regex(r"[a-z0-9.]{1,15}", fullmatch=True),
)
def test_marks_are_short_and_reversible(container: str, interface: str) -> None:
    attachment = Attachment(container, interface)
    assert len(marks.host_name(attachment)) <= 15
    assert marks.host_name(attachment).startswith(marks.PREFIX)
    mac = marks.pod_mac(attachment)
    assert mac[0] & 3 == 2, "locally administered, unicast"
    if interface not in (".", ".."):
        assert marks.parse_alias(marks.alias(Mark(attachment, "u-1", 77))) == Mark(attachment, "u-1", 77)


@pytest.mark.parametrize(
    "words", ["", "x", "airmesh/1 a eth0", "airmesh/2 a eth0 u 1", "airmesh/1 ../x eth0 u 1", "airmesh/1 a eth0 u x"]
)
def test_others_aliases_are_not_ours(words: str) -> None:
    assert marks.parse_alias(words) is None


def test_undoing_goes_the_way_back_and_closes_before_it_forgets() -> None:
    assert way_back(None) == ()
    assert way_back(Step.ADDRESSED) == (Undo.RELEASE_ADDRESSES,)
    everything = (Undo.TAKE_DOWN, Undo.FORGET, Undo.DETACH, Undo.REMOVE_LINK, Undo.RELEASE_ADDRESSES)
    assert way_back(Step.UP) == everything
    for step in Step:
        assert way_back(step) == everything[len(Step) - step :]
    assert Step.KNOWN < Step.UP, "policy before the first packet"
    assert Step.GUARDED < Step.KNOWN


def test_the_masquerade_table() -> None:
    text = ruleset([pool("10.244.0.0/17", nat_outgoing=True), pool("10.244.128.0/17")], [ip_address("172.30.0.11")])
    assert "elements = { 10.244.0.0/17 }" in text
    assert "elements = { 10.244.0.0/16, 172.30.0.11 }" in text
    assert "ip saddr @masqueraded4 ip daddr != @cluster4 masquerade" in text
    assert text.index("meta mark 0x0a150001 accept") < text.index("ip saddr @masqueraded4")
    assert "ip6" not in text
    none = ruleset([pool("10.244.0.0/16")], [])
    assert "masquerade\n" not in none
    assert none.startswith("add table inet airmesh\ndelete table inet airmesh\n")


def test_what_is_masqueraded_gets_the_nodes_own_address_where_that_is_on_no_uplink() -> None:
    pools = [pool("10.244.0.0/16", nat_outgoing=True), pool("fd00:10:244::/48", nat_outgoing=True)]
    own = [ip_address("10.9.9.9"), ip_address("10.9.9.8")]
    text = ruleset(pools, own, own)
    assert "ip daddr != @cluster4 snat ip to 10.9.9.9\n" in text
    assert "ip6 daddr != @cluster6 masquerade\n" in text, "it has no such address of that family"


@pytest.mark.parametrize("nat", [True, False])
def test_a_disabled_pool_is_masqueraded_as_if_it_were_not(nat: bool) -> None:
    """Its pods live on: the others reach them by their own addresses, and they reach the world as before."""
    other = pool("10.244.0.0/16", nat_outgoing=True)
    disabled = pool("10.99.0.0/16", nat_outgoing=nat, disabled=True)
    text = ruleset([other, disabled], [])
    cluster, masqueraded = (elements(text, name) for name in ("cluster4", "masqueraded4"))
    assert cluster == {"10.244.0.0/16", "10.99.0.0/16"}
    assert masqueraded == cluster - (set() if nat else {"10.99.0.0/16"})
    assert text == ruleset([other, pool("10.99.0.0/16", nat_outgoing=nat)], [])


def elements(text: str, name: str) -> set[str]:
    """Members of one set of the table."""
    listed = text.partition(f"set {name} {{")[2].partition("elements = { ")[2].partition(" }")[0]
    return set(listed.split(", "))


POLICY = policy(900, "in any tcp/80", "in any tcp/81")


def history(*policies: CompiledPolicy) -> PolicyHistory:
    """These have been enforced, one after the other."""
    made = PolicyHistory()
    for one in policies:
        made.learn(one, number_of(one), 0)
    return made


def event(**other: object) -> Event:
    values: dict[str, object] = {
        "time": 5_000,
        "subject": 900,
        "peer": 1000,
        "source": ip_address("10.244.0.7"),
        "destination": ip_address("10.244.0.1"),
        "length": 60,
        "ifindex": 3,
        "endpoint": 3,
        "rule": NO_RULE,
        "missed": 4,
        "policy": number_of(POLICY),
        "source_port": 40000,
        "destination_port": 80,
        "reason": int(DropReason.POLICY_DENIED),
        "protocol": 6,
        "direction": int(Direction.INGRESS),
    }
    return Event(**{**values, **other})  # type: ignore[arg-type]


READER = Interpreter(
    node="n1",
    names=names_of([endpoint("n1 10.244.0.1", "back"), endpoint("n2 10.244.0.7", "front")]),
    policies=history(POLICY).names,
    wall_offset=1_000_000,
)


def test_a_denial_names_both_ends_and_the_policies_that_isolate() -> None:
    reported = READER.read(event(), 3)
    assert (reported.reason, reported.direction, reported.time_ns, reported.missed) == (
        "POLICY_DENIED",
        "ingress",
        1_005_000,
        7,
    )
    assert (reported.source_name, reported.destination_name) == ("shop/front", "shop/back")
    assert (reported.source_identity, reported.destination_identity) == (1000, 900)
    assert (reported.policies, reported.rule, reported.revision) == (("shop/deny-all",), -1, "e1:10")


def test_egress_swaps_subject_and_peer() -> None:
    reported = READER.read(event(direction=int(Direction.EGRESS)))
    assert (reported.source_identity, reported.destination_identity) == (900, 1000)


@pytest.mark.parametrize("reason", [r for r in DropReason if r.name.startswith("SPOOFED")])
def test_who_forges_is_named_and_not_whose_address_it_took(reason: DropReason) -> None:
    """Pod ``thief`` (endpoint 9) sends in the name of ``frontend``; then a card of the node brings the same."""
    both = [endpoint("n1 10.244.0.1", "back"), endpoint("n2 10.244.0.7", "front")]
    names = names_of(both, pods={9: "shop/thief"}, interfaces={4: "eth1"})
    reader = Interpreter(node="n1", names=names, policies=history().names, wall_offset=0)
    reported = reader.read(event(reason=int(reason), direction=int(Direction.EGRESS), endpoint=9, ifindex=9))
    assert (reported.source_name, reported.destination_name, reported.interface) == ("shop/thief", "shop/back", "#9")
    reported = reader.read(event(reason=int(reason), peer=0, endpoint=0, ifindex=4))
    assert (reported.source_name, reported.destination_name, reported.interface) == ("", "shop/back", "eth1")


def test_a_rule_s_verdict_names_its_policy() -> None:
    reported = READER.read(event(rule=1, reason=int(DropReason.FORWARDED)))
    assert (reported.policies, reported.rule) == (("shop/p1",), 1)
    assert verdict_of(event(reason=int(DropReason.FORWARDED))) == "forwarded"
    assert verdict_of(event()) == "dropped"


def test_a_drop_is_blamed_on_the_policy_that_judged_and_not_on_the_newest() -> None:
    """Rule 0 was one NetworkPolicy's and is another's now; who isolates is another, too."""
    before = policy(900, "in any tcp/80", sources="old", sequence=10)
    after = policy(900, "in any tcp/80", sources="new", sequence=11)
    after = structs.replace(after, isolated_by=(RuleSource("NetworkPolicy", "shop", "strict", -1),))
    for order in ((before, after), (after, before)):
        reader = Interpreter(node="n1", names=READER.names, policies=history(*order).names, wall_offset=0)
        for judge, rule, isolator, revision in (
            (before, "shop/old0", "shop/deny-all", "e1:10"),
            (after, "shop/new0", "shop/strict", "e1:11"),
        ):
            reported = reader.read(event(policy=number_of(judge), rule=0))
            assert (reported.policies, reported.revision) == ((rule,), revision)
            assert reader.read(event(policy=number_of(judge))).policies == (isolator,)


def test_a_drop_by_a_policy_that_nobody_knows_any_more_names_none() -> None:
    for number in (0, 77):
        reported = READER.read(event(policy=number, rule=0))
        assert (reported.policies, reported.revision, reported.reason) == ((), "", "POLICY_DENIED")


def test_what_a_policy_was_called_is_forgotten_when_no_event_of_it_can_come() -> None:
    first, second = policy(900, "in any tcp/80"), policy(900, "in any tcp/81")
    one, two = number_of(first), number_of(second)
    known = history(first, second)
    for now in (0.0, LINGER * 2, LINGER * 4):  # enforced as long as that: the second has no room, say
        known.expire({900: {one, two}}, now)
    known.expire({900: {two}}, LINGER * 5)
    known.expire({900: {two}}, LINGER * 6)
    assert known.names(900, one) is not None
    known.expire({900: {two}}, LINGER * 6 + 1)
    assert known.names(900, one) is None
    assert known.names(900, two) is not None
    for now in (LINGER * 7, LINGER * 8 + 1):
        known.expire({}, now)
    assert len(known) == 0


def test_many_edits_cost_their_own_identity_alone() -> None:
    edits = [policy(900, "in any tcp/80", sequence=number) for number in range(1000)]
    known = history(policy(901, "in any tcp/80"), edits[0])
    for one in edits[1:]:
        known.learn(one, number_of(one), number_of(edits[0]))
    assert len(known) == 1 + MOST
    assert known.names(900, number_of(edits[0])) is not None, "the one that is in force"
    assert [known.names(900, number_of(one)) is not None for one in edits[-MOST + 1 :]] == [True] * (MOST - 1)
    assert known.names(901, number_of(policy(901, "in any tcp/80"))) is not None


def test_whatever_a_program_writes_can_be_read() -> None:
    assert READER.read(event(direction=9)).policies == ()
    reported = READER.read(event(rule=77, reason=999, subject=5))
    assert (reported.policies, reported.reason, reported.revision) == ((), "REASON_999", "")
    assert reason_name(2) == "POLICY_DENIED"


def test_the_budget_counts_what_it_holds_back() -> None:
    budget = Budget(per_second=10, burst=3)
    assert [budget.take(2, 1.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert budget.take(3, 1.0) is None
    assert budget.take(2, 1.11) == 2
    assert budget.take(3, 1.21) == 1
