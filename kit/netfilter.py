"""The verdict of a host's nftables ruleset on a packet.

Pure: from what `nft --json list ruleset` prints (libnftables-json(5)). Rules of iptables-nft are in that ruleset too;
those of iptables-legacy come beside it (``kit.iptables``). A rule counts only when each of its conditions is understood
and holds for the packet: a condition that depends on more than the packet (conntrack state, a limit, an extension of
iptables) makes the rule one of which nothing is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from proto.net import Address, Network

DEPTH = 16
"""Chains that jump into each other; the kernel has the same bound (NFT_JUMP_STACK_SIZE)."""
PROTOCOLS = {"icmp": 1, "ipencap": 4, "ipip": 4, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmpv6": 58}
_FAMILIES: Mapping[str, tuple[int, ...]] = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet at a hook."""

    source: Address
    destination: Address
    protocol: int
    """IANA number."""
    port: int = 0
    """Destination; 0 for protocols without ports."""
    received_by: str = ""
    sent_by: str = ""
    """Names of interfaces; empty where there is none at that hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, its expressions as nft prints them."""

    handle: int
    expressions: tuple[Any, ...]
    spec: str = ""
    """Of a rule of iptables: its options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; a base chain has a hook."""

    family: str
    table: str
    name: str
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()
    """Of a chain of the family netdev."""
    rules: tuple[Rule, ...] = ()
    program: str = "nft"
    """By which it is changed; ``iptables-legacy`` and ``ip6tables-legacy`` have rules of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """All chains in the order of their tables."""

    chains: tuple[Chain, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A rule, or a chain's policy, that drops a packet."""

    chain: Chain
    rule: Rule | None
    """None: the policy."""
    packets: int
    """What the rule's counter says; 0 without one."""
    specific: bool
    """The rule names addresses, a protocol or a port of the packet: it was meant for such packets."""

    @property
    def text(self) -> str:
        """``inet filter forward, handle 7 (priority 0)``."""
        if self.chain.program != "nft":
            what = f"-A {self.chain.name} {self.rule.spec}" if self.rule is not None else f"-P {self.chain.name} DROP"
            return f"{self.chain.program} -t {self.chain.table} {what} (hook {self.chain.hook})"
        what = f"handle {self.rule.handle}" if self.rule is not None else "policy drop"
        return f"{self.chain.family} {self.chain.table} {self.chain.name}, {what} (hook {self.chain.hook})"

    @property
    def removal(self) -> str:
        """The command that ends it."""
        if self.chain.program != "nft":
            what = f"-D {self.chain.name} {self.rule.spec}" if self.rule is not None else f"-P {self.chain.name} ACCEPT"
            return f"{self.chain.program} -t {self.chain.table} {what}"
        of = f"{self.chain.family} {self.chain.table} {self.chain.name}"
        if self.rule is not None:
            return f"nft delete rule {of} handle {self.rule.handle}"
        return f"nft chain {of} '{{ policy accept ; }}'"


def parse(listed: str) -> Ruleset:
    """The ruleset that `nft --json list ruleset` printed. Raises ValueError for what is none."""
    items = json.loads(listed)["nftables"]
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    for one in (item["rule"] for item in items if "rule" in item):
        key = one["family"], one["table"], one["chain"]
        rules.setdefault(key, []).append(Rule(handle=one["handle"], expressions=tuple(one.get("expr", ()))))
    return Ruleset(chains=tuple(_chain(item["chain"], rules) for item in items if "chain" in item))


def joined(*rulesets: Ruleset) -> Ruleset:
    """All chains of several programs."""
    return Ruleset(chains=tuple(chain for one in rulesets for chain in one.chains))


def _chain(one: Mapping[str, Any], rules: Mapping[tuple[str, str, str], list[Rule]]) -> Chain:
    devices = one.get("dev", ())
    return Chain(
        family=one["family"],
        table=one["table"],
        name=one["name"],
        hook=one.get("hook", ""),
        priority=one.get("prio", 0),
        policy=one.get("policy", "accept"),
        devices=(devices,) if isinstance(devices, str) else tuple(devices),
        rules=tuple(rules.get((one["family"], one["table"], one["name"]), ())),
    )


def dropped(ruleset: Ruleset, hook: str, packet: Packet) -> Dropped | None:
    """What drops a packet at a hook (``prerouting``, ``input``, ``forward``, ``output``, ``postrouting``, ``ingress``,
    ``egress``), if anything surely does.
    """
    version = packet.source.version
    for chain in sorted(ruleset.chains, key=lambda one: one.priority):
        if chain.hook != hook or version not in _FAMILIES.get(chain.family, ()):
            continue
        device = packet.received_by if hook == "ingress" else packet.sent_by
        if chain.devices and device not in chain.devices:
            continue
        verdict = _walk(ruleset, chain, chain, packet, DEPTH)
        if isinstance(verdict, Dropped):
            return verdict
        if verdict == "end" and chain.policy == "drop" and not any(_unsure(rule, packet) for rule in chain.rules):
            return Dropped(chain=chain, rule=None, packets=0, specific=False)
    return None


def _walk(ruleset: Ruleset, base: Chain, chain: Chain, packet: Packet, depth: int) -> Dropped | str:
    """A drop; ``accept``, where an accept may come as well; or ``end``."""
    for rule in chain.rules:
        held = [holds(match, packet) for match in _conditions(rule)]
        if False in held:
            continue
        verdict, target = _verdict(rule)
        if None in held:
            if verdict == "accept":
                return "accept"
            continue
        if verdict in ("drop", "reject"):
            at = chain if chain is base else _called(base, chain)
            return Dropped(chain=at, rule=rule, packets=_counted(rule), specific=_is_specific(rule))
        if verdict == "accept":
            return "accept"
        if verdict == "return":
            return "end"
        if verdict in ("jump", "goto") and depth:
            called = next((one for one in ruleset.chains if _is_in(one, chain, target)), None)
            inner = _walk(ruleset, base, called, packet, depth - 1) if called is not None else "end"
            if inner != "end" or verdict == "goto":
                return inner
    return "end"


