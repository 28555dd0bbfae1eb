"""What is accepted from a peer and why not, and what a peer is sent of it: by tables of RFC rules."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest

from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator, TableSettings
from services.routing.core.bgp.rib.exports import Withheld
from services.routing.core.bgp.rib.paths import Reach, Rejection
from services.routing.core.bgp.values import Attributes, UnknownAttribute, prefix_of
from tests.core.routing.bgp.rib_speaker import NODE, OURS, V4, V6, Speaker, as_path, attributes, prefix

P = "192.0.2.0/24"
PLAIN = attributes(65001, 65100)
NO_EXPORT, NO_ADVERTISE, SUBCONFED, GSHUT, LLGR_STALE = 0xFFFFFF01, 0xFFFFFF02, 0xFFFFFF03, 0xFFFF0000, 0xFFFF0006


def rule(action: Action, text: str | None = None, **more: Any) -> FilterRule:
    network = ip_network(text) if text else None
    return FilterRule(action=action, network=network, **{"family": prefix_of(network)[0] if network else V4} | more)


def accept(text: str | None = None, **more: Any) -> FilterRule:
    return rule(Action.ACCEPT, text, **more)


def reject(text: str | None = None, **more: Any) -> FilterRule:
    return rule(Action.REJECT, text, **more)


EBGP: dict[str, Any] = {"name": "tor-a", "asn": 65001, "address": "172.31.0.1"}
IBGP: dict[str, Any] = {"name": "rr", "asn": OURS, "address": "172.31.0.1"}
RR: dict[str, Any] = {"cluster_id": IPv4Address("1.1.1.1")}

# The peer, its settings, the prefix, what it sends, and why it is not accepted.
IMPORTS: list[tuple[dict[str, Any], dict[str, Any], str, Attributes, Rejection | None]] = [
    (EBGP, {}, P, PLAIN, None),
    (EBGP, {}, P, attributes(65001, OURS), Rejection.OWN_AS),
    (EBGP, {}, P, attributes(65001, {OURS, 65100}), Rejection.OWN_AS),
    (EBGP, {"allowed_own_asn": 1}, P, attributes(65001, OURS), None),
    (EBGP, {"allowed_own_asn": 1}, P, attributes(65001, OURS, OURS), Rejection.OWN_AS),
    (EBGP, {}, P, attributes(65002, 65001), Rejection.FIRST_AS),
    (EBGP, {}, P, attributes({65001, 65002}), Rejection.FIRST_AS),
    (EBGP, {}, P, attributes(), Rejection.FIRST_AS),
    (EBGP, {"first_asn_checked": False}, P, attributes(65002), None),
    (IBGP, {}, P, attributes(65002), None),
    (IBGP, {}, P, attributes(originator_id=NODE), Rejection.ORIGINATOR),
    (IBGP, RR, P, attributes(cluster_list=(IPv4Address("2.2.2.2"), IPv4Address("1.1.1.1"))), Rejection.CLUSTER),
    (IBGP, {}, P, attributes(cluster_list=(IPv4Address("1.1.1.1"),)), None),
    (EBGP, {}, P, attributes(65001, hop=str(NODE)), Rejection.NEXT_HOP),
    (EBGP, {}, P, attributes(65001, hop="224.0.0.5"), Rejection.NEXT_HOP),
    (EBGP, {}, P, attributes(65001, hop="127.0.0.1"), Rejection.NEXT_HOP),
    (EBGP, {}, P, attributes(65001, hop="0.0.0.0"), Rejection.NEXT_HOP),
    (EBGP, {}, P, replace(PLAIN, next_hop=None), Rejection.NEXT_HOP),
    (EBGP, {}, "0.0.0.0/0", PLAIN, Rejection.DEFAULT),
    (EBGP, {"imports": (accept(),)}, "0.0.0.0/0", PLAIN, Rejection.DEFAULT),
    (EBGP, {"imports": (accept(lengths=(0, 0)),)}, "0.0.0.0/0", PLAIN, Rejection.DEFAULT),
    (EBGP, {"imports": (accept("0.0.0.0/0", operator=MatchOperator.EQUAL),)}, "0.0.0.0/0", PLAIN, None),
    (EBGP, {"imports": (accept("0.0.0.0/0"),)}, "0.0.0.0/0", PLAIN, None),
    (EBGP, {"imports": (reject("0.0.0.0/0"),)}, "0.0.0.0/0", PLAIN, Rejection.DEFAULT),
    (EBGP, {"imports": (accept("9.9.9.0/24", operator=MatchOperator.NOT_IN),)}, "0.0.0.0/0", PLAIN, Rejection.DEFAULT),
    (EBGP, {}, "192.0.0.0/8", PLAIN, None),
    (EBGP, {}, "127.0.0.0/8", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "127.1.2.3/32", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "169.254.169.254/32", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "169.253.0.0/16", PLAIN, None),
    (EBGP, {}, "224.0.0.0/3", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "0.0.0.0/8", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "128.0.0.0/1", PLAIN, None),
    (EBGP, {"imports": (accept("240.0.0.0/24"),)}, "240.0.0.0/24", PLAIN, None),
    (EBGP, {"imports": (accept("240.0.0.0/4"),)}, "240.0.0.0/24", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "::/0", PLAIN, Rejection.DEFAULT),
    (EBGP, {}, "fe80::/10", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "ff02::/16", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "::ffff:0:0/96", PLAIN, Rejection.MARTIAN),
    (EBGP, {}, "64:ff9b::/96", PLAIN, None),
    (EBGP, {"default_import": False}, P, PLAIN, Rejection.NO_POLICY),
    (EBGP, {"default_import": False, "imports": (accept(P),)}, P, PLAIN, None),
    (EBGP, {"imports": (reject("192.0.2.0/25"), reject(P), accept(P))}, P, PLAIN, Rejection.FILTER),
    (EBGP, {"imports": (accept(P), reject(P))}, P, PLAIN, None),
]  # fmt: skip


@pytest.mark.parametrize(("peer", "settings", "text", "what", "rejection"), IMPORTS)
def test_import(
    peer: dict[str, Any], settings: dict[str, Any], text: str, what: Attributes, rejection: Rejection | None
) -> None:
    one = Speaker()
    one.up(**peer, families=[V4, V6], **settings)
    one.learn(peer["name"], text, what)
    family = V6 if ":" in text else V4
    [(_, path)] = one.tables.received(peer["name"], family)
    assert path.rejection is rejection
    assert path.received is what
    assert one.used(family) == ({text: peer["name"]} if rejection is None else {})
    [standing] = one.tables.why(family, prefix(text))
    assert standing.lost_at == ("" if rejection is None else rejection.value)


@pytest.mark.parametrize(
    ("peer", "settings", "what", "preference"),
    [
        (EBGP, {}, PLAIN, None),
        (EBGP, {}, replace(PLAIN, communities=(GSHUT,)), 0),
        (EBGP, {"imports": (accept(set_local_pref=500),)}, replace(PLAIN, communities=(GSHUT,)), 0),
        (EBGP, {"imports": (accept(add_communities=(GSHUT,)),)}, PLAIN, 0),
        (EBGP, {"imports": (accept(set_local_pref=500),)}, PLAIN, 500),
        (IBGP, {}, replace(PLAIN, communities=(GSHUT,), local_pref=70), 70),  # its own border router has said it
    ],
)
def test_graceful_shutdown_is_the_least_preferred(
    peer: dict[str, Any], settings: dict[str, Any], what: Attributes, preference: int | None
) -> None:
    one = Speaker()
    one.up(**peer, **settings)
    one.learn(peer["name"], P, what)
    [(_, path)] = one.tables.received(peer["name"], V4)
    assert (path.rejection, path.attributes.local_pref) == (None, preference)


def test_other_settings_judge_what_was_received_again() -> None:
    one = Speaker()
    one.up(**EBGP, imports=(reject("192.0.2.0/25"),))
    one.learn("tor-a", "192.0.2.0/25 192.0.2.128/25", PLAIN)
    assert one.used() == {"192.0.2.128/25": "tor-a"}
    settings: dict[str, Any] = {"imports": (reject("192.0.2.128/25"), accept("192.0.2.0/25", set_local_pref=7))}
    one.tables.settings_changed("tor-a", TableSettings(**settings))
    assert one.used() == {"192.0.2.0/25": "tor-a"}
    assert [path.attributes.local_pref for _, path in one.tables.received("tor-a", V4)] == [7, None]
    one.tables.settings_changed("tor-a", TableSettings(**settings))
    assert one.tables.undecided == 0, "the same settings change nothing"


def test_a_rule_follows_the_interface_of_the_next_hop() -> None:
    one = Speaker()
    one.up(**EBGP, imports=(reject(interface="am-*"),), exports=())
    one.up("node-2", OURS, "172.31.9.1", exports=(reject(interface="eth0"),))
    one.reach["172.31.0.1"] = Reach(0, "am-vxlan")
    one.learn("tor-a", P, PLAIN)
    assert one.used() == {}
    one.reach["172.31.0.1"] = Reach(0, "eth0")
    one.tables.next_hops_changed()
    assert one.used() == {P: "tor-a"}
    assert one.sent("node-2", P) is None
    assert one.tables.why_not_sent("node-2", V4, prefix(P)) is Withheld.FILTER
    one.reach["172.31.0.1"] = Reach(0, "eth1")
    one.tables.next_hops_changed()
    assert one.sent("node-2", P) is not None


CLIENT: dict[str, Any] = {"client": True}
RR_ID, OTHER_ID = IPv4Address("1.1.1.1"), IPv4Address("2.2.2.2")

# Who it was learnt from (asn, settings), what came, who it is sent to (asn, settings), what differs in what is sent.
EXPORTS: list[tuple[str, int, dict[str, Any], Attributes, int, dict[str, Any], dict[str, Any] | Withheld]] = [
    ("external to external", 65001, {}, replace(PLAIN, med=9, local_pref=None), 65002, {},
     {"next_hop": NODE, "as_path": as_path(OURS, 65001, 65100), "med": None}),
    ("external to external, next hop kept", 65001, {}, PLAIN, 65002, {"keep_next_hop": True},
     {"as_path": as_path(OURS, 65001, 65100)}),
    ("external to internal", 65001, {}, replace(PLAIN, med=9), OURS, {}, {"next_hop": NODE, "local_pref": 100}),
    ("external to internal, next hop kept", 65001, {}, PLAIN, OURS, {"keep_next_hop": True}, {"local_pref": 100}),
    ("internal to external", OURS, {}, replace(PLAIN, local_pref=7, med=3), 65002, {"keep_next_hop": True},
     {"next_hop": NODE, "as_path": as_path(OURS, 65001, 65100), "local_pref": None, "med": None}),
    ("internal to internal", OURS, {}, PLAIN, OURS, {}, Withheld.INTERNAL),
    ("client to client", OURS, {**RR, **CLIENT}, PLAIN, OURS, {**RR, **CLIENT},
     {"local_pref": 100, "originator_id": IPv4Address("172.31.0.1"), "cluster_list": (RR_ID,)}),
    ("client to other", OURS, {**RR, **CLIENT}, PLAIN, OURS, RR,
     {"local_pref": 100, "originator_id": IPv4Address("172.31.0.1"), "cluster_list": (RR_ID,)}),
    ("other to client", OURS, RR, replace(PLAIN, originator_id=OTHER_ID, cluster_list=(OTHER_ID,)), OURS,
     {**RR, **CLIENT}, {"local_pref": 100, "cluster_list": (RR_ID, OTHER_ID)}),
    ("other to other", OURS, RR, PLAIN, OURS, RR, Withheld.INTERNAL),
    ("reflected to external", OURS, {**RR, **CLIENT}, replace(PLAIN, originator_id=OTHER_ID, cluster_list=(OTHER_ID,)),
     65002, {}, {"next_hop": NODE, "as_path": as_path(OURS, 65001, 65100), "originator_id": None, "cluster_list": ()}),
    ("external to client", 65001, {}, PLAIN, OURS, {**RR, **CLIENT}, {"next_hop": NODE, "local_pref": 100}),
    ("no-export to external", 65001, {}, replace(PLAIN, communities=(NO_EXPORT,)), 65002, {}, Withheld.NO_EXPORT),
    ("no-export to internal", 65001, {}, replace(PLAIN, communities=(NO_EXPORT,)), OURS, {},
     {"next_hop": NODE, "local_pref": 100}),
    ("no-export-subconfed", 65001, {}, replace(PLAIN, communities=(SUBCONFED,)), 65002, {}, Withheld.NO_EXPORT),
    ("no-advertise", 65001, {}, replace(PLAIN, communities=(NO_ADVERTISE,)), OURS, {}, Withheld.NO_ADVERTISE),
    ("long-lived stale", 65001, {}, replace(PLAIN, communities=(LLGR_STALE,)), OURS, {}, Withheld.LONG_LIVED),
    ("long-lived stale to who knows", 65001, {}, replace(PLAIN, communities=(LLGR_STALE,)), OURS,
     {"long_lived": True}, {"next_hop": NODE, "local_pref": 100}),
    ("rejected", 65001, {}, PLAIN, OURS, {"exports": (reject(P),)}, Withheld.FILTER),
    ("no policy", 65001, {}, PLAIN, 65002, {"default_export": False}, Withheld.NO_POLICY),
    ("changed by a rule", 65001, {}, PLAIN, 65002,
     {"exports": (accept(P, prepend=(65400,), add_communities=(77,), set_local_pref=9),)},
     {"next_hop": NODE, "as_path": as_path(OURS, 65400, 65001, 65100), "communities": (77,)}),
    ("external to external, leaving", 65001, {}, PLAIN, 65002, {"leaving": True},
     {"next_hop": NODE, "as_path": as_path(OURS, 65001, 65100), "communities": (GSHUT,)}),
    ("external to internal, leaving", 65001, {}, replace(PLAIN, local_pref=300, communities=(77,)), OURS,
     {"leaving": True}, {"next_hop": NODE, "local_pref": 0, "communities": (77, GSHUT)}),
    ("leaving, the next hop another's", 65001, {}, PLAIN, OURS, {"keep_next_hop": True, "leaving": True},
     {"local_pref": 100}),
    ("reflected, leaving", OURS, {**RR, **CLIENT}, PLAIN, OURS, {**RR, **CLIENT, "leaving": True},
     {"local_pref": 100, "originator_id": IPv4Address("172.31.0.1"), "cluster_list": (RR_ID,)}),
    ("leaving, whatever a rule prefers", 65001, {}, PLAIN, OURS,
     {"leaving": True, "exports": (accept(P, set_local_pref=9),)},
     {"next_hop": NODE, "local_pref": 0, "communities": (GSHUT,)}),
    ("unknown attributes go on", 65001, {},
     replace(PLAIN, unknown=(UnknownAttribute(0xE0, 99, b"x"),), extended_communities=(b"12345678",)), 65002, {},
     {"next_hop": NODE, "as_path": as_path(OURS, 65001, 65100)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asn", "settings", "what", "to_asn", "to_settings", "expected"), [case[1:] for case in EXPORTS],
    ids=[case[0] for case in EXPORTS],
)  # fmt: skip
def test_export(
    asn: int,
    settings: dict[str, Any],
    what: Attributes,
    to_asn: int,
    to_settings: dict[str, Any],
    expected: dict[str, Any] | Withheld,
) -> None:
    one = Speaker()
    one.up("from", asn, "172.31.0.1", **settings)
    one.up("to", to_asn, "172.31.9.9", **to_settings)
    one.learn("from", P, what)
    assert one.used() == {P: "from"}
    if isinstance(expected, Withheld):
        assert one.sent("to", P) is None
        assert one.tables.why_not_sent("to", V4, prefix(P)) is expected
    else:
        assert one.sent("to", P) == replace(what, **expected)
        assert one.tables.why_not_sent("to", V4, prefix(P)) is None
    assert one.sent("from", P) is None
    assert one.tables.why_not_sent("from", V4, prefix(P)) is Withheld.SOURCE


@pytest.mark.parametrize(
    ("asn", "next_hop", "expected"),
    [
        (65002, None, {"next_hop": NODE, "as_path": as_path(OURS), "local_pref": None, "med": 5}),
        (65002, "172.31.4.4", {"next_hop": NODE, "as_path": as_path(OURS), "local_pref": None, "med": 5}),
        (OURS, None, {"next_hop": NODE, "local_pref": 100, "med": 5}),
        (OURS, "172.31.4.4", {"next_hop": IPv4Address("172.31.4.4"), "local_pref": 100, "med": 5}),
    ],
)
def test_what_this_speaker_begins_is_sent_with_its_own_communities(
    asn: int, next_hop: str | None, expected: dict[str, Any]
) -> None:
    one = Speaker()
    one.up("to", asn, "172.31.9.9")
    own = replace(attributes(), next_hop=IPv4Address(next_hop) if next_hop else None, communities=(NO_EXPORT,), med=5)
    one.tables.originate(V4, prefix(P), own)
    assert one.sent("to", P) == replace(own, **expected)
    one.tables.withdraw_own(V4, prefix(P))
    assert one.sent("to", P) is None


@pytest.mark.parametrize("asn", [65002, OURS])
def test_the_own_route_of_a_node_that_leaves_is_sent_with_the_wish_to_be_passed_over_and_stays_its_own(
    asn: int,
) -> None:
    one = Speaker()
    one.up("to", asn, "172.31.9.9")
    one.up("node-2", OURS, "172.31.0.2", router_id="2.2.2.2")
    one.tables.originate(V4, prefix(P), replace(attributes(), next_hop=None))
    one.learn("node-2", P, attributes(hop="172.31.0.2", local_pref=100))
    before = one.sent("to", P)
    for name in ("to", "node-2"):
        one.tables.settings_changed(name, TableSettings(leaving=True))
    after = one.sent("to", P)
    assert before is not None
    assert after == replace(before, communities=(GSHUT,), local_pref=0 if asn == OURS else None)
    assert one.used() == {P: "own"}, "what others prefer now does not come before it here"
    for name in ("to", "node-2"):
        one.tables.settings_changed(name, TableSettings())
    assert one.sent("to", P) == before


def test_an_ipv6_next_hop_of_an_ipv4_prefix_needs_an_agreement() -> None:
    one = Speaker()
    one.up("from", OURS, "172.31.0.1", **RR, **CLIENT)
    one.up("to", OURS, "172.31.9.9", **RR, **CLIENT)
    one.learn("from", P, attributes(65001, hop="2001:db8::7"))
    sent = one.sent("to", P)
    assert sent is not None
    assert sent.next_hop == NODE


def test_a_link_local_next_hop_stays_on_its_link() -> None:
    one = Speaker()
    one.up("from", OURS, "fe80::7", families=[V6], router_id="7.7.7.7", interface="eth0", **RR, **CLIENT)
    one.up("to", OURS, "172.31.9.9", families=[V6], **RR, **CLIENT)
    text = "2001:db8:5::/48"
    one.learn("from", text, attributes(65001, hop="2001:db8::7", link_local=IPv6Address("fe80::7")))
    sent = one.sent("to", text, V6)
    assert sent is not None
    assert (sent.next_hop, sent.link_local) == (IPv6Address("2001:db8::7"), None)
    one.learn("from", text, attributes(65001, hop="fe80::7"))
    sent = one.sent("to", text, V6)
    assert sent is not None
    assert sent.next_hop == IPv6Address("2001:db8::1")
