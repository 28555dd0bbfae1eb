"""Services and EndpointSlices, from the API's shape to the mesh's.

Refuses addresses of a family that the slice does not have. Slices of host names (FQDN) are nobody's packets: they come
out as ``None``.
"""

from __future__ import annotations

from proto.net import Network
from proto.objects import EndpointPort, EndpointSlice, Service, ServicePort, SliceEndpoint
from services.cluster.core.malformed import Wrong, quote
from services.cluster.core.parts import address, annotation, network, protocol
from services.cluster.core.shapes import EndpointShape, EndpointSliceShape, ServiceShape, ServiceSpec

DEFAULT_AFFINITY_SECONDS = 10800
"""core/v1 DefaultClientIPServiceAffinitySeconds."""
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MAX_SOURCE_RANGES = 1024
_SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
_OTHER_PROXY = "service.kubernetes.io/service-proxy-name"
_HEADLESS = "service.kubernetes.io/headless"
"""Labels whose presence, whatever their value, tells proxies to pass over a Service, or an EndpointSlice
(cmd/kube-proxy/app/server.go)."""


def service(shape: ServiceShape) -> Service:
    """core/v1 Service; raises :class:`Wrong` for a broken address."""
    spec, meta = shape.spec, shape.metadata
    granted = (shape.status and shape.status.load_balancer and shape.status.load_balancer.ingress) or ()
    return Service(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        type=spec.type or "ClusterIP",
        cluster_ips=tuple(address(text, path) for text, path in _cluster_ips(spec)),
        external_ips=tuple(address(t, f"spec.externalIPs[{i}]") for i, t in enumerate(spec.external_ips or ())),
        # ipMode Proxy: the load balancer wants to see the packets itself, nodes must not answer in its name.
        load_balancer_ips=tuple(
            address(entry.ip, f"status.loadBalancer.ingress[{index}].ip")
            for index, entry in enumerate(granted)
            if entry.ip and entry.ip_mode != "Proxy"
        ),
        ports=tuple(
            ServicePort(name=p.name or "", protocol=protocol(p.protocol), port=p.port, node_port=p.node_port or 0)
            for p in spec.ports or ()
        ),
        affinity_seconds=_affinity(spec),
        internal_policy=spec.internal_traffic_policy or "Cluster",
        external_policy=spec.external_traffic_policy or "Cluster",
        publish_not_ready=bool(spec.publish_not_ready_addresses),
        created=meta.created,
        fronted=_OTHER_PROXY not in (meta.labels or {}),
        source_ranges=_source_ranges(spec, annotation(meta, _SOURCE_RANGES)),
        health_check_port=(spec.health_check_node_port or 0) if _needs_health_check(spec) else 0,
    )


def _needs_health_check(spec: ServiceSpec) -> bool:
    return spec.type == "LoadBalancer" and spec.external_traffic_policy == "Local"


def _source_ranges(spec: ServiceSpec, annotated: str) -> tuple[Network, ...]:
    """The field; where it is empty the annotation that came before it."""
    if spec.type != "LoadBalancer":
        return ()
    listed = [
        (text, f"spec.loadBalancerSourceRanges[{i}]") for i, text in enumerate(spec.load_balancer_source_ranges or ())
    ]
    if not listed:
        listed = [(text, f"metadata.annotations[{_SOURCE_RANGES}]") for text in annotated.split(",") if text.strip()]
    if len(listed) > MAX_SOURCE_RANGES:
        problem = f"{len(listed)} networks, more than {MAX_SOURCE_RANGES}"
        raise Wrong(f"metadata.annotations[{_SOURCE_RANGES}]", problem, "gather them into wider ones")
    return tuple(network(text.strip(), path, strict=False) for text, path in listed)


def _cluster_ips(spec: ServiceSpec) -> list[tuple[str, str]]:
    if spec.type == "ExternalName":
        return []
    listed = [(text, f"spec.clusterIPs[{index}]") for index, text in enumerate(spec.cluster_ips or ())]
    if not listed and spec.cluster_ip:
        listed = [(spec.cluster_ip, "spec.clusterIP")]
    return [(text, path) for text, path in listed if text and text != "None"]


def _affinity(spec: ServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    return (config and config.client_ip and config.client_ip.timeout_seconds) or DEFAULT_AFFINITY_SECONDS


def endpoint_slice(shape: EndpointSliceShape) -> EndpointSlice | None:
    """discovery/v1 EndpointSlice; ``None`` for one of host names; raises :class:`Wrong` for a broken address."""
    if shape.address_type == "FQDN":
        return None
    version = 4 if shape.address_type == "IPv4" else 6
    return EndpointSlice(
        namespace=shape.metadata.namespace,
        name=shape.metadata.name,
        service=(shape.metadata.labels or {}).get(SERVICE_NAME_LABEL, ""),
        endpoints=tuple(
            _endpoint(entry, f"endpoints[{index}]", version) for index, entry in enumerate(shape.endpoints or ())
        ),
        # A port without a number stands for all ports: no Service port is served by it.
        ports=tuple(
            EndpointPort(name=p.name or "", protocol=protocol(p.protocol), port=p.port)
            for p in shape.ports or ()
            if p.port
        ),
        fronted=_HEADLESS not in (shape.metadata.labels or {}),
    )


def _endpoint(shape: EndpointShape, path: str, version: int) -> SliceEndpoint:
    addresses = tuple(address(text, f"{path}.addresses[{i}]") for i, text in enumerate(shape.addresses))
    for index, one in enumerate(addresses):
        if one.version != version:
            problem = f"{quote(str(one))} is not of the slice's family"
            raise Wrong(f"{path}.addresses[{index}]", problem, f"put it into a slice of addressType IPv{one.version}")
    conditions, target, hints = shape.conditions, shape.target_ref, shape.hints
    ready = conditions is None or conditions.ready is not False
    serving = ready if conditions is None or conditions.serving is None else conditions.serving
    return SliceEndpoint(
        addresses=addresses,
        ready=ready,
        serving=serving,
        terminating=bool(conditions and conditions.terminating),
        node=shape.node_name or "",
        pod_uid=(target.uid or "") if target and target.kind == "Pod" else "",
        zone=shape.zone or "",
        for_zones=tuple(hint.name for hint in (hints and hints.for_zones) or ()),
        for_nodes=tuple(hint.name for hint in (hints and hints.for_nodes) or ()),
    )
