"""Kubernetes objects as the mesh sees them: the few fields it needs, parsed once by ``cluster``.

Each is the value of a key in the ``objects`` bucket, ``<group>.<kind>.<namespace or _>.<name>`` (pods:
``core.pod.<node>.<namespace>.<name>``, so that a node can watch its own; a pod without a node has no key yet).
Names follow the API's. Fields are named as in the API where they mean the same; times and status that nobody needs
are left out.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.identity import NamedPort
from proto.net import Address, Network

Labels = tuple[tuple[str, str], ...]
"""Sorted pairs of key and value."""


class Namespace(msgspec.Struct, frozen=True):
    """core/v1 Namespace."""

    name: str
    uid: str
    labels: Labels = ()
    annotations: Labels = ()
    """Only those under ``airmesh.io/`` and ``cni.projectcalico.org/``."""


class Owner(msgspec.Struct, frozen=True):
    """The workload that a pod belongs to: what a kept address belongs to (never the pod).

    For a StatefulSet pod ``ordinal`` is its index; for others it is -1 unless an annotation asks for a kept address.
    """

    namespace: str
    kind: str
    name: str
    ordinal: int = -1


class HostPort(msgspec.Struct, frozen=True):
    """A port of the node that leads to a container's (core/v1 ContainerPort with a hostPort)."""

    protocol: int
    port: int
    """On the node."""
    container_port: int
    address: Address | None = None
    """hostIP; ``0.0.0.0`` and ``::`` are all addresses of their family, None those of both."""


class Pod(msgspec.Struct, frozen=True):
    """core/v1 Pod that has been given a node."""

    namespace: str
    name: str
    uid: str
    node: str
    labels: Labels = ()
    annotations: Labels = ()
    """Only those under ``airmesh.io/``, ``cni.projectcalico.org/`` and ``k8s.v1.cni.cncf.io/``."""
    service_account: str = "default"
    named_ports: tuple[NamedPort, ...] = ()
    host_network: bool = False
    addresses: tuple[Address, ...] = ()
    """status.podIPs, empty until the kubelet has reported them."""
    phase: str = "Pending"
    terminating: bool = False
    owner: Owner | None = None
    host_ports: tuple[HostPort, ...] = ()
    """Sorted; none for a pod in the node's own network."""
    static_uid: str = ""
    """Of a static pod's mirror: the uid that the kubelet gave to the pod itself (pkg/kubelet/types/pod_update.go)."""

    def runs_as(self, uid: str) -> bool:
        """Whether a runtime that starts this pod may name it so."""
        return uid in (self.uid, self.static_uid) and uid != ""


class NodeBGP(msgspec.Struct, frozen=True):
    """What annotations of a Node set of its BGP speaker (Calico's names). None: nothing is said."""

    ipv4: Address | None = None
    """``projectcalico.org/IPv4Address``: its IPv4 address for BGP, in place of its first InternalIP."""
    ipv6: Address | None = None
    """``projectcalico.org/IPv6Address``."""
    asn: int | None = None
    """``projectcalico.org/ASNumber``, in place of BGPConfiguration's."""
    cluster_id: Address | None = None
    """``projectcalico.org/RouteReflectorClusterID``: it is a route reflector of this cluster (RFC 4456); IPv4."""


class Node(msgspec.Struct, frozen=True):
    """core/v1 Node."""

    name: str
    uid: str
    labels: Labels = ()
    addresses: tuple[Address, ...] = ()
    """status.addresses of type InternalIP."""
    blocks: tuple[Network, ...] = ()
    """Annotation ``airmesh.io/blocks``: the blocks it held when last heard of (written by ``cluster``)."""
    ready: bool = False
    unschedulable: bool = False
    leaving: bool = False
    """It is being deleted, or the cluster autoscaler is about to (taint ``ToBeDeletedByClusterAutoscaler``)."""
    bgp: NodeBGP | None = None
    """None: no annotation says anything."""


class ServicePort(msgspec.Struct, frozen=True):
    """One port of a Service."""

    name: str
    protocol: int
    port: int
    node_port: int = 0


class Service(msgspec.Struct, frozen=True):
    """core/v1 Service. ``cluster_ips`` is empty for a headless one and for ExternalName."""

    namespace: str
    name: str
    uid: str
    type: str = "ClusterIP"
    cluster_ips: tuple[Address, ...] = ()
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    affinity_seconds: int = 0
    """sessionAffinityConfig.clientIP.timeoutSeconds when sessionAffinity is ClientIP, else 0."""
    internal_policy: str = "Cluster"
    external_policy: str = "Cluster"
    publish_not_ready: bool = False
    created: int = 0
    """metadata.creationTimestamp in Unix seconds: of two that claim one address and port the older one has it."""
    fronted: bool = True
    """False: somebody else's proxy serves it (label ``service.kubernetes.io/service-proxy-name``)."""
    source_ranges: tuple[Network, ...] = ()
    """spec.loadBalancerSourceRanges (or the annotation that came before it): who may reach its load balancer."""
    health_check_port: int = 0
    """spec.healthCheckNodePort; 0 unless of type LoadBalancer with externalTrafficPolicy Local."""


