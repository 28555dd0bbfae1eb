"""The endpoint lifecycle as a table: what each step leaves behind, and so what an abandoned ADD must undo.

Owns the order. Promises: the host's end of a link comes up only after its policy, its identity and its programs are in
place (first instant closed), and undoing goes exactly the way back. A DEL is the undoing of the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from proto.addresses import Endpoint
from proto.net import Address
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.datapath.layout import Endpoint as LocalDelivery
from services.dataplane.core.datapath.layout import Link
from services.dataplane.core.endpoint.links import HOST_MAC, pod_mac
from services.dataplane.core.ipam.journal_records import Lease


class Step(IntEnum):
    """Steps of an ADD in their order; each one's number is what has been done after it."""

    ADDRESSED = 1
    """The journal holds its addresses."""
    LINKED = 2
    """The veth exists, the pod's end configured, the host's end down."""
    GUARDED = 3
    """Programs are attached to the host's end: deny until known."""
    KNOWN = 4
    """Identity, delivery and policy are in the maps."""
    UP = 5
    """The host's end is up."""


class Undo(IntEnum):
    """What takes one step back."""

    RELEASE_ADDRESSES = 1
    REMOVE_LINK = 2
    DETACH = 3
    FORGET = 4
    TAKE_DOWN = 5


UNDOES = {
    Step.ADDRESSED: Undo.RELEASE_ADDRESSES,
    Step.LINKED: Undo.REMOVE_LINK,
    Step.GUARDED: Undo.DETACH,
    Step.KNOWN: Undo.FORGET,
    Step.UP: Undo.TAKE_DOWN,
}


def way_back(reached: Step | None) -> tuple[Undo, ...]:
    """What undoes everything up to ``reached``, in order; the link goes down first, addresses rest last."""
    if reached is None:
        return ()
    return tuple(UNDOES[step] for step in sorted(Step, reverse=True) if step <= reached)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEndpoint:
    """A pod's interface on this node, as the agent knows it."""

    attachment: Attachment
    leases: tuple[Lease, ...]
    index: int
    """Interface index of the host's end; also the endpoint's number in the maps."""
    cookie: int
    """Of the pod's network namespace."""
    traceparent: str = ""

    @property
    def first(self) -> Lease:
        """What all leases of an attachment have in common stands in each."""
        return self.leases[0]

    @property
    def identity(self) -> int:
        """Security identity that the maps have for it."""
        return self.first.identity

    @property
    def addresses(self) -> tuple[Address, ...]:
        """IPv4 first."""
        return tuple(lease.address for lease in self.leases)

    @property
    def mac(self) -> bytes:
        """MAC address of the pod's end."""
        return pod_mac(self.attachment)

    def link(self) -> Link:
        """Value of ``am_links``."""
        by_version = {address.version: address for address in self.addresses}
        return Link(
            identity=self.identity,
            address4=by_version.get(4),
            address6=by_version.get(6),
            mac=self.mac,
            endpoint=self.index,
        )

    def delivery(self) -> LocalDelivery:
        """Value of ``am_endpoints`` for each of its addresses."""
        return LocalDelivery(
            identity=self.identity, ifindex=self.index, endpoint=self.index, mac=self.mac, host_mac=HOST_MAC
        )

    def published(self, node: str) -> tuple[Endpoint, ...]:
        """Values of ``endpoints.<node>.slot.<number>``."""
        return tuple(
            Endpoint(
                node=node,
                address=lease.address,
                namespace=lease.namespace,
                pod=lease.pod,
                pod_uid=lease.pod_uid,
                identity=lease.identity,
                mac=self.mac,
                epoch=lease.epoch,
                sequence=lease.sequence,
                claimed=lease.claimed,
            )
            for lease in self.leases
        )


class LocalEndpoints(Protocol):
    """The endpoints of this node, for whoever only looks at them."""

    @property
    def up(self) -> Mapping[Attachment, LocalEndpoint]:
        """Endpoints that the maps know (or should)."""
