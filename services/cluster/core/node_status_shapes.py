"""CalicoNodeStatus as JSON spells it: what is asked for is read, and its status is written.

Owns the border, as ``core.shapes`` does for all other kinds. Times of a daemon are in BIRD's words.

Source: crd.projectcalico.org/v1 (Calico 3.32).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from services.cluster.core.shapes import Metadata, Shape


class CalicoNodeStatusSpec(Shape, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodeStatusSpec."""

    node: Annotated[str, Meta(max_length=253)] | None = None
    classes: Annotated[list[Literal["Agent", "BGP", "Routes"]], Meta(max_length=16)] | None = None
    update_period_seconds: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None


class CalicoNodeStatusShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodeStatus; its status is written, and never read."""

    metadata: Metadata
    spec: CalicoNodeStatusSpec | None = None


class DaemonStatus(Shape, frozen=True):
    """crd.projectcalico.org/v1 BGPDaemonStatus."""

    state: Literal["Ready", "NotReady"]
    version: str
    router_id: str = field(name="routerID")
    last_boot_time: str
    last_reconfiguration_time: str


class AgentStatus(Shape, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodeAgentStatus."""

    bird_v4: DaemonStatus
    bird_v6: DaemonStatus


class PeerStatusShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodePeer."""

    peer_ip: str = field(name="peerIP")
    type: Literal["NodeMesh", "NodePeer", "GlobalPeer"]
    state: Literal["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"]
    since: str


class BgpStatusShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodeBGPStatus."""

    number_established_v4: int
    number_not_established_v4: int
    number_established_v6: int
    number_not_established_v6: int
    peers_v4: list[PeerStatusShape]
    peers_v6: list[PeerStatusShape]


class LearnedFrom(Shape, frozen=True, omit_defaults=True):
    """crd.projectcalico.org/v1 CalicoNodeRouteLearnedFrom."""

    source_type: Literal["Static", "NodeMesh", "BGPPeer"]
    peer_ip: str = field(name="peerIP", default="")


class RouteStatusShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodeRoute."""

    type: Literal["FIB", "RIB"]
    destination: str
    gateway: str
    interface: str
    learned_from: LearnedFrom


class RoutesStatusShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodeBGPRouteStatus."""

    routes_v4: list[RouteStatusShape]
    routes_v6: list[RouteStatusShape]


class StatusShape(Shape, frozen=True, omit_defaults=True):
    """crd.projectcalico.org/v1 CalicoNodeStatusStatus."""

    last_updated: str
    agent: AgentStatus | None = None
    bgp: BgpStatusShape | None = None
    routes: RoutesStatusShape | None = None