class EndpointPort(msgspec.Struct, frozen=True):
    """One port of an EndpointSlice, matched to a ServicePort by name."""

    name: str
    protocol: int
    port: int


class SliceEndpoint(msgspec.Struct, frozen=True):
    """One endpoint of a slice. ``addresses`` are fungible; the first one is used (discovery/v1)."""

    addresses: tuple[Address, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    pod_uid: str = ""
    zone: str = ""
    for_zones: tuple[str, ...] = ()
    """hints.forZones: the zones whose clients should use it."""
    for_nodes: tuple[str, ...] = ()
    """hints.forNodes: the nodes whose clients should use it."""


class EndpointSlice(msgspec.Struct, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice of type IPv4 or IPv6."""

    namespace: str
    name: str
    service: str
    """Label ``kubernetes.io/service-name``; empty when it serves none."""
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    fronted: bool = True
    """False: its endpoints stand behind names alone (label ``service.kubernetes.io/headless``)."""


class Requirement(msgspec.Struct, frozen=True):
    """One matchExpressions entry (meta/v1 LabelSelectorRequirement)."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class Selector(msgspec.Struct, frozen=True):
    """meta/v1 LabelSelector. Without any requirement it selects everything; ``None`` in its place selects nothing."""

    match_labels: Labels = ()
    match_expressions: tuple[Requirement, ...] = ()


class IPBlock(msgspec.Struct, frozen=True):
    """networking/v1 IPBlock."""

    cidr: Network
    excepted: tuple[Network, ...] = ()


class Peer(msgspec.Struct, frozen=True):
    """networking/v1 NetworkPolicyPeer: either an ipBlock, or a pod and/or namespace selector."""

    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: IPBlock | None = None


class PolicyPort(msgspec.Struct, frozen=True):
    """networking/v1 NetworkPolicyPort. Exactly one of ``port`` and ``port_name`` may be set; neither means any port."""

    protocol: int
    port: int | None = None
    end_port: int | None = None
    port_name: str | None = None


class PolicyRule(msgspec.Struct, frozen=True):
    """One ingress or egress rule. Empty ``peers`` = any peer, empty ``ports`` = any port of any protocol."""

    peers: tuple[Peer, ...] = ()
    ports: tuple[PolicyPort, ...] = ()


class NetworkPolicy(msgspec.Struct, frozen=True):
    """networking.k8s.io/v1 NetworkPolicy, with policyTypes already defaulted by the API server."""

    namespace: str
    name: str
    uid: str
    pod_selector: Selector
    applies_ingress: bool
    applies_egress: bool
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()
    created: int = 0
    """metadata.creationTimestamp in Unix seconds: of those that together are too much the newest are refused."""
    stand_in: bool = False
    """``cluster`` made it for a policy that it could never read: it isolates what that one selects."""
    ignored_ingress: int = 0
    ignored_egress: int = 0
    """Rules of a direction that policyTypes does not list: they have no effect, and are left out here."""


class IPPool(msgspec.Struct, frozen=True):
    """crd.projectcalico.org/v1 IPPool (and airmesh.io/v1, same fields)."""

    name: str
    cidr: Network
    block_size: int
    """Prefix length of a block: 26 (IPv4) and 122 (IPv6) unless said otherwise."""
    ipip_mode: Literal["Never", "Always", "CrossSubnet"] = "Never"
    vxlan_mode: Literal["Never", "Always", "CrossSubnet"] = "Never"
    nat_outgoing: bool = False
    disabled: bool = False
    node_selector: str = "all()"
    namespace_selector: str = ""
    allowed_uses: tuple[str, ...] = ()
    """``Workload``, ``Tunnel``, ``LoadBalancer``; none: the first two."""
    assignment_mode: Literal["Automatic", "Manual"] = "Automatic"
    """Manual: only pods that ask for an address of it by annotation are given one."""
    model: Literal["", "auto"] = ""
    """Annotation ``airmesh.io/model``. ``auto``: each pair of nodes takes the cheapest model that works."""
    disable_bgp_export: bool = False
    """No route to its addresses is announced by BGP."""


class FelixConfiguration(msgspec.Struct, frozen=True):
    """crd.projectcalico.org/v1 FelixConfiguration: what is set of the models of routing. None: nothing is said.

    ``default`` is for all nodes, ``node.<name>`` for one (``kit.model_settings``).
    """

    name: str
    vxlan_port: int | None = None
    vxlan_vni: int | None = None
    vxlan_mtu: int | None = None
    """Largest packet of a pod in VXLAN over IPv4, in bytes; 0: chosen by the links."""
    vxlan_mtu_v6: int | None = None
    """In VXLAN over IPv6."""
    ipip_mtu: int | None = None
    wireguard_enabled: bool | None = None
    """IPv4 packets of pods go from node to node encrypted or not at all."""
    wireguard_enabled_v6: bool | None = None
    """IPv6 packets do."""
    wireguard_listening_port: int | None = None
    wireguard_mtu: int | None = None
    wireguard_mtu_v6: int | None = None


Community = tuple[int, ...]
"""A BGP community: two numbers of 16 bits (RFC 1997), or three of 32 (RFC 8092)."""


class SecretKey(msgspec.Struct, frozen=True):
    """core/v1 SecretKeySelector: where a password stands. The password itself is never on the bus."""

    name: str
    """Of the Secret, in the namespace of airmesh."""
    key: str


class NamedCommunity(msgspec.Struct, frozen=True):
    """BGPConfiguration ``communities``: a name for a community."""

    name: str
    value: Community


class PrefixAdvertisement(msgspec.Struct, frozen=True):
    """BGPConfiguration ``prefixAdvertisements``: what routes to prefixes of a range carry."""

    cidr: Network
    communities: tuple[Community, ...] = ()
    names: tuple[str, ...] = ()
    """Communities that ``communities`` of this object, or else of ``default``, name."""


class BGPConfiguration(msgspec.Struct, frozen=True):
    """crd.projectcalico.org/v1 BGPConfiguration: ``default``, or ``node.<name>`` of one node. None: nothing is said."""

    name: str
    asn: int | None = None
    node_mesh: bool | None = None
    """``nodeToNodeMeshEnabled``."""
    log_severity: str | None = None
    """``logSeverityScreen``: ``Debug``, ``Info``, ``Warning``, ``Error``, ``Fatal``."""
    listen_port: int | None = None
    bind_mode: Literal["None", "NodeIP"] | None = None
    communities: tuple[NamedCommunity, ...] = ()
    advertisements: tuple[PrefixAdvertisement, ...] | None = None
    mesh_password: SecretKey | None = None
    mesh_restart_seconds: int | None = None
    """``nodeMeshMaxRestartTime``: the graceful restart time of the node mesh."""
    cluster_ips: tuple[Network, ...] | None = None
    """``serviceClusterIPs``."""
    external_ips: tuple[Network, ...] | None = None
    load_balancer_ips: tuple[Network, ...] | None = None
    load_balancer_aggregation: bool | None = None
    """``serviceLoadBalancerAggregation``: the ranges of load balancers are announced whole."""


class BGPPeer(msgspec.Struct, frozen=True):
    """crd.projectcalico.org/v1 BGPPeer: which nodes hold a session with whom, and how."""

    name: str
    node: str = ""
    """The node that holds the session; empty: those of ``node_selector``."""
    node_selector: str = ""
    """Empty beside an empty ``node``: all nodes."""
    peer_ip: Address | None = None
    """None: the peers are nodes, those of ``peer_selector``."""
    port: int = 0
    """0: 179, or the port that the node with this address listens on."""
    asn: int | None = None
    """The peer's; None of nodes alone, which have their own."""
    local_asn: int | None = None
    peer_selector: str = ""
    keep_original_next_hop: bool = False
    next_hop_mode: Literal["Auto", "Self", "Keep"] = "Auto"
    password: SecretKey | None = None
    source_address: Literal["UseNodeIP", "None"] = "UseNodeIP"
    restart_seconds: int | None = None
    """``maxRestartTime``."""
    keepalive_seconds: int | None = None
    allowed_local_asns: int = 0
    """``numAllowedLocalASNumbers``."""
    reachable_by: Address | None = None
    """Gateway by which the peer's address is reached."""
    hops: int | None = None
    """``ttlSecurity``."""
    filters: tuple[str, ...] = ()
    """BGPFilters, in order."""
    reverse_peering: Literal["Auto", "Manual"] = "Auto"
    """``Auto``: the nodes of ``peer_selector`` hold their side of the sessions by themselves."""


class BGPFilterRule(msgspec.Struct, frozen=True):
    """BGPFilterRuleV4 and BGPFilterRuleV6: all that it names must match."""

    action: Literal["Accept", "Reject"]
    cidr: Network | None = None
    operator: Literal["Equal", "NotEqual", "In", "NotIn"] = "In"
    lengths: tuple[int, int] | None = None
    """Least and greatest length of the prefix."""
    source: Literal["", "RemotePeers"] = ""
    interface: str = ""
    peer_type: Literal["", "eBGP", "iBGP"] = ""
    communities: tuple[Community, ...] = ()
    as_path_prefix: tuple[int, ...] = ()
    add_communities: tuple[Community, ...] = ()
    prepend: tuple[int, ...] = ()
    """As they stand in the path afterwards, the nearest first."""
    priority: int | None = None
    """``setPriority``: the metric that the route is given; the lower one is preferred."""


class BGPFilter(msgspec.Struct, frozen=True):
    """crd.projectcalico.org/v1 BGPFilter: the first rule of a direction and family that matches decides."""

    name: str
    import_v4: tuple[BGPFilterRule, ...] = ()
    import_v6: tuple[BGPFilterRule, ...] = ()
    export_v4: tuple[BGPFilterRule, ...] = ()
    export_v6: tuple[BGPFilterRule, ...] = ()


class CalicoNodeStatus(msgspec.Struct, frozen=True):
    """crd.projectcalico.org/v1 CalicoNodeStatus: whose BGP speaker is written into its status, and what of it."""

    name: str
    node: str
    classes: tuple[Literal["Agent", "BGP", "Routes"], ...] = ()
    period_seconds: int = 10
    """``updatePeriodSeconds``; 0: it is not written."""


class ConfigMap(msgspec.Struct, frozen=True):
    """core/v1 ConfigMap; only ``kube-system/coredns`` is mirrored."""

    namespace: str
    name: str
    content: Labels = ()


class Deployment(msgspec.Struct, frozen=True):
    """apps/v1 Deployment; only ``kube-system/coredns`` is mirrored."""

    namespace: str
    name: str
    replicas: int
    ready_replicas: int = 0
    scaled_by: str = ""
    """Field manager that set ``spec.replicas`` by the subresource ``scale`` and still owns them: an autoscaler's."""


KubernetesObject = (
    Namespace
    | Pod
    | Node
    | Service
    | EndpointSlice
    | NetworkPolicy
    | FelixConfiguration
    | IPPool
    | BGPConfiguration
    | BGPPeer
    | BGPFilter
    | CalicoNodeStatus
    | ConfigMap
    | Deployment
)


class Kind(msgspec.Struct, frozen=True):
    """How one kind is spelled in keys and in the API."""

    group: str
    """Key segment: ``core`` for the API's empty group."""
    kind: str
    """Key segment: lower-case singular."""
    api: str
    """API path prefix, e.g. ``/api/v1`` or ``/apis/apps/v1``."""
    plural: str
    type: type[KubernetesObject]

    @property
    def api_version(self) -> str:
        """Its ``apiVersion``: ``v1``, ``apps/v1``."""
        return self.api.removeprefix("/apis/").removeprefix("/api/")


_CALICO, _CALICO_API = "crd.projectcalico.org", "/apis/crd.projectcalico.org/v1"
KINDS: tuple[Kind, ...] = (
    Kind("core", "namespace", "/api/v1", "namespaces", Namespace),
    Kind("core", "node", "/api/v1", "nodes", Node),
    Kind("core", "pod", "/api/v1", "pods", Pod),
    Kind("core", "service", "/api/v1", "services", Service),
    Kind("core", "configmap", "/api/v1", "configmaps", ConfigMap),
    Kind("apps", "deployment", "/apis/apps/v1", "deployments", Deployment),
    Kind("discovery.k8s.io", "endpointslice", "/apis/discovery.k8s.io/v1", "endpointslices", EndpointSlice),
    Kind("networking.k8s.io", "networkpolicy", "/apis/networking.k8s.io/v1", "networkpolicies", NetworkPolicy),
    Kind(_CALICO, "felixconfiguration", _CALICO_API, "felixconfigurations", FelixConfiguration),
    Kind(_CALICO, "ippool", _CALICO_API, "ippools", IPPool),
    Kind(_CALICO, "bgpconfiguration", _CALICO_API, "bgpconfigurations", BGPConfiguration),
    Kind(_CALICO, "bgppeer", _CALICO_API, "bgppeers", BGPPeer),
    Kind(_CALICO, "bgpfilter", _CALICO_API, "bgpfilters", BGPFilter),
    Kind(_CALICO, "caliconodestatus", _CALICO_API, "caliconodestatuses", CalicoNodeStatus),
)
"""Every kind that ``cluster`` mirrors."""

KIND_OF: dict[type, Kind] = {kind.type: kind for kind in KINDS}
