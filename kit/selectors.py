"""Label selectors, exactly as Kubernetes matches them, also where some of the labels are not told.

Source: meta/v1 LabelSelector and ``labels.Requirement.Matches`` of apimachinery. All requirements must hold. ``NotIn``
and ``DoesNotExist`` hold for a label that is absent. A selector without requirements selects everything; ``None`` in
its place selects nothing. Values are compared as bytes are: no globbing, no case folding.

A record of an identity (``proto.identity.IdentityRecord``) tells the values of the labels that live selectors name; of
the others only a hash of the key. Such a *hidden* label is there, its value is unknown. A requirement on it is answered
with None unless its being there answers it, and a selector is answered with None where that decides. Who gives a right
asks :func:`selects`, for which unknown is no; who takes one away asks :func:`may_select`, for which it is yes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import assert_never

from proto.identity import IdentityRecord, NamedPort
from proto.objects import Requirement, Selector
from proto.policy import SelectorPeer

EVERYTHING = Selector()
"""Selects all that there is."""

NOTHING_HIDDEN: frozenset[int] = frozenset()


@lru_cache(maxsize=4096)
def hidden_key(key: str) -> int:
    """64-bit hash of a label key, the same everywhere and for ever: what is told of a label that no selector names."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def verdict(
    selector: Selector | None, labels: Mapping[str, str], hidden: Collection[int] = NOTHING_HIDDEN
) -> bool | None:
    """Whether the labels meet every requirement of the selector; None when that depends on a hidden label."""
    if selector is None:
        return False
    unknown = False
    for key, value in selector.match_labels:
        found = labels.get(key)
        if found is None and hidden and hidden_key(key) in hidden:
            unknown = True
        elif found != value:
            return False
    for requirement in selector.match_expressions:
        holds = _holds(requirement, labels, hidden)
        if holds is None:
            unknown = True
        elif not holds:
            return False
    return None if unknown else True


def selects(selector: Selector | None, labels: Mapping[str, str], hidden: Collection[int] = NOTHING_HIDDEN) -> bool:
    """Whether the labels surely meet every requirement of ``selector``; ``hidden``: hashes of keys of unknown value."""
    return verdict(selector, labels, hidden) is True


def may_select(selector: Selector | None, labels: Mapping[str, str], hidden: Collection[int] = NOTHING_HIDDEN) -> bool:
    """Whether the labels meet every requirement of ``selector``, or might, as far as they are told."""
    return verdict(selector, labels, hidden) is not False


def _holds(requirement: Requirement, labels: Mapping[str, str], hidden: Collection[int]) -> bool | None:
    value = labels.get(requirement.key)
    if value is None and hidden and hidden_key(requirement.key) in hidden:
        return {"Exists": True, "DoesNotExist": False}.get(requirement.operator)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            assert_never(requirement.operator)


def keys_named(selector: Selector | None) -> frozenset[str]:
    """Label keys that the selector's outcome can depend on."""
    if selector is None:
        return frozenset()
    return frozenset(key for key, _ in selector.match_labels) | frozenset(
        requirement.key for requirement in selector.match_expressions
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What selectors ask of an identity, ready to be asked often."""

    namespace: str
    namespace_labels: Mapping[str, str]
    labels: Mapping[str, str]
    """Of its pods."""
    named_ports: Collection[NamedPort] = ()
    hidden_namespace_keys: Collection[int] = NOTHING_HIDDEN
    hidden_keys: Collection[int] = NOTHING_HIDDEN

    @classmethod
    def of(cls, record: IdentityRecord) -> Candidate:
        """The candidate that a published record tells of."""
        return cls(
            namespace=record.namespace,
            namespace_labels=dict(record.namespace_labels),
            labels=dict(record.pod_labels),
            named_ports=record.named_ports,
            hidden_namespace_keys=frozenset(record.hidden_namespace_keys),
            hidden_keys=frozenset(record.hidden_pod_keys),
        )

    def is_in(self, peer: SelectorPeer) -> bool:
        """Whether the identity is surely among those that the peer names."""
        if peer.namespace_selector is not None:
            if peer.namespace and peer.namespace != self.namespace:
                return False
            if not selects(peer.namespace_selector, self.namespace_labels, self.hidden_namespace_keys):
                return False
        elif not peer.namespace or peer.namespace != self.namespace:
            return False
        if peer.pod_selector is not None and not selects(peer.pod_selector, self.labels, self.hidden_keys):
            return False
        return peer.named_port is None or peer.named_port in self.named_ports
