"""Events for consumers: a published contract (subjects ``airmesh.v1.events.<service>.<what>``, MessagePack bodies).

Flow events are in ``proto.flow``. Headers: ``Airmesh-Version`` (major version), ``traceparent`` (W3C) where there is
one. :data:`EVENTS_BY_SUBJECT` is what the AsyncAPI document and the golden bytes are generated from.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.bgp import BgpStatus
from proto.dns import DnsReport
from proto.findings import Finding
from proto.flow import FlowEvent
from proto.net import Address
from proto.subjects import FINDING, FINDINGS, ROLES, flow_subject, heard_subject, object_fault_subject


class EndpointUp(msgspec.Struct, frozen=True):
    """A pod has its addresses and its policy; its ADD has been answered."""

    node: str
    namespace: str
    pod: str
    pod_uid: str
    addresses: tuple[Address, ...]
    identity: int
    milliseconds: float
    """From the CNI request to its answer."""


class EndpointDown(msgspec.Struct, frozen=True):
    """A pod's interface is gone and its addresses rest."""

    node: str
    namespace: str
    pod: str
    pod_uid: str
    addresses: tuple[Address, ...]


class AddressMoved(msgspec.Struct, frozen=True):
    """A kept address has another holder."""

    address: Address
    owner: str
    """``namespace/kind/name/ordinal``."""
    from_node: str
    to_node: str
    epoch: int


class PolicyCompiled(msgspec.Struct, frozen=True):
    """A shard has written everything up to this revision."""

    shard: int
    revision: str
    changed: int
    """Identities whose rules differ from before."""
    milliseconds: float


class RoutesChanged(msgspec.Struct, frozen=True):
    """A node's kernel routes were changed (also: drift that was repaired)."""

    node: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    drift: bool


class ModelStep(msgspec.Struct, frozen=True):
    """A step of a change of how one node sends to another's pods."""

    node: str
    peer: str
    family: Literal[4, 6]
    """Of pods' packets."""
    step: str
    """``laid`` (its device and entries are there), ``proved`` (its packets of measurement are answered), ``taken`` (the
    routes lead there), ``given-up`` (they led there and do no more), ``waits`` (it is asked for and cannot be taken
    yet)."""
    model: str
    before: str = ""
    """The model that packets took until now, where that differs; empty: none."""
    why: str = ""
    """One sentence."""


class BgpSession(msgspec.Struct, frozen=True):
    """A BGP session of a node is in another state."""

    node: str
    peer: str
    """``<BGPPeer>/<address>``, or ``mesh/<node>``."""
    state: str
    """``Idle``, ``Connect``, ``Active``, ``OpenSent``, ``OpenConfirm``, ``Established`` (RFC 4271 8.2.2)."""
    why: str = ""
    """Why there is no session: one sentence; empty while there is one, or before the first attempt."""
    remedy: str = ""


class FindingEvent(msgspec.Struct, frozen=True):
    """The standing check of an agent has found what is wrong, or finds it no more."""

    service: str
    node: str
    """Node whose agent speaks; empty for a service that is not of a node."""
    state: Literal["came", "lasts", "gone"]
    """``lasts``: told again while it does, since an event may be lost."""
    at: int
    """Unix seconds of the look."""
    finding: Finding
    """With ``since`` and, where one is known, ``change``; of one that is gone as it was found last."""
    instance: str = ""
    """Which copy of the service speaks."""
    again: int = 0
    """Seconds within which it is told again while it lasts; 0: not known."""


class ServiceFault(msgspec.Struct, frozen=True):
    """Something a person should know: one sentence, with the remedy."""

    service: str
    node: str
    fault: str
    remedy: str


class ObjectFault(msgspec.Struct, frozen=True):
    """A Kubernetes object that is not honoured, or not whole: told on the object itself by ``cluster``.

    Who speaks is known by the subject (``subjects.object_fault_subject``), which the key grants; ``service`` and
    ``node`` only say so to other listeners.
    """

    service: str
    node: str
    """Node whose agent speaks; empty for a service that is not of a node."""
    group: str
    """API group, empty for the core group."""
    kind: str
    """As the API spells it, e.g. ``Service``."""
    namespace: str
    """Empty for a cluster-wide object."""
    name: str
    reason: str
    """CamelCase, the same for every fault of a sort: with the object it names one series, e.g. ``TableFull``."""
    fault: str
    """One sentence; names who caused it (namespace, pod, node), with the numbers."""
    remedy: str


EVENTS_BY_SUBJECT: dict[str, type[msgspec.Struct]] = {
    heard_subject("dataplane", "endpoint-up"): EndpointUp,
    heard_subject("dataplane", "endpoint-down"): EndpointDown,
    heard_subject("dataplane", "fault"): ServiceFault,
    heard_subject("ipam", "address-moved"): AddressMoved,
    heard_subject("ipam", "fault"): ServiceFault,
    heard_subject("policy", "compiled"): PolicyCompiled,
    heard_subject("policy", "fault"): ServiceFault,
    heard_subject("routing", "changed"): RoutesChanged,
    heard_subject("routing", "model"): ModelStep,
    heard_subject("routing", "bgp"): BgpSession,
    heard_subject("routing", "bgp-status"): BgpStatus,
    heard_subject("routing", "fault"): ServiceFault,
    heard_subject("cluster", "fault"): ServiceFault,
    heard_subject("dns", "report"): DnsReport,
    **{heard_subject(role.name, FINDING): FindingEvent for role in ROLES if FINDINGS in role.discovered},
    object_fault_subject("dataplane", "*"): ObjectFault,
    object_fault_subject("routing", "*"): ObjectFault,
    object_fault_subject("policy"): ObjectFault,
    object_fault_subject("ipam"): ObjectFault,
    object_fault_subject("dns"): ObjectFault,
    object_fault_subject("cluster"): ObjectFault,
    flow_subject("*", "dropped"): FlowEvent,
    flow_subject("*", "forwarded"): FlowEvent,
}
"""Subject (``*`` stands for the node) → type of the body."""