def _called(base: Chain, chain: Chain) -> Chain:
    """A chain that was jumped to, with the hook that it was reached by."""
    return replace(chain, hook=base.hook)


def _is_in(one: Chain, beside: Chain, name: str) -> bool:
    return (one.program, one.family, one.table, one.name) == (beside.program, beside.family, beside.table, name)


def _unsure(rule: Rule, packet: Packet) -> bool:
    held = [holds(match, packet) for match in _conditions(rule)]
    return None in held and False not in held and _verdict(rule)[0] in ("accept", "jump", "goto")


def _conditions(rule: Rule) -> Iterator[Any]:
    for one in rule.expressions:
        if isinstance(one, dict) and one.keys() & {"match", "xt", "limit", "vmap", "fib", "connlimit"}:
            yield one


def _verdict(rule: Rule) -> tuple[str, str]:
    for one in rule.expressions:
        if isinstance(one, dict):
            for name in ("drop", "reject", "accept", "return"):
                if name in one:
                    return name, ""
            for name in ("jump", "goto"):
                if name in one:
                    return name, str(one[name]["target"])
    return "", ""


def _counted(rule: Rule) -> int:
    counters = (one["counter"] for one in rule.expressions if isinstance(one, dict) and "counter" in one)
    return next((int(one["packets"]) for one in counters if isinstance(one, dict)), 0)


def _is_specific(rule: Rule) -> bool:
    lefts = (one["match"]["left"] for one in _conditions(rule) if "match" in one)
    named = (left for left in lefts if isinstance(left, dict))
    return any("payload" in left or left.get("meta", {}).get("key") == "l4proto" for left in named)


def holds(condition: Any, packet: Packet) -> bool | None:
    """Whether a condition of a rule holds for a packet; None where the packet alone does not say."""
    match = condition.get("match")
    if not isinstance(match, dict) or not isinstance(match.get("left"), dict):
        return None
    values = _values(match["left"], packet)
    if values is None:
        return None
    found = _among(values, match["right"])
    if found is None or match.get("op") not in ("==", "!=", "in"):
        return None
    return found is not (match["op"] == "!=")


def _values(left: Mapping[str, Any], packet: Packet) -> Sequence[Any] | None:
    """What the left side of a condition is of a packet, as nft may spell it; empty: the packet has no such field."""
    meta, payload = left.get("meta"), left.get("payload")
    if isinstance(meta, dict):
        return _of_meta(str(meta.get("key")), packet)
    if not isinstance(payload, dict):
        return None
    protocol, field = payload.get("protocol"), payload.get("field")
    if protocol in ("ip", "ip6"):
        if (packet.source.version == 4) != (protocol == "ip"):
            return ()
        names = {"saddr": [packet.source], "daddr": [packet.destination]}
        numbers = _protocol(packet) if field in ("protocol", "nexthdr") else None
        return names.get(str(field), numbers)
    if protocol in ("tcp", "udp", "th"):
        if protocol != "th" and packet.protocol != PROTOCOLS[str(protocol)]:
            return ()
        return [packet.port] if field == "dport" else None
    return None


def _of_meta(key: str, packet: Packet) -> Sequence[Any] | None:
    if key in ("l4proto", "protocol", "nfproto"):
        if key == "l4proto":
            return _protocol(packet)
        four = packet.source.version == 4
        return ["ip", "ipv4"] if four else ["ip6", "ipv6"]
    if key in ("iifname", "iif"):
        return [packet.received_by] if packet.received_by else ()
    if key in ("oifname", "oif"):
        return [packet.sent_by] if packet.sent_by else ()
    return None


def _protocol(packet: Packet) -> list[Any]:
    return [packet.protocol, *(name for name, number in PROTOCOLS.items() if number == packet.protocol)]


def _among(values: Sequence[Any], right: Any) -> bool | None:
    """Whether one of the spellings is what the right side of a condition says; None where that is not understood."""
    if isinstance(right, list):
        right = {"set": right}
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        judged = [_among(values, one) for one in right["set"]]
        return True if True in judged else None if None in judged else False
    if isinstance(right, dict) and isinstance(right.get("elem"), dict):
        return _among(values, right["elem"].get("val"))
    if isinstance(right, dict):
        return _within(values, right)
    if isinstance(right, str) and right.startswith("@"):
        return None
    return any(_is(value, right) for value in values)


def _within(values: Sequence[Any], right: Mapping[str, Any]) -> bool | None:
    if isinstance(prefix := right.get("prefix"), dict):
        network: Network = ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
        return any(not isinstance(value, str | int) and value in network for value in values)
    if isinstance(span := right.get("range"), list) and len(span) == 2:
        low, high = span
        if isinstance(low, int) and isinstance(high, int):
            return any(isinstance(value, int) and low <= value <= high for value in values)
        first, last = ip_address(low), ip_address(high)
        inside = (value for value in values if not isinstance(value, str | int) and value.version == first.version)
        return any(int(first) <= int(value) <= int(last) for value in inside)
    return None


def _is(value: Any, right: Any) -> bool:
    if isinstance(value, str) and isinstance(right, str) and right.endswith("*"):
        return value.startswith(right[:-1])
    return value == right or str(value) == str(right)
