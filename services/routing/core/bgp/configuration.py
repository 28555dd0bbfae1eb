"""BGPConfiguration, as it holds on one node: what is set for all nodes, and above it what is set for this one.

Calico's rule: ``default`` is for all nodes, ``node.<name>`` for one, field by field; what must be the same on all nodes
counts from ``default`` alone. The node mesh is on where nothing is said.

Source: Calico's BGPConfiguration reference; RFC 1997 and RFC 8092 (communities).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kit.bgp import ASN, PORT
from kit.model_settings import DEFAULT, NODE
from proto.net import Network
from proto.objects import BGPConfiguration, Community, PrefixAdvertisement, SecretKey
from services.routing.core.bgp.values import Asn
from services.routing.core.faults import Fault

RESTART = 120
"""Graceful restart time in seconds where none is set: BIRD's."""
LOG_LEVELS = {
    "Trace": "debug",
    "Debug": "debug",
    "Info": "info",
    "Warning": "warning",
    "Error": "error",
    "Fatal": "fatal",
}
"""``logSeverityScreen`` as the least level of lines that are written."""
StandardOrLarge = int | tuple[int, int, int]
"""A community as ``peers.FilterRule`` and ``values.Attributes`` have it: 32 bits, or three numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """Communities of the routes to prefixes of a range."""

    cidr: Network
    communities: tuple[StandardOrLarge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What is set on one node. Made without arguments: nothing is."""

    asn: Asn = ASN
    """Of nodes that have none of their own."""
    node_mesh: bool = True
    log_severity: str | None = None
    """A key of :data:`LOG_LEVELS`; None: nobody says."""
    listen_port: int = PORT
    bound_to_node: bool = False
    """Connections are taken at the node's own addresses alone."""
    mesh_password: SecretKey | None = None
    mesh_restart_seconds: int = RESTART
    cluster_ips: tuple[Network, ...] = ()
    """Ranges of Services' ClusterIPs that are announced."""
    external_ips: tuple[Network, ...] = ()
    load_balancer_ips: tuple[Network, ...] = ()
    load_balancer_aggregation: bool = True
    advertisements: tuple[Advertisement, ...] = ()
    faults: tuple[Fault, ...] = ()
    """What of it names what is not there."""

    @property
    def service_ranges(self) -> tuple[Network, ...]:
        """All ranges of Services' addresses that are announced."""
        return self.cluster_ips + self.external_ips + self.load_balancer_ips


def configuration(configurations: Iterable[BGPConfiguration], node: str) -> Configuration:
    """What holds on ``node``, whatever the order of ``configurations``."""
    by_name = {one.name: one for one in configurations}
    shared = by_name.get(DEFAULT, BGPConfiguration(name=DEFAULT))
    own = by_name.get(NODE + node, BGPConfiguration(name=NODE + node))
    advertisements, faults = _advertisements(own if own.advertisements is not None else shared, shared)
    return Configuration(
        asn=shared.asn or ASN,
        node_mesh=shared.node_mesh is not False,
        log_severity=own.log_severity or shared.log_severity,
        listen_port=own.listen_port or shared.listen_port or PORT,
        bound_to_node=(own.bind_mode or shared.bind_mode) == "NodeIP",
        mesh_password=shared.mesh_password,
        mesh_restart_seconds=RESTART if shared.mesh_restart_seconds is None else shared.mesh_restart_seconds,
        cluster_ips=shared.cluster_ips or (),
        external_ips=shared.external_ips or (),
        load_balancer_ips=shared.load_balancer_ips or (),
        load_balancer_aggregation=shared.load_balancer_aggregation is not False,
        advertisements=advertisements,
        faults=faults,
    )


def standard_or_large(community: Community) -> StandardOrLarge:
    """Two numbers as the 32 bits that they are on the wire (RFC 1997), three as they are (RFC 8092)."""
    if len(community) == 2:
        return community[0] << 16 | community[1]
    return community[0], community[1], community[2]


def _advertisements(
    own: BGPConfiguration, shared: BGPConfiguration
) -> tuple[tuple[Advertisement, ...], tuple[Fault, ...]]:
    """Those of ``own``, whose names are looked up there and then in ``shared``; and the names that are not found."""
    named = {one.name: one.value for one in (*shared.communities, *own.communities)}
    listed = own.advertisements or ()
    faults = tuple(
        Fault(
            f"prefixAdvertisements of {one.cidr} names the community {name!r}, which spec.communities does not have",
            f"add it to spec.communities of BGPConfiguration {DEFAULT}, or write the community itself",
            about=("BGPConfiguration", own.name),
        )
        for one in listed
        for name in one.names
        if name not in named
    )
    return tuple(_advertisement(one, named) for one in listed), faults


def _advertisement(one: PrefixAdvertisement, named: Mapping[str, Community]) -> Advertisement:
    found = (*one.communities, *(named[name] for name in one.names if name in named))
    return Advertisement(cidr=one.cidr, communities=tuple(dict.fromkeys(map(standard_or_large, found))))
