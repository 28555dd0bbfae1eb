"""Path attributes, written in the order of their codes, for peers with two-octet numbers too (RFC 4271, RFC 6793)."""

from __future__ import annotations

from services.routing.core.bgp.codec.attributes import (
    AGGREGATOR,
    AS4_AGGREGATOR,
    AS4_PATH,
    AS_PATH,
    ATOMIC_AGGREGATE,
    CLUSTER_LIST,
    COMMUNITIES,
    EXTENDED_COMMUNITIES,
    EXTENDED_LENGTH,
    LARGE_COMMUNITIES,
    LOCAL_PREF,
    MED,
    NEXT_HOP,
    OPTIONAL,
    ORIGIN,
    ORIGINATOR_ID,
    TRANSITIVE,
)
from services.routing.core.bgp.codec.paths import needs_four_octets, without_confederation, write_path
from services.routing.core.bgp.values import AS_TRANS, Aggregator, Attributes

OPTIONAL_TRANSITIVE = OPTIONAL | TRANSITIVE


def attribute(flags: int, code: int, value: bytes) -> bytes:
    """One attribute; its length has two octets where it must."""
    if len(value) > 255:
        return bytes((flags | EXTENDED_LENGTH, code)) + len(value).to_bytes(2) + value
    return bytes((flags & ~EXTENDED_LENGTH, code, len(value))) + value


def write_attributes(attributes: Attributes, *, four_octets: bool, next_hop: bytes | None) -> bytes:
    """All attributes but MP_REACH_NLRI, in the order of their codes; NEXT_HOP where ``next_hop`` is given.

    Raises ``OverflowError`` where a value is longer than 65,535 octets.
    """
    found = [
        (ORIGIN, attribute(TRANSITIVE, ORIGIN, bytes((attributes.origin,)))),
        *_paths(attributes, four_octets=four_octets),
    ]
    if next_hop is not None:
        found.append((NEXT_HOP, attribute(TRANSITIVE, NEXT_HOP, next_hop)))
    if attributes.med is not None:
        found.append((MED, attribute(OPTIONAL, MED, attributes.med.to_bytes(4))))
    if attributes.local_pref is not None:
        found.append((LOCAL_PREF, attribute(TRANSITIVE, LOCAL_PREF, attributes.local_pref.to_bytes(4))))
    if attributes.atomic_aggregate:
        found.append((ATOMIC_AGGREGATE, attribute(TRANSITIVE, ATOMIC_AGGREGATE, b"")))
    if attributes.originator_id is not None:
        found.append((ORIGINATOR_ID, attribute(OPTIONAL, ORIGINATOR_ID, attributes.originator_id.packed)))
    if attributes.cluster_list:
        clusters = b"".join(one.packed for one in attributes.cluster_list)
        found.append((CLUSTER_LIST, attribute(OPTIONAL, CLUSTER_LIST, clusters)))
    found += _communities(attributes)
    found += [(one.code, attribute(one.flags, one.code, one.value)) for one in attributes.unknown]
    return b"".join(octets for _, octets in sorted(found, key=lambda one: one[0]))


def _paths(attributes: Attributes, *, four_octets: bool) -> list[tuple[int, bytes]]:
    """AS_PATH and AGGREGATOR, with what two octets do not hold of them (RFC 6793 4.2.2)."""
    width = 4 if four_octets else 2
    path, aggregator = attributes.as_path, attributes.aggregator
    found = [(AS_PATH, attribute(TRANSITIVE, AS_PATH, write_path(path, width)))]
    if aggregator is not None:
        found.append((AGGREGATOR, attribute(OPTIONAL_TRANSITIVE, AGGREGATOR, _aggregator(aggregator, width))))
    if four_octets:
        return found
    if needs_four_octets(counted := without_confederation(path)):
        found.append((AS4_PATH, attribute(OPTIONAL_TRANSITIVE, AS4_PATH, write_path(counted, 4))))
    if aggregator is not None and aggregator.asn > 0xFFFF:
        found.append((AS4_AGGREGATOR, attribute(OPTIONAL_TRANSITIVE, AS4_AGGREGATOR, _aggregator(aggregator, 4))))
    return found


def _aggregator(aggregator: Aggregator, width: int) -> bytes:
    asn = aggregator.asn if width == 4 or aggregator.asn <= 0xFFFF else AS_TRANS
    return asn.to_bytes(width) + aggregator.router_id.packed


def _communities(attributes: Attributes) -> list[tuple[int, bytes]]:
    values = {
        COMMUNITIES: b"".join(one.to_bytes(4) for one in attributes.communities),
        EXTENDED_COMMUNITIES: b"".join(attributes.extended_communities),
        LARGE_COMMUNITIES: b"".join(part.to_bytes(4) for one in attributes.large_communities for part in one),
    }
    return [(code, attribute(OPTIONAL_TRANSITIVE, code, value)) for code, value in values.items() if value]
