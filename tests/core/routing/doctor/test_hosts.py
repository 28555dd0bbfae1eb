"""Settings, neighbours and ways: what is found of each, and what is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from kit.netfilter import Chain, Rule, Ruleset
from services.routing.core.doctor import neighbours, settings, ways
from services.routing.core.doctor.settings import LinkSettings, Settings
from services.routing.core.doctor.ways import Measured, Ways
from services.routing.core.evidence import LOST, Evidence, Search, Verdict, Way

FAB = LinkSettings(name="fab0", forwarding=1, reverse_path_filter=0, own_filter=0)
HOST = Settings(node="n1", links=(FAB,), forwarding6=1, filtered=0, back={"n2": "fab0"}, arrives={"n2": "fab0"})


def setting_codes(seen: Settings) -> list[str]:
    return [one.code for one in settings.check(seen)]


def test_settings() -> None:
    assert setting_codes(HOST) == []
    (found,) = settings.check(replace(HOST, links=(replace(FAB, forwarding=0),)))
    assert (found.code, found.fixes[0].command) == ("forwarding-off", "sysctl -w net.ipv4.conf.fab0.forwarding=1")
    assert setting_codes(replace(HOST, forwarding6=0)) == ["forwarding-off"]


def test_a_strict_filter_is_found_only_where_the_way_back_is_another_and_packets_were_dropped() -> None:
    strict = replace(HOST, links=(replace(FAB, reverse_path_filter=1, own_filter=1),))
    asymmetric = replace(strict, back={"n2": "eth1"}, filtered=5)
    (found,) = settings.check(asymmetric)
    assert (found.code, found.about) == ("reverse-path-filter", "Pair n1 n2")
    assert found.fixes[0].undo == "sysctl -w net.ipv4.conf.fab0.rp_filter=1"
    loose = replace(FAB, reverse_path_filter=2)
    for well in (strict, replace(asymmetric, filtered=0), replace(asymmetric, links=(loose,))):
        assert setting_codes(well) == []


OWN, PEER = IPv4Address("172.30.0.11"), IPv4Address("172.30.0.12")
A, B = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
LINK = neighbours.Link(
    node="n1",
    device="fab0",
    own=OWN,
    peers={PEER: "n2"},
    answers={OWN: frozenset(), PEER: frozenset({A})},
    entries={PEER: (A, False)},
)


def neighbour_codes(seen: neighbours.Link) -> list[tuple[str, str]]:
    return [(one.code, one.about) for one in neighbours.check(seen)]


def test_neighbours() -> None:
    assert neighbour_codes(LINK) == []
    assert neighbour_codes(replace(LINK, entries={PEER: (B, True)})) == [("neighbour-stale", "Pair n1 n2")]
    assert neighbour_codes(replace(LINK, entries={PEER: (b"", False)})) == []
    silent = replace(LINK, answers={OWN: frozenset(), PEER: frozenset()}, entries={PEER: (B, True)})
    assert neighbour_codes(silent) == [], "nobody has said what would be right"


def test_duplicates() -> None:
    both = replace(LINK, answers={OWN: frozenset(), PEER: frozenset({A, B})}, entries={PEER: (B, True)})
    assert neighbour_codes(both) == [("address-duplicate", "Node n2")]
    assert neighbour_codes(replace(LINK, answers={OWN: frozenset({B})})) == [("address-duplicate", "Node n1")]


def test_the_fix_of_a_permanent_neighbour_can_be_undone() -> None:
    (found,) = neighbours.check(replace(LINK, entries={PEER: (B, True)}))
    assert found.fixes[0].undo == "ip neigh replace 172.30.0.12 lladdr 02:00:00:00:00:02 dev fab0 nud permanent"


WAY = Way("vxlan", 5, OWN, PEER)
FAILED = Measured(
    peer="n2",
    way=WAY,
    device="am-vxlan",
    evidence=Evidence(verdict=Verdict.FAILS, lost=5),
    port=4789,
    most=1450,
    uplink="fab0",
)
DROPS = Rule(handle=4, expressions=({"drop": None},))
DROP = Ruleset(
    chains=(
        Chain(
            family="inet", table="t", name="c", hook="output", rules=(Rule(handle=4, expressions=({"drop": None},)),)
        ),
    )
)


def way_codes(one: Measured, *, reached: bool, ruleset: Ruleset) -> list[str]:
    return [
        found.code for found in ways.check(Ways(node="n1", measured=(one,), reached={PEER: reached}, ruleset=ruleset))
    ]


@pytest.mark.parametrize(
    ("reached", "ruleset", "code"),
    [
        (True, DROP, "firewall-drops"),
        (False, DROP, "firewall-drops"),
        (True, Ruleset(), "fabric-filters-vxlan"),
        (False, Ruleset(), "node-unreachable"),
    ],
)
def test_a_way_that_fails(reached: bool, ruleset: Ruleset, code: str) -> None:
    assert way_codes(FAILED, reached=reached, ruleset=ruleset) == [code]


def test_a_way_that_works_is_no_matter_whatever_rules_there_are() -> None:
    for evidence in (Evidence(verdict=Verdict.WORKS), Evidence()):
        assert way_codes(replace(FAILED, evidence=evidence), reached=False, ruleset=DROP) == []


def test_a_proved_way_that_is_silent_now_fails_before_there_is_evidence_of_it() -> None:
    proved = replace(FAILED, evidence=Evidence(verdict=Verdict.WORKS))
    assert way_codes(replace(proved, silent=LOST), reached=True, ruleset=Ruleset()) == ["fabric-filters-vxlan"]
    assert way_codes(replace(proved, silent=LOST - 1), reached=True, ruleset=Ruleset()) == []


def test_each_model_is_named_by_what_it_carries() -> None:
    ipip = replace(FAILED, way=WAY._replace(model="ipip"), port=0)
    (found,) = ways.check(Ways(node="n1", measured=(ipip,), reached={PEER: True}, ruleset=None))
    assert found.code == "fabric-filters-ipip"
    assert "IP protocol 4" in found.cause


def test_a_small_path() -> None:
    def found(search: Search) -> list[str]:
        one = replace(FAILED, evidence=Evidence(verdict=Verdict.WORKS, search=search))
        return [one.code for one in ways.check_mtu(Ways(node="n1", measured=(one,), reached={}, ruleset=None))]

    assert found(Search(most=1450, good=1350, bad=1356)) == ["path-mtu-small"]
    assert found(Search(most=1450, good=1450)) == []
    assert found(Search(most=1450)) == []


def test_addresses_are_of_either_family() -> None:
    six = Way("vxlan", 5, ip_address("fd00::1"), ip_address("fd00::2"))
    one = replace(FAILED, way=six)
    seen = Ways(node="n1", measured=(one,), reached={six.remote: True}, ruleset=DROP)
    assert [found.code for found in ways.check(seen)] == ["firewall-drops"]


def test_on_a_large_link_each_address_is_asked_for_by_as_many_nodes() -> None:
    first = IPv4Address("10.0.0.1")
    addresses = [first + number for number in range(100)]
    counted: Counter[IPv4Address] = Counter()
    for own in addresses:
        others = {one: str(one) for one in reversed(addresses) if one != own}
        found = neighbours.asked(own, others)
        assert all(others[one] == name for one, name in found.items())
        counted.update(found.keys())
    assert set(counted.values()) == {neighbours.MOST}
    assert neighbours.asked(first, {first + 1: "n2"}) == {first + 1: "n2"}
