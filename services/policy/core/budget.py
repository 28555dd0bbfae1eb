"""The identity quota of namespaces: which identities get rules and a record, and which get neither.

An identity is refused when its pods have too many labels to tell of, or when its namespace has more identities, or
larger ones, than one may have. Those that have a record already go first, so that nothing running is hurt; those that
only linger go last. A refused identity is absent, which is never "allow": its pods wait. No other namespace notices.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from services.policy.core.identities import Member, Roster
from services.policy.core.limits import About, Limits, Problem, about_pods


@dataclass(frozen=True, slots=True)
class Refusals:
    """Identities of one namespace that are refused."""

    overlabelled: frozenset[int] = frozenset()
    over_budget: frozenset[int] = frozenset()
    wanted: int = 0
    """How many identities its pods have."""

    def __bool__(self) -> bool:
        """True when any is refused."""
        return bool(self.overlabelled or self.over_budget)

    @property
    def identities(self) -> frozenset[int]:
        """All of them."""
        return self.overlabelled | self.over_budget

    def problems(self, namespace: str, roster: Roster, limits: Limits) -> Iterator[Problem]:
        """What is to be told, on the namespace and on some of the pods that wait."""
        if any(not roster.lingers(identity) for identity in self.over_budget):
            yield Problem(
                fault=f"the pods of namespace {namespace} have {self.wanted} different sets of labels, named ports and"
                f" service accounts: more than the {limits.identities} sets or {limits.record_bytes} bytes that one"
                " namespace may have, and the newest wait",
                remedy=f"give pods of one workload in namespace {namespace} equal labels, or use more namespaces",
                about=(
                    About("", "Namespace", "", namespace, "IdentityBudgetSpent"),
                    *about_pods(roster.pods_of(namespace, self.over_budget), "IdentityBudgetSpent"),
                ),
            )
        if about := about_pods(roster.pods_of(namespace, self.overlabelled), "TooManyLabels"):
            yield Problem(
                fault=f"pods in namespace {namespace} have more than {limits.labels} labels or named ports, or their"
                f" namespace has more than {limits.labels} labels: they wait",
                remedy=f"remove labels from pods {', '.join(pod.name for pod in about)} or their namespace",
                about=about,
            )


def refusals(
    roster: Roster, namespace: str, recorded: Set[int], limits: Limits, foreign: Set[str] = frozenset()
) -> Refusals:
    """Which identities of the namespace are refused, given those that have a record.

    Labels whose keys are ``foreign`` make identities that others want told apart: those that differ in nothing else
    count as one.
    """
    members = roster.by_namespace.get(namespace, {})
    overlabelled = frozenset(identity for identity, member in members.items() if member.most > limits.labels)
    rest = [member for identity, member in members.items() if identity not in overlabelled]
    if len(rest) <= limits.identities and sum(member.size for member in rest) <= limits.record_bytes:
        return Refusals(overlabelled)
    left, room = limits.identities, limits.record_bytes
    over: set[int] = set()
    paid: set[object] = set()
    for member in sorted(rest, key=lambda member: _precedence(member, roster, recorded)):
        own = _own(member, foreign)
        if own in paid:
            continue
        if left and member.size <= room:
            left, room = left - 1, room - member.size
            paid.add(own)
        else:
            over.add(member.identity)
    wanted = len({_own(member, foreign) for member in rest if not roster.lingers(member.identity)})
    return Refusals(overlabelled, frozenset(over), wanted)


def _own(member: Member, foreign: Set[str]) -> object:
    """What the namespace itself tells identities apart by; of those that linger each counts."""
    if not foreign or member.hidden_keys:
        return member.identity
    labels = frozenset(pair for pair in member.labels.items() if pair[0] not in foreign)
    return labels, frozenset(member.namespace_labels.items()), member.service_account, member.named_ports


def _precedence(member: Member, roster: Roster, recorded: Set[int]) -> tuple[bool, bool, int]:
    return roster.lingers(member.identity), member.identity not in recorded, member.identity
