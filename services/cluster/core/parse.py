"""Kubernetes API objects, as JSON or as the values of a YAML file, into the mesh's types: the one border they cross.

Promises that an object is either understood whole or refused with one sentence that names kind, namespace/name, field
and remedy (:class:`Malformed`); that nothing larger than the API server would keep is looked at; and that a missing
``uid`` is refused in what the API serves, yet allowed in files. ``None`` means a good object that the mesh has no use
for. Nothing here knows how objects are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from proto.objects import (
    KIND_OF,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    CalicoNodeStatus,
    ConfigMap,
    Deployment,
    EndpointSlice,
    FelixConfiguration,
    IPPool,
    Kind,
    KubernetesObject,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from services.cluster.core import bgp, bgp_filters, exposure, felix, node_status, policies, pools, workloads
from services.cluster.core.bgp_shapes import BGPConfigurationShape, BGPFilterShape, BGPPeerShape
from services.cluster.core.malformed import Malformed, Wrong, quote
from services.cluster.core.node_status_shapes import CalicoNodeStatusShape
from services.cluster.core.shapes import (
    ConfigMapShape,
    DeploymentShape,
    EndpointSliceShape,
    FelixConfigurationShape,
    IPPoolShape,
    Metadata,
    NamespaceShape,
    NetworkPolicyShape,
    NodeShape,
    PodShape,
    ServiceShape,
)
from services.cluster.core.unserved import Unserved, unserved

__all__ = ["MAX_OBJECT", "NAMES", "Malformed", "kind_of", "parse", "parse_object", "read"]

MAX_OBJECT = 4 << 20
"""Largest JSON text of one object in bytes; etcd keeps at most 1.5 MiB, JSON may spell it longer."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """How one kind is read."""

    name: str
    versions: tuple[str, ...]
    """apiVersion values it is written under."""
    namespaced: bool
    shape: type[msgspec.Struct]
    translate: Callable[[Any], KubernetesObject | None]


_CALICO = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
_READERS: Mapping[type, _Reader] = {
    Namespace: _Reader("Namespace", ("v1",), False, NamespaceShape, workloads.namespace),
    Node: _Reader("Node", ("v1",), False, NodeShape, workloads.node),
    Pod: _Reader("Pod", ("v1",), True, PodShape, workloads.pod),
    Service: _Reader("Service", ("v1",), True, ServiceShape, exposure.service),
    ConfigMap: _Reader("ConfigMap", ("v1",), True, ConfigMapShape, workloads.config_map),
    Deployment: _Reader("Deployment", ("apps/v1",), True, DeploymentShape, workloads.deployment),
    EndpointSlice: _Reader(
        "EndpointSlice", ("discovery.k8s.io/v1",), True, EndpointSliceShape, exposure.endpoint_slice
    ),
    NetworkPolicy: _Reader(
        "NetworkPolicy", ("networking.k8s.io/v1",), True, NetworkPolicyShape, policies.network_policy
    ),
    FelixConfiguration: _Reader(
        "FelixConfiguration",
        _CALICO,
        False,
        FelixConfigurationShape,
        felix.felix_configuration,
    ),
    IPPool: _Reader(
        "IPPool",
        (*_CALICO, "airmesh.io/v1"),
        False,
        IPPoolShape,
        pools.ip_pool,
    ),
    BGPConfiguration: _Reader("BGPConfiguration", _CALICO, False, BGPConfigurationShape, bgp.bgp_configuration),
    BGPPeer: _Reader("BGPPeer", _CALICO, False, BGPPeerShape, bgp.bgp_peer),
    CalicoNodeStatus: _Reader(
        "CalicoNodeStatus", _CALICO, False, CalicoNodeStatusShape, node_status.calico_node_status
    ),
    BGPFilter: _Reader("BGPFilter", _CALICO, False, BGPFilterShape, bgp_filters.bgp_filter),
}
_BY_SPELLING: Mapping[tuple[str, str], Kind] = {
    (version, reader.name): KIND_OF[kind] for kind, reader in _READERS.items() for version in reader.versions
}
NAMES: Mapping[type, str] = {kind: reader.name for kind, reader in _READERS.items()}
"""How the API spells each kind, e.g. ``NetworkPolicy``."""


def kind_of(api_version: object, kind: object) -> Kind | None:
    """The kind that a manifest's ``apiVersion`` and ``kind`` name; ``None`` when the mesh does not look at it."""
    return _BY_SPELLING.get((api_version, kind)) if isinstance(api_version, str) and isinstance(kind, str) else None


