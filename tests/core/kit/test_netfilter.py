"""What a ruleset does to a packet, on rulesets as nft 1.0.6 prints them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from kit.netfilter import Dropped, Packet, dropped, parse

VXLAN = Packet(
    source=ip_address("172.30.0.12"),
    destination=ip_address("172.30.0.11"),
    protocol=17,
    port=4789,
    received_by="fab0",
)
L4 = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "udp"}}
PORT = {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 4789}}
STATE = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}}
DROP, ACCEPT, COUNTER = {"drop": None}, {"accept": None}, {"counter": {"packets": 7, "bytes": 700}}


def matching(field: str, right: Any, *, protocol: str = "ip", op: str = "==") -> Any:
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


def listed(*rules: Sequence[Any], policy: str = "accept", called: Sequence[Sequence[Any]] = (), **more: Any) -> str:
    chain = {"family": "inet", "table": "t", "name": "in", "handle": 1, "type": "filter", "hook": "input", "prio": 0}
    items: list[Any] = [{"metainfo": {"version": "1.0.6"}}, {"chain": {**chain, "policy": policy, **more}}]
    items.append({"chain": {"family": "inet", "table": "t", "name": "called"}})
    for name, group in (("in", rules), ("called", called)):
        for handle, expressions in enumerate(group, 10):
            rule = {"family": "inet", "table": "t", "chain": name, "handle": handle, "expr": list(expressions)}
            items.append({"rule": rule})
    return json.dumps({"nftables": items})


def judged(*rules: Sequence[Any], packet: Packet = VXLAN, hook: str = "input", **more: Any) -> Dropped | None:
    return dropped(parse(listed(*rules, **more)), hook, packet)


def test_a_rule_for_the_packet_drops_it_and_is_named_with_its_counter() -> None:
    found = judged([PORT, COUNTER, DROP])
    assert found is not None
    assert (found.packets, found.specific) == (7, True)
    assert found.removal == "nft delete rule inet t in handle 10"


@pytest.mark.parametrize(
    "condition",
    [
        L4,
        PORT,
        matching("saddr", "172.30.0.12"),
        matching("saddr", {"prefix": {"addr": "172.30.0.0", "len": 24}}),
        matching("saddr", {"set": ["10.0.0.1", {"prefix": {"addr": "172.30.0.0", "len": 24}}]}),
        matching("daddr", {"range": ["172.30.0.10", "172.30.0.19"]}),
        matching("daddr", "10.0.0.1", op="!="),
        matching("protocol", "udp"),
        matching("dport", {"range": [4000, 5000]}, protocol="udp"),
        {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "fab*"}},
    ],
    ids=str,
)
def test_a_condition_that_holds(condition: Any) -> None:
    assert judged([condition, DROP]) is not None


@pytest.mark.parametrize(
    "condition",
    [
        STATE,
        {"limit": {"rate": 1, "per": "second"}},
        {"xt": {"type": "match", "name": "udp"}},
        matching("saddr", "@blocked"),
        matching("sport", 53, protocol="udp"),
        matching("saddr", "10.0.0.1"),
        matching("saddr", "fd00::1", protocol="ip6"),
        matching("dport", 4789, protocol="tcp"),
        {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth*"}},
    ],
    ids=str,
)
def test_a_condition_that_does_not_hold_or_is_not_known(condition: Any) -> None:
    assert judged([condition, DROP]) is None


def test_what_comes_first_counts() -> None:
    assert judged([PORT, ACCEPT], [L4, DROP]) is None
    assert judged([STATE, ACCEPT], [L4, DROP]) is None, "it may have been accepted"
    assert judged([STATE, DROP], [L4, DROP]) is not None


def test_a_chain_that_is_jumped_to() -> None:
    jump = {"jump": {"target": "called"}}
    found = judged([L4, jump], called=[[PORT, DROP]])
    assert found is not None
    assert found.removal == "nft delete rule inet t called handle 10"
    assert found.chain.hook == "input"
    assert judged([jump], [PORT, DROP], called=[[{"return": None}], [PORT, DROP]]) is not None
    assert judged([{"goto": {"target": "called"}}], [PORT, DROP], called=[]) is None
    assert judged([jump], called=[[jump]]) is None, "a loop ends"


def test_a_policy_that_drops() -> None:
    found = judged(policy="drop")
    assert found is not None
    assert (found.rule, found.specific) == (None, False)
    assert found.removal == "nft chain inet t in '{ policy accept ; }'"
    assert judged([PORT, ACCEPT], policy="drop") is None
    assert judged([STATE, ACCEPT], policy="drop") is None, "nothing is said where a rule depends on more"


def test_other_hooks_families_and_devices() -> None:
    assert judged([PORT, DROP], hook="forward") is None
    assert judged([PORT, DROP], family="ip6") is None
    assert judged([PORT, DROP], hook="ingress") is None
    on_device = parse(listed([PORT, DROP], hook="ingress", dev="fab0"))
    assert dropped(on_device, "ingress", VXLAN) is not None
    assert dropped(on_device, "ingress", replace(VXLAN, received_by="mgmt0")) is None
