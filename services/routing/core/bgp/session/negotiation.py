"""OPEN: what this speaker offers a peer, whether the peer's OPEN is acceptable, and what both have agreed on by it.

What of an OPEN is wrong by itself, the codec refuses. RFC 4271 6.2, RFC 5492 (capabilities), RFC 6286 (identifiers:
those of two autonomous systems may be the same).
"""

from __future__ import annotations

from services.routing.core.bgp.codec.errors import ErrorCode, MessageError
from services.routing.core.bgp.codec.messages import LARGEST, LARGEST_EXTENDED, Open
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.values import (
    AddPath,
    Agreed,
    Capabilities,
    Family,
    GracefulRestart,
    RestartFamily,
)


def offered(settings: SessionSettings, *, restarted: bool = False, preserved: bool = True) -> Capabilities:
    """Capabilities of this side. ``restarted``: it has just started again (R bit); ``preserved``: the kernel kept the
    routes over it (F bit).
    """
    families = sorted(settings.families)
    restart = None
    if settings.restart_seconds:
        kept = tuple(RestartFamily(family, preserved) for family in families)
        restart = GracefulRestart(restarted, settings.restart_seconds, kept, notification=True)
    long_lived: tuple[RestartFamily, ...] = ()
    if restart is not None and settings.long_lived_seconds:
        long_lived = tuple(RestartFamily(family, preserved, settings.long_lived_seconds) for family in families)
    return Capabilities(
        families=settings.families,
        asn4=settings.local_asn,
        route_refresh=True,
        enhanced_route_refresh=True,
        extended_messages=settings.extended_messages,
        extended_next_hops=settings.extended_next_hops,
        add_path=settings.add_path,
        graceful_restart=restart,
        long_lived=long_lived,
    )


def opening(settings: SessionSettings, capabilities: Capabilities) -> Open:
    """The OPEN of this side."""
    return Open(settings.local_asn, settings.hold_seconds, settings.router_id, capabilities)


def check_open(settings: SessionSettings, opened: Open) -> None:
    """Raises MessageError with the NOTIFICATION that refuses the peer's OPEN: 2/2, 2/3 or 2/7."""
    if opened.asn != settings.peer_asn:
        said = f"the peer says AS {opened.asn}, configured is AS {settings.peer_asn}"
        raise MessageError(ErrorCode.OPEN, 2, said, opened.asn.to_bytes(4))
    if opened.router_id == settings.router_id and not settings.external:
        said = f"the peer's router id is {opened.router_id}, as this node's"
        raise MessageError(ErrorCode.OPEN, 3, said, opened.router_id.packed)
    if not _families(settings.families) & _families(opened.capabilities.families):
        said = f"the peer carries {_said(opened.capabilities.families)}, this side {_said(settings.families)}"
        raise MessageError(ErrorCode.OPEN, 7, said)


def agree(ours: Capabilities, theirs: Capabilities, *, external: bool) -> Agreed:
    """What follows from both sides' capabilities; ``external``: the peer is in another autonomous system."""
    families = _families(ours.families) & _families(theirs.families)
    extended = ours.extended_messages and theirs.extended_messages
    return Agreed(
        families=families,
        four_octets=ours.asn4 is not None and theirs.asn4 is not None,
        external=external,
        largest_message=LARGEST_EXTENDED if extended else LARGEST,
        receives_paths=families & _paths(ours, AddPath.RECEIVE) & _paths(theirs, AddPath.SEND),
        sends_paths=families & _paths(ours, AddPath.SEND) & _paths(theirs, AddPath.RECEIVE),
        extended_next_hops=families & ours.extended_next_hops & theirs.extended_next_hops,
        route_refresh=ours.route_refresh and theirs.route_refresh,
        enhanced_route_refresh=ours.enhanced_route_refresh and theirs.enhanced_route_refresh,
    )


def largest_received(ours: Capabilities) -> int:
    """Octets of the largest message that may come: whoever offers extended messages takes them (RFC 8654 4)."""
    return LARGEST_EXTENDED if ours.extended_messages else LARGEST


def _families(offered: frozenset[Family]) -> frozenset[Family]:
    """Who offers none carries IPv4 alone (RFC 4760 8)."""
    return offered or frozenset({Family.IPV4})


def _paths(offered: Capabilities, direction: AddPath) -> frozenset[Family]:
    return frozenset(family for family, way in offered.add_path if way in (direction, AddPath.BOTH))


def _said(families: frozenset[Family]) -> str:
    return " and ".join(family.name for family in sorted(_families(families)))