def parse(kind: Kind, raw: bytes | msgspec.Raw | Mapping[str, Any]) -> KubernetesObject | None:
    """One object of a known kind; ``None`` for one that the mesh has no use for. Raises :class:`Malformed`."""
    return read(kind, raw)[0]


def read(
    kind: Kind, raw: bytes | msgspec.Raw | Mapping[str, Any]
) -> tuple[KubernetesObject | None, tuple[Unserved, ...]]:
    """As :func:`parse`, with what of the object is left out."""
    reader = _READERS[kind.type]
    try:
        shape = _decode(reader.shape, raw)
        _check_position(shape, reader)
        value = reader.translate(shape)
        return value, unserved(reader.name, shape) if value is not None else ()
    except Wrong as wrong:
        name = _whose(raw)
        raise Malformed(
            kind=reader.name, name=name, path=wrong.path, problem=wrong.problem, remedy=wrong.remedy
        ) from None
    except msgspec.ValidationError as error:
        problem, path = _explain(str(error))
        steps = ".".join(part.split("[")[0] for part in path.split(".") if not part.startswith("["))
        remedy = f"see kubectl explain {kind.kind}.{steps}" if steps else f"see kubectl explain {kind.kind}"
        name = _whose(raw)
        raise Malformed(kind=reader.name, name=name, path=path, problem=problem, remedy=remedy) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        problem = f"is not JSON ({error})" if not isinstance(error, RecursionError) else "is nested too deep"
        raise Malformed(kind=reader.name, name="?", path="", problem=problem, remedy="write the object again") from None


def parse_object(written: Mapping[str, Any]) -> KubernetesObject | None:
    """One object that names its own kind. Raises :class:`Malformed`, also for a kind that the mesh does not look at."""
    kind = kind_of(written.get("apiVersion"), written.get("kind"))
    if kind is None:
        problem = f"{quote(written.get('kind'))} of apiVersion {quote(written.get('apiVersion'))} is not known"
        remedy = "write one of " + ", ".join(sorted(f"{reader.name}" for reader in _READERS.values()))
        raise Malformed(kind="object", name=_whose(written), path="kind", problem=problem, remedy=remedy)
    return parse(kind, written)


def _decode(shape: type[msgspec.Struct], raw: bytes | msgspec.Raw | Mapping[str, Any]) -> msgspec.Struct:
    if isinstance(raw, Mapping):
        return msgspec.convert(raw, type=shape)
    if len(raw) > MAX_OBJECT:
        raise Wrong("metadata", f"object of {len(raw)} bytes is larger than {MAX_OBJECT}", "make it smaller")
    return msgspec.json.decode(raw, type=shape)


def _check_position(shape: msgspec.Struct, reader: _Reader) -> None:
    meta: Metadata = shape.metadata  # type: ignore[attr-defined]
    if not meta.uid:
        raise Wrong("metadata.uid", "is missing", "apply the object to the API server, which gives it one")
    if reader.namespaced and not meta.namespace:
        raise Wrong("metadata.namespace", "is missing", "say which namespace it lives in")


class _Named(msgspec.Struct):
    name: Any = ""
    namespace: Any = ""


class _Anything(msgspec.Struct):
    metadata: _Named = msgspec.field(default_factory=_Named)


def _whose(raw: bytes | msgspec.Raw | Mapping[str, Any]) -> str:
    """``namespace/name`` as far as it can be read at all."""
    try:
        if isinstance(raw, Mapping):
            read = msgspec.convert({"metadata": raw.get("metadata") or {}}, type=_Anything)
        else:
            read = msgspec.json.decode(raw, type=_Anything)
    except (msgspec.MsgspecError, RecursionError):
        return "?"
    name, space = (part if isinstance(part, str) else "?" for part in (read.metadata.name, read.metadata.namespace))
    name = name[:253] or "?"
    return f"{space[:63]}/{name}" if space else name


def _explain(text: str) -> tuple[str, str]:
    """Problem and path out of msgspec's ``Expected `int`, got `str` - at `$.spec.port```."""
    problem, marker, position = text.rpartition(" - at `")
    if not marker:
        problem, position = text, "$"
    # A key's own fault reads "at `key` in `$.metadata.labels`".
    path = position.rpartition("`$")[2] if "`$" in position else position.removeprefix("$")
    path = path.rstrip("`").removeprefix(".").replace("[...]", "[]")
    if "matching regex" in problem:
        problem = "not a name of lower-case letters, digits, '-' and '.'"
    return problem[0].lower() + problem[1:].replace("`", ""), path
