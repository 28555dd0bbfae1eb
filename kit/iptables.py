"""Rules of iptables-legacy as a ruleset of nftables has them, from what `iptables-legacy-save --counters` prints.

Pure. They are evaluated beside the ruleset of nftables and are no part of it. An option that is not about addresses,
protocol, destination port or interfaces makes its rule one of which nothing is said (``kit.netfilter``).
Source: iptables-save(8), iptables(8); net/ipv4/netfilter/iptable_*.c for hooks and priorities.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kit.netfilter import Chain, Rule, Ruleset

PRIORITIES: Mapping[str, int] = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_HOOKS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_VERDICTS = {"DROP": "drop", "REJECT": "reject", "ACCEPT": "accept", "RETURN": "return"}
_SILENT_MATCHES = frozenset({"tcp", "udp", "sctp", "comment"})
"""Extensions that say nothing by themselves: their options do."""
_SILENT_OPTIONS = frozenset({"--comment", "--reject-with"})


def parse(saved: str, version: int) -> Ruleset:
    """``version``: 4 for what `iptables-legacy-save` printed, 6 for `ip6tables-legacy-save`. Raises ValueError."""
    found: dict[tuple[str, str], tuple[str, list[Rule]]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            found[table, name] = policy.lower() if policy != "-" else "accept", []
        elif line.startswith(("[", "-A")):
            counted, words = _counted(shlex.split(line))
            if len(words) < 2 or words[0] != "-A" or (table, words[1]) not in found:
                raise ValueError(f"a line of iptables-save that is no rule: {line[:80]!r}")
            rules = found[table, words[1]][1]
            spec = line[line.index("-A ") :].removeprefix(f"-A {words[1]}").strip()
            rules.append(
                Rule(handle=len(rules) + 1, expressions=(*_expressions(words[2:], version), counted), spec=spec)
            )
    program = "iptables-legacy" if version == 4 else "ip6tables-legacy"
    return Ruleset(
        chains=tuple(
            Chain(
                family="ip" if version == 4 else "ip6",
                table=table,
                name=name,
                hook=name.lower() if name in _HOOKS else "",
                priority=PRIORITIES.get(table, 0),
                policy=policy,
                rules=tuple(rules),
                program=program,
            )
            for (table, name), (policy, rules) in found.items()
        )
    )


def _counted(words: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """The counter of a rule, ``[packets:bytes]`` before it, and the other words."""
    if not words[0].startswith("["):
        return {"counter": {"packets": 0}}, words
    return {"counter": {"packets": int(words[0].strip("[]").partition(":")[0])}}, words[1:]


def _options(words: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Each option with its argument, and whether it is negated."""
    negated, at = False, 0
    while at < len(words):
        word, at = words[at], at + 1
        if word == "!":
            negated = True
            continue
        arguments = []
        while at < len(words) and words[at] != "!" and not words[at].startswith("-"):
            arguments.append(words[at])
            at += 1
        yield word, " ".join(arguments), negated
        negated = False


def _expressions(words: Sequence[str], version: int) -> Iterator[Any]:
    """A rule's conditions and its verdict, as nft prints them; ``xt`` for what is not understood."""
    verdicts = []
    for option, argument, negated in _options(words):
        if option == "-j":
            verdicts.append({_VERDICTS[argument]: None} if argument in _VERDICTS else {"jump": {"target": argument}})
        elif option == "-g":
            verdicts.append({"goto": {"target": argument}})
        elif option not in _SILENT_OPTIONS and not (option == "-m" and argument in _SILENT_MATCHES):
            condition = _condition(option, argument, version)
            if condition is not None and not negated:
                yield condition
            elif condition is not None:
                yield {"match": {**condition["match"], "op": "!="}}
            else:
                yield {"xt": {"type": "match", "name": option}}
    yield from verdicts


def _condition(option: str, argument: str, version: int) -> Any | None:
    protocol = "ip" if version == 4 else "ip6"
    if option in ("-s", "-d"):
        address, _, length = argument.partition("/")
        if not length.isdecimal():
            return None if length else _match({"payload": {"protocol": protocol, "field": _FIELDS[option]}}, address)
        prefix = {"prefix": {"addr": address, "len": int(length)}}
        return _match({"payload": {"protocol": protocol, "field": _FIELDS[option]}}, prefix)
    if option == "-p":
        return _match({"meta": {"key": "l4proto"}}, int(argument) if argument.isdecimal() else argument)
    if option in ("-i", "-o"):
        key = "iifname" if option == "-i" else "oifname"
        return _match({"meta": {"key": key}}, argument.removesuffix("+") + "*" * argument.endswith("+"))
    if option == "--dport":
        low, _, high = argument.partition(":")
        if not low.isdecimal() or not (high or low).isdecimal():
            return None
        right = {"range": [int(low), int(high)]} if high else int(low)
        return _match({"payload": {"protocol": "th", "field": "dport"}}, right)
    return None


_FIELDS = {"-s": "saddr", "-d": "daddr"}


def _match(left: Any, right: Any) -> Any:
    return {"match": {"op": "==", "left": left, "right": right}}
