"""Unsupported fields: what an object asks for that the mesh leaves out, a sentence for each, reported on the object.

Owns the list of what is taken without being acted on. What would give a pod another address or link than it asked for
is refused elsewhere (the pod does not start); a pool that cannot be honoured gives nothing (``kit.pools``). A name of
ours that nobody knows is told too, since a misspelt wish is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from kit import bgp as bgp_switch
from kit.model_settings import DEFAULT, NODE
from kit.models import ENCRYPTS, SERVED
from proto.annotations import HONOURED, OURS, REFUSED, REPORTED, WRITTEN_BY_OTHERS
from services.cluster.core import bgp, felix
from services.cluster.core.bgp_nodes import node_bgp
from services.cluster.core.bgp_shapes import BGPConfigurationShape, BGPFilterShape, BGPPeerShape
from services.cluster.core.malformed import quote
from services.cluster.core.parts import is_read, misplaced, not_acted_on
from services.cluster.core.shapes import FelixConfigurationShape, Metadata, NodeShape, PodShape, ServiceShape

REASON = "NotHonoured"
"""Of the Events."""
MOST_NAMED = 8
"""Fields that one sentence names; others are counted."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """One field of one object that is not acted on."""

    path: str
    sentence: str
    """What is so, and what to do, divided by ``; ``."""

    def about(self, kind: str, namespace: str, name: str) -> str:
        """The whole sentence."""
        whose = f"{namespace}/{name}" if namespace else name
        return f"{kind} {whose}: {self.path} is not honoured: {self.sentence}"


def unserved(kind: str, shape: object) -> tuple[Unserved, ...]:
    """What of an object, as it was read, is left out."""
    found = [*_annotations(kind, getattr(shape, "metadata", None))]
    if isinstance(shape, ServiceShape):
        found += _sctp_of_service(shape)
    if isinstance(shape, PodShape):
        found += _sctp_of_pod(shape)
    if isinstance(shape, FelixConfigurationShape):
        found += _of_felix(shape)
    if isinstance(shape, BGPConfigurationShape | BGPPeerShape | BGPFilterShape):
        found += _of_bgp(shape)
    if isinstance(shape, NodeShape):
        found += _of_node(shape)
    return tuple(found)


def _annotations(kind: str, metadata: object) -> Iterator[Unserved]:
    if not isinstance(metadata, Metadata) or not metadata.annotations:
        return
    reported = REPORTED.get(kind, {})
    known = {*HONOURED.get(kind, ()), *REFUSED.get(kind, ()), *WRITTEN_BY_OTHERS}
    for key, value in sorted(metadata.annotations.items()):
        why = reported.get(key) or reported.get(key.partition("/")[0] + "/")
        if why and value:
            yield Unserved(f"metadata.annotations[{key}]", why)
        elif key.startswith(OURS) and key not in known:
            named = ", ".join(HONOURED.get(kind, ())) or f"none on a {kind}"
            yield Unserved(f"metadata.annotations[{quote(key)}]", f"no such annotation is known; known: {named}")


def _of_felix(shape: FelixConfigurationShape) -> Iterator[Unserved]:
    """One sentence for all fields that nobody acts on: a configuration that comes with Calico has dozens."""
    name, said = shape.metadata.name, shape.spec or {}
    if not is_read(name):
        yield _unread(name)
        return
    agreed = misplaced(name, said, felix.OF_ALL_NODES)
    for field in agreed:
        why = f"the nodes of a tunnel must agree on it; set it in FelixConfiguration {DEFAULT}"
        yield Unserved(f"spec.{field}", why)
    asked = [field for field in ("wireguardEnabled", "wireguardEnabledV6") if said.get(field)]
    if asked and ENCRYPTS not in SERVED and not agreed:
        why = "no packet can be encrypted between nodes yet; remove it, and do not rely on it"
        yield Unserved(", ".join(f"spec.{field}" for field in asked), why)
    yield from _others(said, felix.KNOWN)


def _unread(name: str) -> Unserved:
    return Unserved("metadata.name", f"no node reads {quote(name)}; name it {DEFAULT}, or {NODE} and the node's name")


def _others(said: Mapping[str, object], known: Collection[str]) -> Iterator[Unserved]:
    if others := not_acted_on(said, known):
        named = ", ".join(f"spec.{quote(field)[1:-1]}" for field in others[:MOST_NAMED])
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        yield Unserved(named + more, f"airmesh acts on {', '.join(known)} alone; remove the others")


def _of_bgp(shape: BGPConfigurationShape | BGPPeerShape | BGPFilterShape) -> Iterator[Unserved]:
    if not bgp_switch.SERVED:
        yield Unserved("spec", "no node speaks BGP yet; remove the object, and do not rely on it")
    elif isinstance(shape, BGPPeerShape):
        yield from _others(shape.spec, bgp.OF_PEER)
    elif isinstance(shape, BGPConfigurationShape):
        name, said = shape.metadata.name, shape.spec or {}
        if not is_read(name):
            yield _unread(name)
            return
        for field in misplaced(name, said, bgp.OF_ALL_NODES):
            yield Unserved(f"spec.{field}", f"it counts for all nodes; set it in BGPConfiguration {DEFAULT}")
        yield from _others(said, bgp.OF_CONFIGURATION)


def _of_node(shape: NodeShape) -> Iterator[Unserved]:
    """Annotations of BGP that cannot be read: the node counts without them."""
    if bgp_switch.SERVED:
        for wrong in node_bgp(shape.metadata)[1]:
            yield Unserved(wrong.path, f"{wrong.problem}; {wrong.remedy}")


def _sctp_of_service(shape: ServiceShape) -> Iterator[Unserved]:
    for index, port in enumerate(shape.spec.ports or ()):
        if port.protocol == "SCTP" and not _is_headless(shape):
            yield Unserved(
                f"spec.ports[{index}].protocol",
                "Services carry TCP and UDP alone; reach the pods by their own addresses",
            )


def _is_headless(shape: ServiceShape) -> bool:
    return shape.spec.type == "ExternalName" or shape.spec.cluster_ip in (None, "", "None")


def _sctp_of_pod(shape: PodShape) -> Iterator[Unserved]:
    if shape.spec.host_network:
        return
    for at, container in enumerate(shape.spec.containers or ()):
        for index, port in enumerate(container.ports or ()):
            if port.protocol == "SCTP" and port.host_port:
                why = "host ports carry TCP and UDP alone; remove hostPort, or use hostNetwork"
                yield Unserved(f"spec.containers[{at}].ports[{index}].hostPort", why)
