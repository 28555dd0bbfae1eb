"""Checks of policies that allow together: NetworkPolicies add up, so what one leaves out another may allow.

A pod is judged by all policies that select it, and a flow is allowed when a rule of any of them allows it
(networking/v1 NetworkPolicySpec). So a policy restricts nothing in a direction where other policies allow every peer on
every port to all its pods; that is told always. When somebody asks for one policy, every rule of another that allows
more peers on the same ports is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kit.selectors import Candidate
from proto.findings import OBJECT, Expected, Finding, Observed
from proto.identity import NamedPort
from proto.policy import Direction
from services.policy.core.doctor.selectors import edit_named
from services.policy.core.identities import Member
from services.policy.core.model import Action, Policy, Rule
from services.policy.core.ports import resolve
from services.policy.core.tiers import both_ports

SECOND_ALLOW = "policy-second-allow"
CODES = (SECOND_ALLOW,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An identity that the policy selects, and all policies that select it."""

    member: Member
    policies: Sequence[Policy]


def check(
    policy: Policy, subjects: Sequence[Subject], members: Mapping[int, Member], *, asked: bool
) -> Iterator[Finding]:
    """Where others allow what the policy leaves out; ``members`` are all identities in use."""
    for direction in Direction:
        rules = policy.rules(direction)
        if not policy.isolates(direction) or not rules or not subjects or any(map(_is_everything, rules)):
            continue
        if (openers := _openers(policy, direction, subjects)) is not None:
            yield _restricts_nothing(policy, direction, openers)
        elif asked:
            yield from _allow_more(policy, direction, subjects, members)


def _openers(policy: Policy, direction: Direction, subjects: Iterable[Subject]) -> list[Policy] | None:
    """Other policies that allow everything to each subject; None when to some of them none does."""
    found: dict[str, Policy] = {}
    for subject in subjects:
        wide = [
            one
            for one in subject.policies
            if one.name != policy.name and any(map(_is_everything, one.rules(direction)))
        ]
        if not wide:
            return None
        found.update({str(one.name): one for one in wide})
    return [found[name] for name in sorted(found)]


def _is_everything(rule: Rule) -> bool:
    return rule.action is Action.ALLOW and rule.any_peer and not rule.ports


def _allow_more(
    policy: Policy, direction: Direction, subjects: Iterable[Subject], members: Mapping[int, Member]
) -> Iterator[Finding]:
    reported: set[tuple[str, int]] = set()
    for subject in subjects:
        ports = subject.member.named_ports if direction is Direction.INGRESS else ()
        for other in subject.policies:
            for rule in other.rules(direction):
                key = str(other.name), rule.index
                if other.name == policy.name or key in reported:
                    continue
                same = [one for one in policy.rules(direction) if _share_ports(one, rule, ports)]
                more = _more(rule, same, members) if same else ""
                if more:
                    reported.add(key)
                    yield _allows_more(policy, other, rule, direction, more)


def _share_ports(one: Rule, other: Rule, named: tuple[NamedPort, ...]) -> bool:
    """Whether both are about some port; for egress a named port is compared by its name."""
    if set(one.ports) & set(other.ports):
        return True
    pairs = ((mine, theirs) for mine in resolve(one.ports, named) for theirs in resolve(other.ports, named))
    return any(both_ports(mine, theirs) is not None for mine, theirs in pairs)


def _more(rule: Rule, same: Sequence[Rule], members: Mapping[int, Member]) -> str:
    """Whom a rule allows that none of these rules does; empty for nobody."""
    if any(one.any_peer for one in same):
        return ""
    if rule.any_peer:
        return "every peer, pods or not"
    blocks = set(rule.blocks) - {block for one in same for block in one.blocks}
    if blocks:
        return ", ".join(sorted(str(block.cidr) for block in blocks))
    known = {identity for one in same for identity in _matched(one, members)}
    more = sorted(_matched(rule, members) - known)
    if not more:
        return ""
    described = members[more[0]].described
    return described if len(more) == 1 else f"{described}, and {len(more) - 1} more kinds of pods"


def _matched(rule: Rule, members: Mapping[int, Member]) -> set[int]:
    candidates: Iterable[tuple[int, Candidate]] = ((identity, member.candidate) for identity, member in members.items())
    return {identity for identity, one in candidates if any(one.is_in(selector) for selector in rule.selectors)}


def _restricts_nothing(policy: Policy, direction: Direction, openers: Sequence[Policy]) -> Finding:
    word = direction.name.lower()
    names = ", ".join(str(one.name) for one in openers)
    rules = [(one, rule) for one in openers for rule in one.rules(direction) if _is_everything(rule)]
    return Finding(
        code=SECOND_ALLOW,
        fault="policy",
        about=str(policy.name),
        cause=f"its {word} rules restrict nothing: {names} allows every peer on every port of all its pods",
        expected=Expected(f"{word} of its pods that these rules alone decide", str(policy.name)),
        observed=tuple(
            Observed("object", f"{one.name}, {word} rule {rule.index}: every peer, every port") for one, rule in rules
        ),
        fixes=tuple(
            edit_named(one.name.namespace, one.name.name, f"take {word} rule {rule.index} out, or narrow it")
            for one, rule in rules
        ),
        affects=tuple(str(one.name) for one in openers),
        precedence=OBJECT,
    )


def _allows_more(policy: Policy, other: Policy, rule: Rule, direction: Direction, more: str) -> Finding:
    word = direction.name.lower()
    return Finding(
        code=SECOND_ALLOW,
        fault="policy",
        about=str(policy.name),
        cause=f"{other.name} selects the same pods, and its {word} rule {rule.index} allows {more} on the same ports",
        expected=Expected(f"{word} of its pods that these rules alone decide", str(policy.name)),
        observed=(Observed("object", f"{other.name}, {word} rule {rule.index}: {more}"),),
        fixes=(
            edit_named(
                other.name.namespace, other.name.name, f"narrow {word} rule {rule.index}, or what the policy selects"
            ),
        ),
        affects=(str(other.name),),
        precedence=OBJECT,
    )
