"""Faults of this node's routes that lie in what a Kubernetes object asks for: one for each object, to be told there.

Which object a fault is about, the planner says (:attr:`services.routing.core.faults.Fault.about`). A pool that many
pairs cannot have costs one sentence: the first of its pairs is named, the others are counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from proto.events import ObjectFault
from proto.objects import KIND_OF, BGPConfiguration, BGPPeer, FelixConfiguration, IPPool, Node
from services.routing.core.faults import Fault

REASON = "ModelUnavailable"
PEERING = "PeeringUnavailable"
"""Of what BGP's objects ask for."""
_KINDS = {kind.__name__: KIND_OF[kind] for kind in (FelixConfiguration, IPPool, BGPConfiguration, BGPPeer, Node)}
_MODELS = (FelixConfiguration, IPPool)


def of_objects(faults: Iterable[Fault], node: str) -> tuple[ObjectFault, ...]:
    """What ``node`` tells of the objects that its faults are about, in order of their names."""
    found: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        if fault.about is not None:
            found.setdefault(fault.about, []).append(fault)
    return tuple(_of_object(*about, sorted(of, key=lambda one: one.fault), node) for about, of in sorted(found.items()))


def _of_object(kind: str, name: str, faults: list[Fault], node: str) -> ObjectFault:
    named = _KINDS[kind]
    others = f" (and {len(faults) - 1} more of the sort)" if len(faults) > 1 else ""
    return ObjectFault(
        service="routing",
        node=node,
        group="" if named.group == "core" else named.group,
        kind=kind,
        namespace="",
        name=name,
        reason=REASON if named.type in _MODELS else PEERING,
        fault=f"on node {node}, {faults[0].fault}{others}",
        remedy=faults[0].remedy,
    )
