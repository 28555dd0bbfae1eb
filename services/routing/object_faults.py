"""Faults of this node's routes that lie in what a Kubernetes object asks for, as they are told on that object.

``cluster`` writes them there as an Event, one for each object, whose note names the nodes that say so. Which object a
fault is about, the planner says (:attr:`services.routing.core.faults.Fault.about`).
"""

from __future__ import annotations

from proto.events import ObjectFault
from proto.objects import KIND_OF, FelixConfiguration, IPPool
from services.routing.core.faults import Fault

REASON = "ModelUnavailable"
_GROUPS = {kind.__name__: KIND_OF[kind].group for kind in (FelixConfiguration, IPPool)}


def object_fault(fault: Fault, node: str) -> ObjectFault | None:
    """What ``node`` tells of the object that the fault is about; None for one that is about none."""
    if fault.about is None:
        return None
    kind, name = fault.about
    return ObjectFault(
        service="routing",
        node=node,
        group=_GROUPS[kind],
        kind=kind,
        namespace="",
        name=name,
        reason=REASON,
        fault=f"on node {node}, {fault.fault}",
        remedy=fault.remedy,
    )
