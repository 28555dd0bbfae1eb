"""BGPConfiguration, BGPPeer and BGPFilter as JSON spells them, with the bounds that their CRDs set.

Owns the border, as ``core.shapes`` does for all other kinds. A field that nobody knows is refused inside a BGPFilter
and in the parts of the others, since it could be what narrows them. Of a BGPConfiguration's and a BGPPeer's own fields
those are kept by name, for ``core.unserved`` to report. AS numbers may be numbers, or texts of one or of two numbers
(``"1.10"``, RFC 5396).

Source: crd.projectcalico.org/v1 (Calico 3.32).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from services.cluster.core.shapes import AddressText, Metadata, Name, NetworkText, Shape, Strict

AsnShape = int | Annotated[str, Meta(max_length=16)]
CommunityText = Annotated[str, Meta(max_length=32)]
DurationText = Annotated[str, Meta(max_length=32)]
SelectorText = Annotated[str, Meta(max_length=4096)]
InterfaceText = Annotated[str, Meta(max_length=15, pattern=r"^[-A-Za-z0-9_.*@:]*\Z")]
PrefixLength = Annotated[int, Meta(ge=0, le=128)]
Spec = dict[Annotated[str, Meta(max_length=128)], Any]
"""A spec of which the unknown fields are reported."""


class SecretKeySelector(Shape, frozen=True):
    """core/v1 SecretKeySelector."""

    key: Annotated[str, Meta(max_length=253, pattern=r"^(?!\.\.)[-._A-Za-z0-9]+\Z")]
    """As keys of Secrets are (k8s.io/apimachinery IsConfigMapKey)."""
    name: Name


class PasswordShape(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPPassword."""

    secret_key_ref: SecretKeySelector | None = None


class CommunityShape(Strict, frozen=True):
    """crd.projectcalico.org/v1 Community."""

    name: Annotated[str, Meta(min_length=1, max_length=253)]
    value: CommunityText


class PrefixAdvertisementShape(Strict, frozen=True):
    """crd.projectcalico.org/v1 PrefixAdvertisement."""

    cidr: NetworkText
    communities: Annotated[list[Annotated[str, Meta(max_length=253)]], Meta(max_length=64)] | None = None


class ServiceRange(Strict, frozen=True):
    """crd.projectcalico.org/v1 ServiceClusterIPBlock and ServiceExternalIPBlock and ServiceLoadBalancerIPBlock."""

    cidr: NetworkText


Ranges = Annotated[list[ServiceRange], Meta(max_length=256)]


class BGPConfigurationSpec(Shape, frozen=True):
    """crd.projectcalico.org/v1 BGPConfigurationSpec."""

    as_number: AsnShape | None = None
    node_to_node_mesh_enabled: bool | None = None
    log_severity_screen: Annotated[str, Meta(max_length=16)] | None = None
    listen_port: int | None = None
    bind_mode: Literal["", "None", "NodeIP"] | None = None
    communities: Annotated[list[CommunityShape], Meta(max_length=256)] | None = None
    prefix_advertisements: Annotated[list[PrefixAdvertisementShape], Meta(max_length=256)] | None = None
    node_mesh_password: PasswordShape | None = None
    node_mesh_max_restart_time: DurationText | None = None
    service_cluster_ips: Ranges | None = field(name="serviceClusterIPs", default=None)
    service_external_ips: Ranges | None = field(name="serviceExternalIPs", default=None)
    service_load_balancer_ips: Ranges | None = field(name="serviceLoadBalancerIPs", default=None)
    service_load_balancer_aggregation: Literal["", "Enabled", "Disabled"] | None = None
    ignored_interfaces: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] | None = None


class BGPConfigurationShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 BGPConfiguration."""

    metadata: Metadata
    spec: Spec | None = None


class BGPPeerSpec(Shape, frozen=True):
    """crd.projectcalico.org/v1 BGPPeerSpec."""

    node: Annotated[str, Meta(max_length=253)] | None = None
    node_selector: SelectorText | None = None
    peer_ip: AddressText | None = field(name="peerIP", default=None)
    as_number: AsnShape | None = None
    local_as_number: AsnShape | None = field(name="localASNumber", default=None)
    peer_selector: SelectorText | None = None
    keep_original_next_hop: bool | None = None
    next_hop_mode: Literal["", "Auto", "Self", "Keep"] | None = None
    password: PasswordShape | None = None
    source_address: Literal["", "UseNodeIP", "None"] | None = None
    max_restart_time: DurationText | None = None
    keepalive_time: DurationText | None = None
    num_allowed_local_as_numbers: int | None = field(name="numAllowedLocalASNumbers", default=None)
    reachable_by: AddressText | None = None
    ttl_security: int | None = None
    filters: Annotated[list[Name], Meta(max_length=64)] | None = None
    reverse_peering: Literal["", "Auto", "Manual"] | None = None
    local_workload_selector: SelectorText | None = None


class BGPPeerShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 BGPPeer."""

    metadata: Metadata
    spec: Spec


class Lengths(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterPrefixLengthV4 and BGPFilterPrefixLengthV6."""

    min: PrefixLength | None = None
    max: PrefixLength | None = None


class CommunityMatch(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterCommunityMatch."""

    values: Annotated[list[CommunityText], Meta(min_length=1, max_length=16)]


class AddCommunity(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterAddCommunity."""

    value: CommunityText


class PrependASPath(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterPrependASPath."""

    prefix: Annotated[list[AsnShape], Meta(min_length=1, max_length=10)]


class SetPriority(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterSetPriority."""

    value: Annotated[int, Meta(ge=1, le=2147483646)]


class OperationShape(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterOperation: exactly one."""

    add_community: AddCommunity | None = None
    prepend_as_path: PrependASPath | None = field(name="prependASPath", default=None)
    set_priority: SetPriority | None = None


class RuleShape(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterRuleV4 and BGPFilterRuleV6."""

    action: Literal["Accept", "Reject"]
    cidr: NetworkText | None = None
    prefix_length: Lengths | None = None
    """The bound of IPv4 is looked at where it is read."""
    source: Literal["", "RemotePeers"] | None = None
    interface: InterfaceText | None = None
    match_operator: Literal["", "Equal", "NotEqual", "In", "NotIn"] | None = None
    peer_type: Literal["", "eBGP", "iBGP"] | None = None
    communities: CommunityMatch | None = None
    as_path_prefix: Annotated[list[AsnShape], Meta(max_length=64)] | None = None
    operations: Annotated[list[OperationShape], Meta(max_length=10)] | None = None


Rules = Annotated[list[RuleShape], Meta(max_length=1000)]


class BGPFilterSpec(Strict, frozen=True):
    """crd.projectcalico.org/v1 BGPFilterSpec."""

    export_v4: Rules | None = None
    import_v4: Rules | None = None
    export_v6: Rules | None = None
    import_v6: Rules | None = None


class BGPFilterShape(Shape, frozen=True):
    """crd.projectcalico.org/v1 BGPFilter."""

    metadata: Metadata
    spec: BGPFilterSpec
