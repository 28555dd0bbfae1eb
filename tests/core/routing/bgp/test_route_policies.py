"""What passes between a peer and the tables: Calico's filters as rules, and what holds where none matches."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

import pytest

from kit.pools import within
from proto.net import Network
from proto.objects import BGPFilter, BGPFilterRule, IPPool
from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator, Source
from services.routing.core.bgp.route_policies import NOTHING, Ranges, policies
from services.routing.core.bgp.values import Family

POOL, HIDDEN, POOL6 = "10.244.0.0/16", "10.245.0.0/16", "fd00:10:244::/56"
RANGES = Ranges(
    pools=(
        IPPool("pods", ip_network(POOL), 26),
        IPPool("hidden", ip_network(HIDDEN), 26, disable_bgp_export=True),
        IPPool("pods6", ip_network(POOL6), 122),
    ),
    services=(ip_network("10.96.0.0/12"),),
    outside=frozenset({65001, 65002}),
)
FILTER = BGPFilter(
    name="x",
    import_v4=(BGPFilterRule("Accept", ip_network(POOL), "Equal"), BGPFilterRule("Reject", peer_type="iBGP")),
    export_v4=(
        BGPFilterRule("Accept", ip_network("10.245.7.0/24"), "In"),
        BGPFilterRule("Reject", ip_network("10.244.7.0/24"), "In", lengths=(26, 32)),
    ),
    export_v6=(BGPFilterRule("Reject", peer_type="eBGP"),),
)


def matches(rule: FilterRule, prefix: Network, path: tuple[int, ...] | None) -> bool:
    """As BGPFilter's reference reads, of the criteria that these tests use. ``path`` None: this node's own route."""
    if rule.family is not (Family.IPV4 if prefix.version == 4 else Family.IPV6):
        return False
    if rule.network is not None:
        inside = within(prefix, rule.network)
        equal = prefix == rule.network
        holds = {MatchOperator.IN: inside, MatchOperator.EQUAL: equal}[rule.operator]
        if not holds or (rule.lengths and not rule.lengths[0] <= prefix.prefixlen <= rule.lengths[1]):
            return False
    if rule.source is Source.REMOTE_PEERS and path is None:
        return False
    return (path or ())[: len(rule.as_path_prefix)] == rule.as_path_prefix


def passes(rules: Iterable[FilterRule], text: str, path: tuple[int, ...] | None) -> bool:
    prefix = ip_network(text)
    first = next((rule for rule in rules if matches(rule, prefix, path)), None)
    return first is None or first.action is Action.ACCEPT


# prefix | AS path, `own` for this node's | to whom | without filters, with the filter
EXPORTS = """
10.244.1.0/26    | own         | external node internal | yes yes
10.244.7.0/26    | own         | external node internal | yes no
10.244.7.0/25    | own         | external node internal | yes yes
10.245.1.0/26    | own         | external node internal | no  no
10.245.7.0/26    | own         | external node internal | no  yes
10.96.0.7/32     | own         | external node internal | yes yes
192.0.2.0/24     | own         | external node internal | yes yes
fd00:10:244::/64 | own         | external node          | yes no
fd00:10:244::/64 | own         | internal               | yes yes
10.244.1.0/26    |             | external node internal | yes yes
10.96.0.7/32     |             | external node internal | yes yes
192.0.2.0/24     |             | external node internal | no  no
0.0.0.0/0        | 65001       | external node internal | no  no
10.244.1.0/26    | 65001 64512 | external               | no  no
10.244.1.0/26    | 65002 64512 | external               | no  no
10.244.1.0/26    | 65001 64512 | node internal          | yes yes
10.244.1.0/26    | 64513       | external node internal | yes yes
10.245.7.0/26    | 65001       | external               | no  yes
fd00:10:244::/64 | 65001       | external               | no  no
"""


@pytest.mark.parametrize("row", EXPORTS.strip().splitlines())
def test_what_is_exported(row: str) -> None:
    prefix, path, kinds, expected = (cell.strip() for cell in row.split("|"))
    numbers = None if path == "own" else tuple(map(int, path.split()))
    for kind in kinds.split():
        found = []
        for names in ((), ("x",)):
            _, exports = policies(names, {"x": FILTER}, RANGES, external=kind != "internal", is_node=kind != "external")
            found.append("yes" if passes(exports, prefix, numbers) else "no")
        assert found == expected.split(), kind


# prefix | from whom | without filters, with the filter
IMPORTS = """
10.244.1.0/26  | external          | yes yes
10.244.1.0/26  | internal          | yes no
10.244.0.0/16  | external internal | no  yes
10.245.0.0/16  | external          | no  no
10.244.0.0/15  | external          | yes yes
192.0.2.0/24   | external          | yes yes
192.0.2.0/24   | internal          | yes no
fd00:10:244::/56 | external internal | no no
fd00:10:244::/64 | external internal | yes yes
"""


@pytest.mark.parametrize("row", IMPORTS.strip().splitlines())
def test_what_is_imported(row: str) -> None:
    prefix, kinds, expected = (cell.strip() for cell in row.split("|"))
    for kind in kinds.split():
        found = []
        for names in ((), ("x",)):
            imports, _ = policies(names, {"x": FILTER}, RANGES, external=kind == "external", is_node=False)
            found.append("yes" if passes(imports, prefix, (65001,)) else "no")
        assert found == expected.split(), kind


def test_a_filter_that_is_not_there_lets_nothing_pass() -> None:
    assert policies(("x", "y"), {"x": FILTER}, RANGES, external=True, is_node=False) == (NOTHING, NOTHING)
    assert not passes(NOTHING, "10.244.1.0/26", None)
    assert not passes(NOTHING, "fd00::/64", (65001,))


def test_each_part_of_a_rule_arrives() -> None:
    rule = BGPFilterRule(
        "Accept",
        ip_network("10.0.0.0/8"),
        "NotIn",
        lengths=(8, 24),
        source="RemotePeers",
        interface="eth*",
        communities=((65000, 7), (1, 2, 3)),
        as_path_prefix=(65001,),
        add_communities=((1, 1),),
        prepend=(64512, 64512),
        priority=100,
    )
    one = BGPFilter(name="x", export_v4=(rule,))
    _, exports = policies(("x",), {"x": one}, Ranges(), external=True, is_node=False)
    assert exports[0] == FilterRule(
        action=Action.ACCEPT,
        family=Family.IPV4,
        network=ip_network("10.0.0.0/8"),
        operator=MatchOperator.NOT_IN,
        lengths=(8, 24),
        source=Source.REMOTE_PEERS,
        interface="eth*",
        communities=(65000 << 16 | 7, (1, 2, 3)),
        as_path_prefix=(65001,),
        set_local_pref=2147483547,
        prepend=(64512, 64512),
        add_communities=(1 << 16 | 1,),
    )


def test_filters_are_looked_at_in_the_order_that_the_peer_names_them() -> None:
    first = BGPFilter(name="a", export_v4=(BGPFilterRule("Accept"),))
    second = BGPFilter(name="b", export_v4=(BGPFilterRule("Reject"),))
    for names, passed in ((("a", "b"), True), (("b", "a"), False)):
        _, exports = policies(names, {"a": first, "b": second}, RANGES, external=True, is_node=False)
        assert passes(exports, "10.245.1.0/26", None) is passed
