"""What annotations of a Node set of its BGP speaker: addresses, AS number, route reflector cluster (Calico's names).

Promises that one that cannot be read costs nothing but itself: a Node is more than a speaker, so it counts without the
annotation, and what is wrong is reported on it. Calico writes the addresses with a prefix length, which says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from proto.annotations import BGP_ASN, BGP_CLUSTER_ID, BGP_IPV4, BGP_IPV6
from proto.net import Address
from proto.objects import NodeBGP
from services.cluster.core.bgp_parts import asn
from services.cluster.core.malformed import Wrong, quote
from services.cluster.core.parts import address, annotation
from services.cluster.core.shapes import Metadata

T = TypeVar("T")


def node_bgp(metadata: Metadata) -> tuple[NodeBGP | None, tuple[Wrong, ...]]:
    """What is said, None for nothing; and what of it cannot be read."""
    wrong: list[Wrong] = []

    def read(key: str, reader: Callable[[str, str], T]) -> T | None:
        text = annotation(metadata, key).strip()
        try:
            return reader(text, f"metadata.annotations[{key}]") if text else None
        except Wrong as fault:
            wrong.append(fault)
            return None

    found = NodeBGP(
        ipv4=read(BGP_IPV4, _ipv4),
        ipv6=read(BGP_IPV6, _ipv6),
        asn=read(BGP_ASN, asn),
        cluster_id=read(BGP_CLUSTER_ID, _cluster_id),
    )
    return (None if found == NodeBGP() else found), tuple(wrong)


def _ipv4(text: str, path: str) -> Address:
    return _of_family(text.partition("/")[0], path, IPv4Address, "write e.g. 10.0.0.1/24")


def _ipv6(text: str, path: str) -> Address:
    return _of_family(text.partition("/")[0], path, IPv6Address, "write e.g. fd00::1/64")


def _cluster_id(text: str, path: str) -> Address:
    """RFC 4456: four octets, written as an IPv4 address; 0 is none."""
    found = _of_family(text, path, IPv4Address, "write e.g. 244.0.0.1")
    if found.is_unspecified:
        raise Wrong(path, "0.0.0.0 is no cluster id", "write e.g. 244.0.0.1")
    return found


def _of_family(text: str, path: str, kind: type[IPv4Address | IPv6Address], remedy: str) -> Address:
    found = address(text, path)
    if not isinstance(found, kind):
        raise Wrong(path, f"{quote(text)} is of the other family", remedy)
    return found
