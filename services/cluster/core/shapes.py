"""Kubernetes API objects as JSON spells them: only the fields that the mesh reads, with the bounds the API itself sets.

Owns the border: msgspec checks types, ranges and lengths while it decodes, and names the path of what is wrong. Unknown
fields are passed over, since every release of Kubernetes adds some; but not inside a NetworkPolicy or an IPPool, where
a field that is not understood could be the one that narrows what is allowed. ``null`` means absent, as in Go.

Source: k8s.io/api (core/v1, apps/v1, discovery/v1, networking/v1), crd.projectcalico.org/v1.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?\Z"
LABEL = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?\Z"

Name = Annotated[str, Meta(max_length=253, pattern=SUBDOMAIN)]
NamespaceName = Annotated[str, Meta(max_length=63, pattern=LABEL)]
LabelKey = Annotated[str, Meta(min_length=1, max_length=317)]
LabelValue = Annotated[str, Meta(max_length=63)]
LabelMap = dict[LabelKey, LabelValue]
PortNumber = Annotated[int, Meta(ge=1, le=65535)]
NodePort = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
PortName = Annotated[str, Meta(max_length=63)]
AddressText = Annotated[str, Meta(max_length=64)]
NetworkText = Annotated[str, Meta(max_length=64)]
PaddedNetworkText = Annotated[str, Meta(max_length=128)]
"""The API lets blanks stand around a source range."""
ProtocolName = Literal["TCP", "UDP", "SCTP"]
Mode = Literal["Never", "Always", "CrossSubnet"]


class Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Unknown fields are passed over."""


class Strict(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Unknown fields are refused."""


class OwnerReference(Shape, frozen=True):
    """meta/v1 OwnerReference."""

    kind: Annotated[str, Meta(max_length=253)]
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    controller: bool | None = None


class Metadata(Shape, frozen=True):
    """meta/v1 ObjectMeta."""

    name: Name
    namespace: NamespaceName = ""
    uid: Annotated[str, Meta(max_length=128)] = ""
    labels: LabelMap | None = None
    annotations: dict[LabelKey, str] | None = None
    owner_references: Annotated[list[OwnerReference], Meta(max_length=64)] | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: str | None = None

    @property
    def created(self) -> int:
        """Unix seconds; 0 when it is not said."""
        return int(self.creation_timestamp.timestamp()) if self.creation_timestamp else 0


class NamespaceShape(Shape, frozen=True):
    """core/v1 Namespace."""

    metadata: Metadata


class ContainerPort(Shape, frozen=True):
    """core/v1 ContainerPort."""

    container_port: PortNumber
    name: PortName | None = None
    protocol: ProtocolName | None = None
    host_port: NodePort | None = None
    host_ip: AddressText | None = field(name="hostIP", default=None)


class Container(Shape, frozen=True):
    """core/v1 Container."""

    ports: Annotated[list[ContainerPort], Meta(max_length=1000)] | None = None
    restart_policy: str | None = None


class PodSpec(Shape, frozen=True):
    """core/v1 PodSpec."""

    node_name: Annotated[str, Meta(max_length=253)] | None = None
    service_account_name: Annotated[str, Meta(max_length=253)] | None = None
    host_network: bool | None = None
    containers: Annotated[list[Container], Meta(max_length=1000)] | None = None
    init_containers: Annotated[list[Container], Meta(max_length=1000)] | None = None


class PodIP(Shape, frozen=True):
    """core/v1 PodIP."""

    ip: AddressText = ""


class PodStatus(Shape, frozen=True):
    """core/v1 PodStatus."""

    phase: Annotated[str, Meta(max_length=32)] | None = None
    pod_ip: AddressText | None = field(name="podIP", default=None)
    pod_ips: Annotated[list[PodIP], Meta(max_length=16)] | None = field(name="podIPs", default=None)


class PodShape(Shape, frozen=True):
    """core/v1 Pod."""

    metadata: Metadata
    spec: PodSpec
    status: PodStatus | None = None


class NodeAddress(Shape, frozen=True):
    """core/v1 NodeAddress."""

    type: str
    address: str


class Condition(Shape, frozen=True):
    """core/v1 NodeCondition; of other kinds the same."""

    type: str
    status: str
    reason: str | None = None


class NodeStatus(Shape, frozen=True):
    """core/v1 NodeStatus."""

    addresses: Annotated[list[NodeAddress], Meta(max_length=256)] | None = None
    conditions: Annotated[list[Condition], Meta(max_length=256)] | None = None


class Taint(Shape, frozen=True):
    """core/v1 Taint."""

    key: str


class NodeSpec(Shape, frozen=True):
    """core/v1 NodeSpec."""

    unschedulable: bool | None = None
    taints: Annotated[list[Taint], Meta(max_length=256)] | None = None


class NodeShape(Shape, frozen=True):
    """core/v1 Node."""

    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ServicePortShape(Shape, frozen=True):
    """core/v1 ServicePort."""

    port: PortNumber
    name: PortName | None = None
    protocol: ProtocolName | None = None
    node_port: NodePort | None = None


class ClientIPConfig(Shape, frozen=True):
    """core/v1 ClientIPConfig."""

    timeout_seconds: Annotated[int, Meta(ge=1, le=86400)] | None = None


class SessionAffinityConfig(Shape, frozen=True):
    """core/v1 SessionAffinityConfig."""

    client_ip: ClientIPConfig | None = field(name="clientIP", default=None)


class ServiceSpec(Shape, frozen=True):
    """core/v1 ServiceSpec."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] | None = None
    cluster_ip: AddressText | None = field(name="clusterIP", default=None)
    cluster_ips: Annotated[list[AddressText], Meta(max_length=2)] | None = field(name="clusterIPs", default=None)
    external_ips: Annotated[list[AddressText], Meta(max_length=256)] | None = field(name="externalIPs", default=None)
    ports: Annotated[list[ServicePortShape], Meta(max_length=1000)] | None = None
    session_affinity: Literal["", "None", "ClientIP"] | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: Literal["", "Cluster", "Local"] | None = None
    external_traffic_policy: Literal["", "Cluster", "Local"] | None = None
    publish_not_ready_addresses: bool | None = None
    load_balancer_source_ranges: Annotated[list[PaddedNetworkText], Meta(max_length=1024)] | None = None
    health_check_node_port: NodePort | None = None


class LoadBalancerIngress(Shape, frozen=True):
    """core/v1 LoadBalancerIngress."""

    ip: AddressText | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Shape, frozen=True):
    """core/v1 LoadBalancerStatus."""

    ingress: Annotated[list[LoadBalancerIngress], Meta(max_length=256)] | None = None


