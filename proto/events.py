"""Events for consumers: a published contract (subjects ``airmesh.v1.events.<service>.<what>``, MessagePack bodies).

Flow events are in ``proto.flow``. Headers: ``Airmesh-Version`` (major version), ``traceparent`` (W3C) where there is
one. :data:`EVENTS_BY_SUBJECT` is what the AsyncAPI document and the golden bytes are generated from.
"""

from __future__ import annotations

import msgspec

from proto.dns import DnsReport
from proto.flow import FlowEvent
from proto.net import Address
from proto.subjects import event_subject, flow_subject


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


class ServiceFault(msgspec.Struct, frozen=True):
    """Something a person should know: one sentence, with the remedy."""

    service: str
    node: str
    fault: str
    remedy: str


EVENTS_BY_SUBJECT: dict[str, type[msgspec.Struct]] = {
    event_subject("dataplane", "endpoint-up"): EndpointUp,
    event_subject("dataplane", "endpoint-down"): EndpointDown,
    event_subject("dataplane", "fault"): ServiceFault,
    event_subject("ipam", "address-moved"): AddressMoved,
    event_subject("ipam", "fault"): ServiceFault,
    event_subject("policy", "compiled"): PolicyCompiled,
    event_subject("policy", "fault"): ServiceFault,
    event_subject("routing", "changed"): RoutesChanged,
    event_subject("routing", "fault"): ServiceFault,
    event_subject("cluster", "fault"): ServiceFault,
    event_subject("dns", "report"): DnsReport,
    flow_subject("*", "dropped"): FlowEvent,
    flow_subject("*", "forwarded"): FlowEvent,
}
"""Subject (``*`` stands for the node) → type of the body."""
