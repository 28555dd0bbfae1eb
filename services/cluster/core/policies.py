"""NetworkPolicy from the API's shape to the mesh's, with the API's defaults and the API's refusals.

Promises that nothing is ever read as wider than it was written: what cannot be understood is refused whole, the mirror
keeps the last good version, and where there never was one, :func:`closed` isolates what the policy selects.

Two defaults matter: without policyTypes a policy is about ingress, and about egress only where it has egress rules
(networking/v1 SetDefaults_NetworkPolicy); rules of a direction that policyTypes leaves out have no effect: they are
dropped, and counted. An empty list of peers or ports means any; a missing selector in spec selects every pod of the
namespace.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from proto.objects import IPBlock, NetworkPolicy, Peer, PolicyPort, PolicyRule, Requirement, Selector
from services.cluster.core.malformed import Wrong, quote
from services.cluster.core.parts import network, protocol
from services.cluster.core.shapes import (
    EgressRuleShape,
    IngressRuleShape,
    IPBlockShape,
    Metadata,
    NetworkPolicyShape,
    PeerShape,
    PolicyPortShape,
    RequirementShape,
    SelectorShape,
    Shape,
)

_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])(?!.*--)[a-z0-9]([a-z0-9-]*[a-z0-9])?")
"""IANA service name (RFC 6335 5.1), in lower case as Kubernetes wants it."""


def network_policy(shape: NetworkPolicyShape) -> NetworkPolicy:
    """networking/v1 NetworkPolicy; raises :class:`Wrong`."""
    spec = shape.spec
    types = spec.policy_types or (["Ingress", "Egress"] if spec.egress else ["Ingress"])
    ingress = tuple(_rule(r, f"spec.ingress[{i}]", "from") for i, r in enumerate(spec.ingress or ()))
    egress = tuple(_rule(r, f"spec.egress[{i}]", "to") for i, r in enumerate(spec.egress or ()))
    return NetworkPolicy(
        namespace=shape.metadata.namespace,
        name=shape.metadata.name,
        uid=shape.metadata.uid,
        created=shape.metadata.created,
        pod_selector=_selector(spec.pod_selector or SelectorShape(), "spec.podSelector"),
        applies_ingress="Ingress" in types,
        applies_egress="Egress" in types,
        ingress=ingress if "Ingress" in types else (),
        egress=egress if "Egress" in types else (),
        ignored_ingress=0 if "Ingress" in types else len(ingress),
        ignored_egress=0 if "Egress" in types else len(egress),
    )


def closed(raw: bytes) -> NetworkPolicy | None:
    """What stands in for a policy that cannot be understood: it isolates, and allows nothing.

    It selects what the policy selects as far as that much can be read, else every pod of the namespace. ``None`` when
    not even namespace and name can be read.
    """
    try:
        shape = msgspec.json.decode(raw, type=_Unread)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    spec = shape.spec if isinstance(shape.spec, dict) else {}
    try:
        selector = _selector(msgspec.convert(spec.get("podSelector") or {}, SelectorShape), "spec.podSelector")
    except (msgspec.ValidationError, Wrong):
        selector = Selector()
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
    readable = isinstance(types, list) and all(one in ("Ingress", "Egress") for one in types)
    return NetworkPolicy(
        namespace=shape.metadata.namespace,
        name=shape.metadata.name,
        uid=shape.metadata.uid,
        created=shape.metadata.created,
        pod_selector=selector,
        applies_ingress=not readable or "Ingress" in types,
        applies_egress=not readable or "Egress" in types,
        stand_in=True,
    )


class _Unread(Shape, frozen=True):
    metadata: Metadata
    spec: Any = None


def without_rules(policy: NetworkPolicy) -> NetworkPolicy:
    """The same policy, allowing nothing: for one that is too large to be told whole."""
    return msgspec.structs.replace(policy, ingress=(), egress=())


def _rule(shape: IngressRuleShape | EgressRuleShape, path: str, side: str) -> PolicyRule:
    return PolicyRule(
        peers=tuple(_peer(peer, f"{path}.{side}[{index}]") for index, peer in enumerate(shape.peers or ())),
        ports=tuple(_port(port, f"{path}.ports[{index}]") for index, port in enumerate(shape.ports or ())),
    )


def _peer(shape: PeerShape, path: str) -> Peer:
    pods, namespaces, block = shape.pod_selector, shape.namespace_selector, shape.ip_block
    if pods is None and namespaces is None and block is None:
        raise Wrong(path, "names no peer", "give podSelector, namespaceSelector or ipBlock ({} selects every one)")
    if block is not None and (pods is not None or namespaces is not None):
        raise Wrong(path, "has ipBlock beside a selector", "make two peers of it: either may match")
    return Peer(
        pod_selector=None if pods is None else _selector(pods, f"{path}.podSelector"),
        namespace_selector=None if namespaces is None else _selector(namespaces, f"{path}.namespaceSelector"),
        ip_block=None if block is None else _ip_block(block, f"{path}.ipBlock"),
    )


def _ip_block(shape: IPBlockShape, path: str) -> IPBlock:
    cidr = network(shape.cidr, f"{path}.cidr", strict=False)
    excepted = []
    for index, text in enumerate(shape.excepted or ()):
        position = f"{path}.except[{index}]"
        inner = network(text, position, strict=False)
        # Strictly inside, as the API demands: "all of it, but none of it" is a mistake, not a wish.
        inside = inner.version == cidr.version and inner.prefixlen > cidr.prefixlen
        if not inside or inner.supernet(new_prefix=cidr.prefixlen) != cidr:
            raise Wrong(position, f"{inner} is not inside {cidr}", "except may only name parts of cidr")
        excepted.append(inner)
    return IPBlock(cidr=cidr, excepted=tuple(excepted))


def _port(shape: PolicyPortShape, path: str) -> PolicyPort:
    number, end = shape.port, shape.end_port
    proto = protocol(shape.protocol)
    if isinstance(number, str):
        if not _PORT_NAME.fullmatch(number):
            remedy = "write the number without quotes" if number.isdecimal() else "use a container port's name"
            raise Wrong(f"{path}.port", f"{quote(number)} is not a port's name", remedy)
        if end is not None:
            raise Wrong(f"{path}.endPort", "stands beside a named port", "give port as a number, or leave out endPort")
        return PolicyPort(protocol=proto, port_name=number)
    if end is not None and number is None:
        raise Wrong(f"{path}.endPort", "stands without a port", "give port, the first of the range")
    if end is not None and number is not None and end < number:
        raise Wrong(f"{path}.endPort", f"{end} is lower than port {number}", "write the last port of the range")
    return PolicyPort(protocol=proto, port=number, end_port=end)


def _selector(shape: SelectorShape, path: str) -> Selector:
    return Selector(
        match_labels=tuple(sorted((shape.match_labels or {}).items())),
        match_expressions=tuple(
            _requirement(entry, f"{path}.matchExpressions[{index}]")
            for index, entry in enumerate(shape.match_expressions or ())
        ),
    )


def _requirement(shape: RequirementShape, path: str) -> Requirement:
    wants_values = shape.operator in ("In", "NotIn")
    if wants_values and not shape.values:
        raise Wrong(f"{path}.values", f"is empty, but {shape.operator} compares with values", "name at least one value")
    if not wants_values and shape.values:
        raise Wrong(f"{path}.values", f"is given, but {shape.operator} takes none", "leave out values")
    return Requirement(key=shape.key, operator=shape.operator, values=tuple(sorted(set(shape.values or ()))))