class ServiceStatus(Shape, frozen=True):
    """core/v1 ServiceStatus."""

    load_balancer: LoadBalancerStatus | None = None


class ServiceShape(Shape, frozen=True):
    """core/v1 Service."""

    metadata: Metadata
    spec: ServiceSpec
    status: ServiceStatus | None = None


class EndpointConditions(Shape, frozen=True):
    """discovery/v1 EndpointConditions."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ObjectReference(Shape, frozen=True):
    """core/v1 ObjectReference."""

    kind: str | None = None
    uid: Annotated[str, Meta(max_length=128)] | None = None


class ForZone(Shape, frozen=True):
    """discovery/v1 ForZone and ForNode."""

    name: Annotated[str, Meta(max_length=253)]


class EndpointHints(Shape, frozen=True):
    """discovery/v1 EndpointHints."""

    for_zones: Annotated[list[ForZone], Meta(max_length=8)] | None = None
    for_nodes: Annotated[list[ForZone], Meta(max_length=8)] | None = None


class EndpointShape(Shape, frozen=True):
    """discovery/v1 Endpoint."""

    addresses: Annotated[list[Annotated[str, Meta(max_length=253)]], Meta(max_length=100)]
    conditions: EndpointConditions | None = None
    node_name: Annotated[str, Meta(max_length=253)] | None = None
    target_ref: ObjectReference | None = None
    zone: Annotated[str, Meta(max_length=253)] | None = None
    hints: EndpointHints | None = None


class EndpointPortShape(Shape, frozen=True):
    """discovery/v1 EndpointPort."""

    name: PortName | None = None
    protocol: ProtocolName | None = None
    port: NodePort | None = None


class EndpointSliceShape(Shape, frozen=True):
    """discovery/v1 EndpointSlice."""

    metadata: Metadata
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: Annotated[list[EndpointShape], Meta(max_length=1000)] | None = None
    ports: Annotated[list[EndpointPortShape], Meta(max_length=20000)] | None = None


class RequirementShape(Strict, frozen=True):
    """meta/v1 LabelSelectorRequirement."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Annotated[list[LabelValue], Meta(max_length=10000)] | None = None


class SelectorShape(Strict, frozen=True):
    """meta/v1 LabelSelector."""

    match_labels: LabelMap | None = None
    match_expressions: Annotated[list[RequirementShape], Meta(max_length=1000)] | None = None


class IPBlockShape(Strict, frozen=True):
    """networking/v1 IPBlock."""

    cidr: NetworkText
    excepted: Annotated[list[NetworkText], Meta(max_length=10000)] | None = field(name="except", default=None)


class PeerShape(Strict, frozen=True):
    """networking/v1 NetworkPolicyPeer."""

    pod_selector: SelectorShape | None = None
    namespace_selector: SelectorShape | None = None
    ip_block: IPBlockShape | None = None


class PolicyPortShape(Strict, frozen=True):
    """networking/v1 NetworkPolicyPort; ``port`` is a number or a name."""

    protocol: ProtocolName | None = None
    port: PortNumber | PortName | None = None
    end_port: PortNumber | None = None


