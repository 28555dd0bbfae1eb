"""BGPFilter rules as Calico's agent writes them for BIRD, against the same rules on whole networks."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.routing.core.bgp.filters import Policy, changed_by, deciding, elsewhere, nearest, prepended
from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator, Source
from services.routing.core.bgp.values import Family, SegmentKind, prefix_of
from tests.core.routing.bgp.rib_reference import matches
from tests.core.routing.bgp.rib_speaker import V4, V6, as_path, attributes

EQ, NE, IN, NOT_IN = MatchOperator.EQUAL, MatchOperator.NOT_EQUAL, MatchOperator.IN, MatchOperator.NOT_IN
SOME = attributes(65001, 65100, communities=(77,), large_communities=((1, 2, 3),))

# Operator, range, lengths, prefix, whether it matches.
PREFIXES: list[tuple[MatchOperator, str, tuple[int, int] | None, str, bool]] = [
    (EQ, "10.0.0.0/8", None, "10.0.0.0/8", True),
    (EQ, "10.0.0.0/8", None, "10.0.0.0/9", False),
    (EQ, "10.0.0.0/8", (9, 32), "10.0.0.0/8", False),
    (NE, "10.0.0.0/8", None, "10.0.0.0/8", False),
    (NE, "10.0.0.0/8", None, "11.0.0.0/8", True),
    (IN, "10.0.0.0/8", None, "10.0.0.0/8", True),
    (IN, "10.0.0.0/8", None, "10.255.255.255/32", True),
    (IN, "10.0.0.0/8", None, "0.0.0.0/0", False),
    (IN, "10.0.0.0/8", None, "11.0.0.0/16", False),
    (IN, "10.0.0.0/8", (16, 24), "10.1.0.0/16", True),
    (IN, "10.0.0.0/8", (16, 24), "10.2.0.0/15", False),
    (IN, "10.0.0.0/8", (16, 24), "10.1.2.128/25", False),
    (IN, "10.0.0.0/8", (0, 24), "0.0.0.0/4", False),
    (IN, "10.64.0.0/10", None, "10.127.0.0/16", True),
    (IN, "10.64.0.0/10", None, "10.128.0.0/16", False),
    (IN, "0.0.0.0/0", None, "0.0.0.0/0", True),
    (IN, "0.0.0.0/0", (1, 32), "0.0.0.0/0", False),
    (NOT_IN, "10.0.0.0/8", None, "10.1.0.0/16", False),
    (NOT_IN, "10.0.0.0/8", None, "11.0.0.0/16", True),
    (NOT_IN, "10.0.0.0/8", (16, 24), "10.0.0.0/8", True),
    (NOT_IN, "10.0.0.0/8", (16, 24), "10.1.0.0/16", False),
    (IN, "2001:db8::/32", None, "2001:db8:1::/48", True),
    (IN, "2001:db8::/32", (64, 64), "2001:db8:1::/48", False),
    (NOT_IN, "2001:db8::/32", None, "fd00::/8", True),
    (EQ, "::/0", None, "::/0", True),
]


@pytest.mark.parametrize(("operator", "network", "lengths", "text", "expected"), PREFIXES)
def test_a_prefix_is_compared_with_a_range(
    operator: MatchOperator, network: str, lengths: tuple[int, int] | None, text: str, expected: bool
) -> None:
    family, prefix = prefix_of(ip_network(text))
    rule = FilterRule(
        action=Action.REJECT, family=family, network=ip_network(network), operator=operator, lengths=lengths
    )
    policy = Policy((rule,), family, default=True)
    found = deciding(policy.applicable(SOME, remote=True, interface=""), prefix)
    assert policy.accepts(found) is not expected


def rules(family: Family) -> st.SearchStrategy[FilterRule]:
    networks: st.SearchStrategy[IPv4Network | IPv6Network]
    if family is V4:
        networks = st.builds(
            lambda number, length: IPv4Network((number >> 32 - length << 32 - length, length)),
            st.sampled_from([0x0A000000, 0x0A400000, 0x0A40FF00, 0xC0A80000]),
            st.integers(0, 32),
        )
    else:
        networks = st.builds(
            lambda number, length: IPv6Network((number >> 128 - length << 128 - length, length)),
            st.sampled_from([0x20010DB8 << 96, 0xFD00 << 112]),
            st.sampled_from([0, 7, 8, 16, 32, 48, 64, 128]),
        )
    return st.builds(
        FilterRule,
        action=st.sampled_from(Action),
        family=st.sampled_from([family, family, V4, V6]),
        network=st.none() | networks,
        operator=st.sampled_from(MatchOperator),
        lengths=st.none() | st.tuples(st.integers(0, 20), st.integers(10, 40)),
        source=st.none() | st.just(Source.REMOTE_PEERS),
        interface=st.sampled_from(["", "", "eth0", "eth*"]),
        communities=st.sampled_from([(), (), (77,), (78, (1, 2, 3)), (78,)]),
        as_path_prefix=st.sampled_from([(), (), (65001,), (65001, 65100), (65001, 65100, 65101), (65100,)]),
    ).map(lambda rule: rule if rule.network is None or rule.network.version == (4 if rule.family is V4 else 6) else
          replace(rule, family=V4 if rule.network.version == 4 else V6))  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_first_rule_that_matches_decides(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(Family))
    chosen = data.draw(st.lists(rules(family), max_size=5))
    network = data.draw(rules(family).filter(lambda rule: rule.network is not None and rule.family is family)).network
    assert network is not None
    prefix = prefix_of(network)[1]
    what = data.draw(st.sampled_from([SOME, attributes(), attributes(65001, {65100}), attributes(65001, 65100, 65101)]))
    remote, interface = data.draw(st.booleans()), data.draw(st.sampled_from(["", "eth0", "eth1", "am-vxlan"]))
    default = data.draw(st.booleans())
    policy = Policy(chosen, family, default=default)
    found = deciding(policy.applicable(what, remote=remote, interface=interface), prefix)
    first = next((rule for rule in chosen if matches(rule, family, prefix, what, remote=remote, iface=interface)), None)
    assert (found.rule if found else None) is first
    assert policy.accepts(found) is (default if first is None else first.action is Action.ACCEPT)


@given(st.data())
def test_one_rule_decides_about_all_prefixes_that_begin_outside_of_the_ranges(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(Family))
    policy = Policy(data.draw(st.lists(rules(family), max_size=5)), family, default=True)
    applicable = policy.applicable(SOME, remote=True, interface="eth0")
    certain, rule = elsewhere(applicable)
    number, length = data.draw(st.integers(0, (1 << family.bits) - 1)), data.draw(st.integers(1, family.bits))
    shift = family.bits - length
    octets = (number >> shift << shift).to_bytes(family.bits // 8)
    if certain and octets[:1] not in policy.octets:
        assert deciding(applicable, bytes((length,)) + octets[: (length + 7) // 8]) is rule


def test_what_begins_in_a_range_is_known_by_its_first_octet() -> None:
    reject = FilterRule(action=Action.REJECT, family=V4, network=ip_network("96.0.0.0/5"), operator=IN)
    accept = FilterRule(action=Action.ACCEPT, family=V4, network=ip_network("10.1.0.0/16"), operator=EQ)
    policy = Policy((reject, accept), V4, default=True)
    assert policy.octets == {bytes((octet,)) for octet in (10, *range(96, 104))}
    assert elsewhere(policy.applicable(SOME, remote=True, interface="")) == (True, None)
    for uncertain in (replace(reject, operator=NOT_IN), replace(reject, network=ip_network("0.0.0.0/0"))):
        one = Policy((uncertain,), V4, default=True)
        assert elsewhere(one.applicable(SOME, remote=True, interface="")) == (False, None)


def test_operations_change_what_is_accepted() -> None:
    rule = FilterRule(
        action=Action.ACCEPT,
        family=V4,
        set_local_pref=0,
        prepend=(65400, 65401),
        add_communities=(5, 77, (9, 9, 9)),
    )
    after = changed_by(rule, SOME)
    assert after.local_pref == 0
    assert after.as_path == as_path(65400, 65401, 65001, 65100)
    assert after.communities == (5, 77)
    assert after.large_communities == ((1, 2, 3), (9, 9, 9))


def test_a_full_segment_is_followed_by_another() -> None:
    full = as_path(*range(1, 256))
    longer = prepended(full, (7, 8))
    assert [(segment.kind, len(segment.numbers)) for segment in longer] == [
        (SegmentKind.SEQUENCE, 2),
        (SegmentKind.SEQUENCE, 255),
    ]
    assert nearest(longer, 3) == (7, 8, 1)
    assert prepended(as_path({1, 2}), (7,)) == as_path(7, {1, 2})
