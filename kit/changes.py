"""The change of a Kubernetes object that came just before a finding, of those that have something to do with it.

A change is a write or a removal that a mirror of the bucket ``objects`` has seen since the look before. One that is
about an object that the finding names comes first, then one that an object of its kind of fault depends on; of several
the last. That it came before is all that is said: whether it is the cause, the evidence of the finding says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proto.codec import Malformed, split
from proto.findings import Fault, Finding, object_name
from proto.objects import KINDS, EndpointSlice

_NAMES = {(kind.group, kind.kind): kind.type.__name__ for kind in KINDS}
_POOLS = ("IPPool", "FelixConfiguration", "BGPConfiguration", "BGPPeer", "BGPFilter")
_BESIDE: dict[Fault, tuple[str, ...]] = {
    "nodes-apart": _POOLS,
    "policy": ("NetworkPolicy", "Namespace", "Pod"),
    "service": ("EndpointSlice", "Pod"),
    "dns": ("ConfigMap", "Deployment", "EndpointSlice", "Service"),
    "nodeport": ("Service", "EndpointSlice", "Pod"),
}
"""Kinds of objects that a fault may come from though the finding does not name them; those of a namespace, where what
the finding is about is in the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """An object that was written or removed."""

    kind: str
    namespace: str
    name: str
    revision: int
    """Sequence of the bucket ``objects``."""
    removed: bool = False
    service: str = ""
    """The Service of an EndpointSlice, where that is known."""

    @property
    def about(self) -> str:
        """As ``proto.findings.object_name`` writes it."""
        return object_name(self.kind, self.namespace, self.name)


def changed(key: str, value: object, revision: int) -> Changed | None:
    """What a key of ``objects`` says that was written, or with ``value`` None removed; None for a key of no object."""
    try:
        group, kind, *of_node, namespace, name = split(key)
    except (Malformed, ValueError):
        return None
    named = _NAMES.get((group, kind))
    if named is None or len(of_node) > 1:
        return None
    return Changed(
        kind=named,
        namespace=namespace,
        name=name,
        revision=revision,
        removed=value is None,
        service=value.service if isinstance(value, EndpointSlice) else "",
    )


def just_before(finding: Finding, changes: Iterable[Changed]) -> str:
    """``Service shop/web was written (sequence 812 of objects)``; empty when none of them has to do with it."""
    known = ((nearness, one.revision, one) for one in changes if (nearness := _nearness(finding, one)))
    found = max(known, key=lambda one: one[:2], default=None)
    if found is None:
        return ""
    change = found[2]
    verb = "was removed" if change.removed else "was written"
    return f"{change.about} {verb} (sequence {change.revision} of objects)"


def _nearness(finding: Finding, change: Changed) -> int:
    """3: the finding is about it; 2: it names it; 1: its kind of fault may come from it; 0: neither."""
    if change.about == finding.about:
        return 3
    named = {finding.about, finding.expected.object, *finding.affects}
    ends = finding.about.split(" ")[1:] if finding.about.startswith("Pair ") else ()
    if change.about in named or (change.kind == "Node" and change.name in ends):
        return 2
    if change.service and object_name("Service", change.namespace, change.service) in named:
        return 2
    if change.kind not in _BESIDE[finding.fault]:
        return 0
    return int(not change.namespace or change.kind == "Namespace" or change.namespace == _namespace(finding.about))


def _namespace(about: str) -> str:
    """Of ``Service shop/web``; empty for what has none."""
    name = about.partition(" ")[2]
    return name.partition("/")[0] if "/" in name else ""