class IngressRuleShape(Strict, frozen=True):
    """networking/v1 NetworkPolicyIngressRule."""

    peers: Annotated[list[PeerShape], Meta(max_length=10000)] | None = field(name="from", default=None)
    ports: Annotated[list[PolicyPortShape], Meta(max_length=10000)] | None = None


class EgressRuleShape(Strict, frozen=True):
    """networking/v1 NetworkPolicyEgressRule."""

    peers: Annotated[list[PeerShape], Meta(max_length=10000)] | None = field(name="to", default=None)
    ports: Annotated[list[PolicyPortShape], Meta(max_length=10000)] | None = None


class NetworkPolicySpec(Strict, frozen=True):
    """networking/v1 NetworkPolicySpec."""

    pod_selector: SelectorShape | None = None
    policy_types: Annotated[list[Literal["Ingress", "Egress"]], Meta(max_length=2)] | None = None
    ingress: Annotated[list[IngressRuleShape], Meta(max_length=10000)] | None = None
    egress: Annotated[list[EgressRuleShape], Meta(max_length=10000)] | None = None


class NetworkPolicyShape(Shape, frozen=True):
    """networking/v1 NetworkPolicy."""

    metadata: Metadata
    spec: NetworkPolicySpec


class IPPoolSpec(Strict, frozen=True):
    """crd.projectcalico.org/v1 IPPoolSpec."""

    cidr: NetworkText
    block_size: Annotated[int, Meta(ge=0, le=128)] | None = None
    ipip_mode: Literal["", "Never", "Always", "CrossSubnet"] | None = None
    vxlan_mode: Literal["", "Never", "Always", "CrossSubnet"] | None = None
    nat_outgoing: bool | None = None
    disabled: bool | None = None
    node_selector: Annotated[str, Meta(max_length=1024)] | None = None
    namespace_selector: Annotated[str, Meta(max_length=1024)] | None = None
    allowed_uses: Annotated[list[Literal["Workload", "Tunnel", "LoadBalancer"]], Meta(max_length=8)] | None = None
    assignment_mode: Literal["", "Automatic", "Manual"] | None = None
    disable_bgp_export: bool | None = field(name="disableBGPExport", default=None)


class FelixConfigurationSpec(Shape, frozen=True):
    """crd.projectcalico.org/v1 FelixConfigurationSpec: what of it is acted on; ranges are judged where it is read."""

    vxlan_port: int | None = None
    vxlan_vni: int | None = field(name="vxlanVNI", default=None)
    vxlan_mtu: int | None = field(name="vxlanMTU", default=None)
    vxlan_mtu_v6: int | None = field(name="vxlanMTUV6", default=None)
    ipip_mtu: int | None = field(name="ipipMTU", default=None)
    wireguard_enabled: bool | None = None
    wireguard_enabled_v6: bool | None = field(name="wireguardEnabledV6", default=None)
    wireguard_listening_port: int | None = None
    wireguard_mtu: int | None = field(name="wireguardMTU", default=None)
    wireguard_mtu_v6: int | None = field(name="wireguardMTUV6", default=None)


class FelixConfigurationShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 FelixConfiguration. All that its spec names is kept: what nobody acts on is told."""

    metadata: Metadata
    spec: dict[Annotated[str, Meta(max_length=128)], Any] | None = None


class PoolCondition(Shape, frozen=True):
    """meta/v1 Condition of an IPPool."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class IPPoolStatus(Shape, frozen=True):
    """crd.projectcalico.org/v1 IPPoolStatus."""

    conditions: Annotated[list[PoolCondition], Meta(max_length=64)] | None = None


class IPPoolShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 IPPool; its status is read by who writes it."""

    metadata: Metadata
    spec: IPPoolSpec


class ConfigMapShape(Shape, frozen=True):
    """core/v1 ConfigMap."""

    metadata: Metadata
    data: dict[Annotated[str, Meta(max_length=253)], str] | None = None


class ManagedFieldsEntry(Shape, frozen=True):
    """meta/v1 ManagedFieldsEntry."""

    manager: Annotated[str, Meta(max_length=128)] = ""
    subresource: Annotated[str, Meta(max_length=253)] = ""
    fields_v1: object = None
    """Which fields it owns, as keys of nested objects (structured-merge-diff's spelling)."""


class DeploymentMetadata(Metadata, frozen=True):
    """meta/v1 ObjectMeta."""

    managed_fields: Annotated[list[ManagedFieldsEntry], Meta(max_length=256)] | None = None


class DeploymentSpec(Shape, frozen=True):
    """apps/v1 DeploymentSpec."""

    replicas: Count | None = None


class DeploymentStatus(Shape, frozen=True):
    """apps/v1 DeploymentStatus."""

    ready_replicas: Count | None = None


class DeploymentShape(Shape, frozen=True):
    """apps/v1 Deployment."""

    metadata: DeploymentMetadata
    spec: DeploymentSpec
    status: DeploymentStatus | None = None
