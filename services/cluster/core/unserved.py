"""Unsupported fields: what an object asks for that the mesh leaves out, a sentence for each, reported on the object.

Owns the list of what is taken without being acted on. What would give a pod another address or link than it asked for
is refused elsewhere (the pod does not start); a pool that cannot be honoured gives nothing (``kit.pools``). A name of
ours that nobody knows is told too, since a misspelt wish is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kit.model_settings import DEFAULT, NODE
from kit.models import ENCRYPTS, SERVED
from proto.annotations import HONOURED, OURS, REFUSED, REPORTED, WRITTEN_BY_OTHERS
from services.cluster.core import felix
from services.cluster.core.malformed import quote
from services.cluster.core.shapes import FelixConfigurationShape, Metadata, PodShape, ServiceShape

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
    name = shape.metadata.name
    if not felix.is_read(name):
        yield Unserved(
            "metadata.name", f"no node reads {quote(name)}; name it {DEFAULT}, or {NODE} and the node's name"
        )
        return
    for field in felix.misplaced(shape):
        why = f"the nodes of a tunnel must agree on it; set it in FelixConfiguration {DEFAULT}"
        yield Unserved(f"spec.{field}", why)
    said = shape.spec or {}
    asked = [field for field in ("wireguardEnabled", "wireguardEnabledV6") if said.get(field)]
    if asked and ENCRYPTS not in SERVED and not felix.misplaced(shape):
        why = "no packet can be encrypted between nodes yet; remove it, and do not rely on it"
        yield Unserved(", ".join(f"spec.{field}" for field in asked), why)
    if others := felix.not_acted_on(shape):
        named = ", ".join(f"spec.{quote(field)[1:-1]}" for field in others[:MOST_NAMED])
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        yield Unserved(named + more, f"airmesh acts on {', '.join(felix.KNOWN)} alone; remove the others")


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
