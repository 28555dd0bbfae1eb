"""Small pieces that several kinds share: labels, annotations, addresses, protocol numbers.

Refuses an annotation of ours that is longer than anything it could mean, so that one tenant's object cannot fill the
mirror. Protocol numbers are IANA's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address, ip_network

from kit.model_settings import DEFAULT, NODE
from proto.annotations import OURS
from proto.net import Address, Network
from proto.objects import Labels
from services.cluster.core.malformed import Wrong, quote
from services.cluster.core.shapes import Metadata

PROTOCOLS: Mapping[str, int] = {"TCP": 6, "UDP": 17, "SCTP": 132}
OURS_ON_PODS = (*OURS, "k8s.v1.cni.cncf.io/")
MAX_ANNOTATION = 16 << 10


def protocol(name: str | None) -> int:
    """IANA number; the API's default is TCP."""
    return PROTOCOLS[name or "TCP"]


def labels(metadata: Metadata) -> Labels:
    """Sorted pairs."""
    return tuple(sorted((metadata.labels or {}).items()))


def kept_annotations(metadata: Metadata, prefixes: tuple[str, ...]) -> Labels:
    """Sorted pairs of the annotations under ``prefixes``; raises :class:`Wrong` for one that is too long."""
    kept = sorted((key, value) for key, value in (metadata.annotations or {}).items() if key.startswith(prefixes))
    for key, value in kept:
        if len(value) > MAX_ANNOTATION:
            problem = f"{len(value)} characters, more than {MAX_ANNOTATION}"
            raise Wrong(f"metadata.annotations[{key}]", problem, "shorten it")
    return tuple(kept)


def annotation(metadata: Metadata, key: str) -> str:
    """One annotation's value, empty when it is not there."""
    return (metadata.annotations or {}).get(key, "")


def address(text: str, path: str) -> Address:
    """IP address; raises :class:`Wrong`."""
    try:
        result = ip_address(text)
    except ValueError:
        raise Wrong(path, f"{quote(text)} is not an IP address", "write e.g. 10.0.0.1 or fd00::1") from None
    if "%" in text:
        raise Wrong(path, f"{quote(text)} names a zone", "leave out what follows the %")
    return result


def network(text: str, path: str, *, strict: bool) -> Network:
    """CIDR; host bits are refused when ``strict``, else cleared (as the API does for ipBlock)."""
    if "/" not in text:
        raise Wrong(path, f"{quote(text)} has no prefix length", "write e.g. 10.0.0.0/8 or fd00::/56")
    try:
        result = ip_network(text, strict=False)
    except ValueError:
        raise Wrong(path, f"{quote(text)} is not a CIDR", "write e.g. 10.0.0.0/8 or fd00::/56") from None
    if not text.rpartition("/")[2].isdecimal():
        raise Wrong(path, f"{quote(text)} has a mask for a prefix length", f"write {result}")
    if strict and ip_address(text.partition("/")[0]) != result.network_address:
        raise Wrong(path, f"{quote(text)} has host bits set", f"write {result}")
    return result


def is_read(name: str) -> bool:
    """Whether a configuration of this name (FelixConfiguration, BGPConfiguration) is for any node."""
    return name == DEFAULT or (name.startswith(NODE) and name != NODE)


def misplaced(name: str, said: Mapping[str, object], of_all_nodes: Collection[str]) -> tuple[str, ...]:
    """Fields that count from ``default`` alone, and that stand in a node's own configuration."""
    return tuple(field for field in of_all_nodes if name.startswith(NODE) and said.get(field) is not None)


def not_acted_on(said: Mapping[str, object], known: Collection[str]) -> tuple[str, ...]:
    """Fields of a spec that nothing in the mesh acts on, in order of name; null and an empty text are no wish."""
    return tuple(sorted(name for name, value in said.items() if name not in known and value not in (None, "")))
