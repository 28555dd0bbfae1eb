"""CalicoNodeStatus: what one asks for, and the status that is written: of the classes that it names, what the node's
own agent has reported, and nothing while it is silent.

The agent stands for both of Calico's BIRDs. It is Ready in a family that its node has an address of, while it speaks
BGP. Its times are UTC. A route that the node announces itself is Static and leads nowhere; one that is learnt is FIB
where the kernel has it.

Source: crd.projectcalico.org/v1 CalicoNodeStatus, and calico/node's status reporter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from proto.bgp import MAX_STATUS, BgpStatus, PeerStatus, RouteStatus
from proto.objects import CalicoNodeStatus, Kind
from services.cluster.core.malformed import Wrong
from services.cluster.core.node_status_shapes import (
    AgentStatus,
    BgpStatusShape,
    CalicoNodeStatusShape,
    DaemonStatus,
    LearnedFrom,
    PeerStatusShape,
    RoutesStatusShape,
    RouteStatusShape,
    StatusShape,
)

PERIOD = 10
"""Seconds between two writes where none are asked for: Calico's."""
NONE = "N/A"
"""In place of a gateway or an interface, as Calico has it."""


def calico_node_status(shape: CalicoNodeStatusShape) -> CalicoNodeStatus:
    """crd.projectcalico.org/v1 CalicoNodeStatus; raises :class:`Wrong`."""
    spec = shape.spec
    if spec is None or not spec.node:
        raise Wrong("spec.node", "is missing", "name the node whose status it is to show")
    period = spec.update_period_seconds
    return CalicoNodeStatus(
        name=shape.metadata.name,
        node=spec.node,
        classes=tuple(dict.fromkeys(spec.classes or ())),
        period_seconds=PERIOD if period is None else period,
    )


def status_path(kind: Kind, name: str) -> str:
    """Where it is applied; ``kind``: how the API has the object."""
    return f"{kind.api}/{kind.plural}/{name}/status"


def status_body(kind: Kind, asked: CalicoNodeStatus, reported: BgpStatus, version: str, now: str) -> Mapping[str, Any]:
    """Server-side apply body; ``version``: of airmesh, ``now`` is RFC 3339."""
    status = StatusShape(
        last_updated=now,
        agent=_agent(reported, version) if "Agent" in asked.classes else None,
        bgp=_bgp(reported) if "BGP" in asked.classes else None,
        routes=_routes(reported) if "Routes" in asked.classes else None,
    )
    return {
        "apiVersion": kind.api_version,
        "kind": "CalicoNodeStatus",
        "metadata": {"name": asked.name},
        "status": msgspec.to_builtins(status),
    }


def _agent(reported: BgpStatus, version: str) -> AgentStatus:
    def daemon(family: int) -> DaemonStatus:
        return DaemonStatus(
            state="Ready" if reported.speaks and family in reported.families else "NotReady",
            version=version,
            router_id=reported.router_id,
            last_boot_time=_time(reported.booted),
            last_reconfiguration_time=_time(reported.configured),
        )

    return AgentStatus(bird_v4=daemon(4), bird_v6=daemon(6))


def _bgp(reported: BgpStatus) -> BgpStatusShape:
    def peers(family: int) -> list[PeerStatusShape]:
        of_family = [one for one in reported.peers if one.address.version == family]
        return [_peer(one) for one in of_family[:MAX_STATUS]]

    return BgpStatusShape(
        number_established_v4=reported.established[0],
        number_not_established_v4=reported.others[0],
        number_established_v6=reported.established[1],
        number_not_established_v6=reported.others[1],
        peers_v4=peers(4),
        peers_v6=peers(6),
    )


def _peer(one: PeerStatus) -> PeerStatusShape:
    return PeerStatusShape(peer_ip=str(one.address), type=one.kind, state=one.state, since=_time(one.since))


def _routes(reported: BgpStatus) -> RoutesStatusShape:
    def routes(family: int) -> list[RouteStatusShape]:
        of_family = [one for one in reported.routes if one.destination.version == family]
        return [_route(one) for one in of_family[:MAX_STATUS]]

    return RoutesStatusShape(routes_v4=routes(4), routes_v6=routes(6))


def _route(one: RouteStatus) -> RouteStatusShape:
    source = LearnedFrom(source_type="Static")
    if one.peer is not None:
        source = LearnedFrom(source_type="NodeMesh" if one.kind == "NodeMesh" else "BGPPeer", peer_ip=str(one.peer))
    return RouteStatusShape(
        type="FIB" if one.forwarding else "RIB",
        destination=str(one.destination),
        gateway=str(one.gateway) if one.gateway is not None else NONE,
        interface=one.interface or NONE,
        learned_from=source,
    )


def _time(unix: int) -> str:
    """Empty for never. What is no time is none."""
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S") if unix else ""
    except (OverflowError, OSError, ValueError):
        return ""
