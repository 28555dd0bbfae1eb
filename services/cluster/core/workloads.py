"""Namespaces, nodes, pods and CoreDNS' own objects, from the API's shape to the mesh's.

Owns whom a kept address belongs to. A StatefulSet pod is known by its controller and the number at the end of its
name; its index label only counts where the name has none, since names come from the API and labels from tenants. A
ReplicaSet stands for its Deployment only where a kept address is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from proto.annotations import BLOCKS, FIXED_ADDRESSES, KEEP_ADDRESS, OURS, STATIC_POD
from proto.identity import NamedPort
from proto.net import Address, Network
from proto.objects import ConfigMap, Deployment, HostPort, Namespace, Node, Owner, Pod
from services.cluster.core.bgp_nodes import node_bgp
from services.cluster.core.malformed import Wrong
from services.cluster.core.parts import (
    OURS_ON_PODS,
    address,
    annotation,
    kept_annotations,
    labels,
    network,
    protocol,
)
from services.cluster.core.shapes import (
    ConfigMapShape,
    Container,
    DeploymentMetadata,
    DeploymentShape,
    Metadata,
    NamespaceShape,
    NodeShape,
    PodShape,
    PodStatus,
)

COREDNS = ("kube-system", "coredns")
"""Namespace and name of the one ConfigMap and the one Deployment that are mirrored."""
MAX_BLOCKS = 4096
_INDEX_LABEL = "apps.kubernetes.io/pod-index"
_HASH_LABEL = "pod-template-hash"
_TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"


def namespace(shape: NamespaceShape) -> Namespace:
    """core/v1 Namespace."""
    meta = shape.metadata
    return Namespace(name=meta.name, uid=meta.uid, labels=labels(meta), annotations=kept_annotations(meta, OURS))


def node(shape: NodeShape) -> Node:
    """core/v1 Node; raises :class:`Wrong` for a broken InternalIP or blocks annotation."""
    conditions = (shape.status and shape.status.conditions) or ()
    listed = (shape.status and shape.status.addresses) or ()
    internal = [
        address(entry.address, f"status.addresses[{index}].address")
        for index, entry in enumerate(listed)
        if entry.type == "InternalIP"
    ]
    return Node(
        name=shape.metadata.name,
        uid=shape.metadata.uid,
        labels=labels(shape.metadata),
        addresses=tuple(dict.fromkeys(internal)),
        blocks=_blocks(annotation(shape.metadata, BLOCKS)),
        ready=any(condition.type == "Ready" and condition.status == "True" for condition in conditions),
        unschedulable=bool(shape.spec and shape.spec.unschedulable),
        leaving=shape.metadata.deletion_timestamp is not None or _is_scaled_down(shape),
        bgp=node_bgp(shape.metadata)[0],
    )


def _is_scaled_down(shape: NodeShape) -> bool:
    return any(taint.key == _TO_BE_DELETED for taint in (shape.spec and shape.spec.taints) or ())


def _blocks(text: str) -> tuple[Network, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) > MAX_BLOCKS:
        path = f"metadata.annotations[{BLOCKS}]"
        raise Wrong(path, f"{len(parts)} blocks, more than {MAX_BLOCKS}", "remove the annotation; it is written again")
    return tuple(network(part, f"metadata.annotations[{BLOCKS}]", strict=True) for part in parts)


def pod(shape: PodShape) -> Pod:
    """core/v1 Pod; ``node`` is empty until the scheduler has spoken."""
    meta, spec = shape.metadata, shape.spec
    return Pod(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        node=spec.node_name or "",
        labels=labels(meta),
        annotations=kept_annotations(meta, OURS_ON_PODS),
        service_account=spec.service_account_name or "default",
        named_ports=_named_ports(shape),
        host_network=bool(spec.host_network),
        addresses=_pod_addresses(shape.status) if shape.status else (),
        phase=(shape.status and shape.status.phase) or "Pending",
        terminating=meta.deletion_timestamp is not None,
        owner=owner(meta),
        host_ports=() if spec.host_network else _host_ports(shape),
        static_uid=annotation(meta, STATIC_POD),
    )


def _running(shape: PodShape) -> list[tuple[str, Container]]:
    """Containers that run at the same time, with their paths: of init containers only sidecars."""
    sidecars = [
        (f"spec.initContainers[{index}]", one)
        for index, one in enumerate(shape.spec.init_containers or ())
        if one.restart_policy == "Always"
    ]
    return [*((f"spec.containers[{index}]", one) for index, one in enumerate(shape.spec.containers or ())), *sidecars]


def _named_ports(shape: PodShape) -> tuple[NamedPort, ...]:
    named = {
        NamedPort(name=port.name, protocol=protocol(port.protocol), port=port.container_port)
        for _, container in _running(shape)
        for port in container.ports or ()
        if port.name
    }
    return tuple(sorted(named))


def _host_ports(shape: PodShape) -> tuple[HostPort, ...]:
    found = {
        HostPort(
            protocol=protocol(port.protocol),
            port=port.host_port,
            container_port=port.container_port,
            address=address(port.host_ip, f"{path}.ports[{index}].hostIP") if port.host_ip else None,
        )
        for path, container in _running(shape)
        for index, port in enumerate(container.ports or ())
        if port.host_port
    }
    return tuple(sorted(found, key=lambda one: (one.protocol, one.port, str(one.address or ""), one.container_port)))


def _pod_addresses(status: PodStatus) -> tuple[Address, ...]:
    texts = [(entry.ip, f"status.podIPs[{index}].ip") for index, entry in enumerate(status.pod_ips or ()) if entry.ip]
    if not texts and status.pod_ip:
        texts = [(status.pod_ip, "status.podIP")]
    return tuple(address(text, path) for text, path in texts)


def owner(meta: Metadata) -> Owner | None:
    """The workload that the pod belongs to; a pod that belongs to none owns itself when it asks for an address."""
    keeps = annotation(meta, KEEP_ADDRESS) == "true" or bool(annotation(meta, FIXED_ADDRESSES))
    controller = next((ref for ref in meta.owner_references or () if ref.controller), None)
    if controller is None:
        return Owner(namespace=meta.namespace, kind="Pod", name=meta.name) if keeps else None
    if controller.kind == "StatefulSet":
        return Owner(meta.namespace, "StatefulSet", controller.name, _ordinal(meta, controller.name))
    if controller.kind == "ReplicaSet" and keeps:
        suffix = "-" + (meta.labels or {}).get(_HASH_LABEL, "")
        if len(suffix) > 1 and controller.name.endswith(suffix):
            return Owner(meta.namespace, "Deployment", controller.name.removesuffix(suffix))
    return Owner(meta.namespace, controller.kind, controller.name)


def _ordinal(meta: Metadata, set_name: str) -> int:
    for text in (meta.name.removeprefix(set_name + "-"), (meta.labels or {}).get(_INDEX_LABEL, "")):
        if text.isascii() and text.isdecimal() and len(text) < 10:
            return int(text)
    return -1


def config_map(shape: ConfigMapShape) -> ConfigMap | None:
    """CoreDNS' ConfigMap; ``None`` for any other."""
    meta = shape.metadata
    if (meta.namespace, meta.name) != COREDNS:
        return None
    return ConfigMap(namespace=meta.namespace, name=meta.name, content=tuple(sorted((shape.data or {}).items())))


def deployment(shape: DeploymentShape) -> Deployment | None:
    """CoreDNS' Deployment; ``None`` for any other. Replicas that are not said are one, as in the API."""
    meta, status = shape.metadata, shape.status
    if (meta.namespace, meta.name) != COREDNS:
        return None
    replicas = 1 if shape.spec.replicas is None else shape.spec.replicas
    ready = (status and status.ready_replicas) or 0
    return Deployment(
        namespace=meta.namespace,
        name=meta.name,
        replicas=replicas,
        ready_replicas=ready,
        scaled_by=next(_autoscalers(meta), ""),
    )


def _owns_replicas(fields: object) -> bool:
    spec = fields.get("f:spec") if isinstance(fields, dict) else None
    return isinstance(spec, dict) and "f:replicas" in spec


def _autoscalers(meta: DeploymentMetadata) -> Iterator[str]:
    """Who owns ``spec.replicas`` by the subresource ``scale``, as an autoscaler does; not a person with kubectl."""
    for entry in meta.managed_fields or ():
        if _owns_replicas(entry.fields_v1) and entry.subresource == "scale" and not entry.manager.startswith("kubectl"):
            yield entry.manager
