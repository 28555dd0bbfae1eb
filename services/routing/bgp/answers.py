"""What the BGP speaker of a node answers when its sessions or its routes are asked for.

The answer is made of the present state in one piece, in the event loop, and is bounded (``core.bgp.reports``).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from proto.bgp import (
    MAX_SESSIONS,
    BgpFault,
    BgpRoutes,
    BgpRoutesRequest,
    BgpSessions,
    BgpSessionsRequest,
    SessionReport,
    is_named,
)
from proto.bgp_capture import BgpCapture, BgpCaptureRequest
from proto.net import Network
from services.routing.bgp.router import Router
from services.routing.bgp.session import PeerState
from services.routing.core.bgp import reports
from services.routing.core.bgp.batches import Batch
from services.routing.core.bgp.peers import Peer
from services.routing.core.bgp.session.reasons import Reason
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import covering, prefix_of
from services.routing.core.faults import Fault


def sessions(
    asked: BgpSessionsRequest, node: str, router: Router | None, faults: Iterable[Fault] = ()
) -> BgpSessions | None:
    """The sessions of ``node``; None when it is not asked. ``router``: None where nobody asks it to speak."""
    if asked.nodes and node not in asked.nodes:
        return None
    said = [BgpFault(fault=one.fault, remedy=one.remedy) for one in faults]
    if router is None or router.identity is None:
        return BgpSessions(node=node, faults=tuple(said))
    unheard = router.speaker.listener.faults.items()
    said += [
        BgpFault(fault=f"{address} takes no connections: {why.text}", remedy=why.remedy) for address, why in unheard
    ]
    found = [one for one in reported(router) if not asked.down or one.state != "Established"]
    return BgpSessions(
        node=node,
        speaks=True,
        asn=router.identity.asn,
        router_id=str(router.identity.router_id),
        sessions=tuple(found[:MAX_SESSIONS]),
        faults=tuple(said),
        left_out=max(0, len(found) - MAX_SESSIONS),
        leaving=router.identity.leaving,
    )


def reported(router: Router) -> list[SessionReport]:
    """All peers, by name; those that there cannot be a session with, too."""
    states, refused = router.speaker.states(), router.speaker.refused
    return [_session(peer, router, states.get(name), refused.get(name)) for name, peer in sorted(router.peers.items())]


def _session(peer: Peer, router: Router, state: PeerState | None, refused: Reason | None) -> SessionReport:
    settings = peer.session
    why = state.fault if state is not None else refused
    return SessionReport(
        peer=peer.name,
        address=settings.address,
        asn=settings.peer_asn,
        local_asn=settings.local_asn,
        state=reports.STATES[state.state if state is not None else State.IDLE],
        since=int(state.since) if state is not None else 0,
        port=settings.port,
        local=settings.local,
        interface=settings.interface,
        families=reports.counts(router.rib, peer.name),
        hold_seconds=state.hold_seconds if state is not None else 0,
        established=state.established_count if state is not None else 0,
        received_messages=sum(state.received.values()) if state is not None else 0,
        sent_messages=state.sent_messages if state is not None else 0,
        why=why.text if why is not None else "",
        remedy=why.remedy if why is not None else "",
    )


def routes(asked: BgpRoutesRequest, node: str, router: Router | None) -> BgpRoutes | None:
    """The routes of ``node``; None when another is asked."""
    if asked.node not in ("", node):
        return None
    if router is None:
        return BgpRoutes(node=node)
    found = reports.routes(router.rib, asked, node, router.peers)
    batch = _named_last(asked.prefix, router) if asked.prefix is not None else None
    return found if batch is None else replace(found, trace_id=batch.trace_id, traced_at=batch.at)


def _named_last(network: Network, router: Router) -> Batch | None:
    """The batch of UPDATE messages that named a prefix last, else the longest one that holds it and has a path."""
    family, prefix = prefix_of(network)
    known = router.rib.accepted(family)
    found = (router.batches.find(family, one) for one in covering(prefix) if one == prefix or one in known)
    return next((batch for batch in found if batch is not None), None)


def capture(asked: BgpCaptureRequest, node: str, router: Router | None) -> BgpCapture | None:
    """Messages of sessions of ``node`` since the last such question; None when it is not asked."""
    if asked.nodes and node not in asked.nodes:
        return None
    if router is None:
        return BgpCapture(node=node)
    peers = sum(is_named(name, asked.peer) for name in router.peers)
    found = router.capture(asked.capture, asked.peer)
    if found is None:
        return BgpCapture(node=node, peers=peers, refused=True)
    messages, missed = found.take()
    return BgpCapture(node=node, peers=peers, messages=messages, missed=missed)
