"""Path attributes and capabilities as text, as routers and the RFCs spell them: for all that shows BGP to a person.

Each function gives one text for one value and never fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.routing.core.bgp import communities
from services.routing.core.bgp.codec import attributes as codes
from services.routing.core.bgp.values import (
    AddPath,
    Attributes,
    Capabilities,
    Family,
    GracefulRestart,
    Segment,
    SegmentKind,
)

FAMILIES = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}
_WELL_KNOWN = {
    communities.NO_EXPORT: "no-export",
    communities.NO_ADVERTISE: "no-advertise",
    communities.NO_EXPORT_SUBCONFED: "no-export-subconfed",
    communities.GRACEFUL_SHUTDOWN: "graceful-shutdown",
    communities.LLGR_STALE: "llgr-stale",
    communities.NO_LLGR: "no-llgr",
}
"""As routers spell them (IANA "BGP Well-known Communities")."""
_SEGMENTS = {
    SegmentKind.SET: "{%s}",
    SegmentKind.SEQUENCE: "%s",
    SegmentKind.CONFED_SEQUENCE: "(%s)",
    SegmentKind.CONFED_SET: "({%s})",
}
_ADD_PATH = {AddPath.RECEIVE: "receive", AddPath.SEND: "send", AddPath.BOTH: "send and receive"}


def as_path(segments: Iterable[Segment]) -> str:
    """``65001 65002 {65003 65004}``: the nearest first, a set in braces, a confederation's segment in parentheses."""
    return " ".join(_SEGMENTS[one.kind] % " ".join(map(str, one.numbers)) for one in segments)


def community(number: int) -> str:
    """``65001:7``, or the name of a well-known one (RFC 1997)."""
    return _WELL_KNOWN.get(number) or f"{number >> 16}:{number & 0xFFFF}"


def large_community(numbers: tuple[int, int, int]) -> str:
    """``65001:7:8`` (RFC 8092)."""
    return ":".join(map(str, numbers))


def attribute_name(code: int) -> str:
    """As the RFC of the attribute type code spells it; empty for what is the message's own."""
    return codes.NAMES.get(code, f"attribute {code}") if code != codes.MESSAGE else ""


def named_attributes(attributes: Attributes) -> Iterator[tuple[str, str]]:
    """Each path attribute that there is, by its name, in the order of type codes."""
    names = codes.NAMES
    yield names[codes.ORIGIN], attributes.origin.name
    yield names[codes.AS_PATH], as_path(attributes.as_path)
    hops = [str(hop) for hop in (attributes.next_hop, attributes.link_local) if hop is not None]
    if hops:
        yield names[codes.NEXT_HOP], " ".join(hops)
    if attributes.med is not None:
        yield names[codes.MED], str(attributes.med)
    if attributes.local_pref is not None:
        yield names[codes.LOCAL_PREF], str(attributes.local_pref)
    if attributes.atomic_aggregate:
        yield names[codes.ATOMIC_AGGREGATE], ""
    if (by := attributes.aggregator) is not None:
        yield names[codes.AGGREGATOR], f"{by.asn} {by.router_id}"
    yield from _optional(attributes)


def _optional(attributes: Attributes) -> Iterator[tuple[str, str]]:
    names = codes.NAMES
    if attributes.communities:
        yield names[codes.COMMUNITIES], " ".join(map(community, attributes.communities))
    if attributes.originator_id is not None:
        yield names[codes.ORIGINATOR_ID], str(attributes.originator_id)
    if attributes.cluster_list:
        yield names[codes.CLUSTER_LIST], " ".join(map(str, attributes.cluster_list))
    if attributes.extended_communities:
        yield names[codes.EXTENDED_COMMUNITIES], " ".join(one.hex() for one in attributes.extended_communities)
    if attributes.large_communities:
        yield names[codes.LARGE_COMMUNITIES], " ".join(map(large_community, attributes.large_communities))
    for one in attributes.unknown:
        yield attribute_name(one.code), one.value.hex()


def named_capabilities(capabilities: Capabilities) -> Iterator[str]:
    """Each capability of an OPEN that is understood (RFC 5492), by what it lets the other side do."""
    for family in sorted(capabilities.families):
        yield f"{FAMILIES[family]} unicast"
    if capabilities.asn4 is not None:
        yield f"four-octet AS {capabilities.asn4}"
    flags = {
        "route refresh": capabilities.route_refresh,
        "enhanced route refresh": capabilities.enhanced_route_refresh,
        "extended messages": capabilities.extended_messages,
    }
    yield from (name for name, there in flags.items() if there)
    for family in sorted(capabilities.extended_next_hops):
        yield f"{FAMILIES[family]} over IPv6 next hops"
    for family, way in capabilities.add_path:
        yield f"ADD-PATH {FAMILIES[family]} {_ADD_PATH[way]}"
    if capabilities.graceful_restart is not None:
        yield from _graceful_restart(capabilities.graceful_restart)
    for one in capabilities.long_lived:
        yield f"long-lived graceful restart {FAMILIES[one.family]} {one.stale_seconds} s"


def _graceful_restart(restart: GracefulRestart) -> Iterator[str]:
    flags = (("restarted", restart.restarted), ("with NOTIFICATION", restart.notification))
    words = [f"graceful restart {restart.seconds} s", *(name for name, there in flags if there)]
    kept = (f"{FAMILIES[one.family]}{' preserved' * one.preserved}" for one in restart.families)
    yield ", ".join([*words, *kept])
