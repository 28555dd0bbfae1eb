"""BGPConfiguration and BGPPeer, as they are read.

Promises that a value which nobody could act on is refused in one sentence that names field and remedy (the last good
object stays, so sessions go on as they were). A BGPPeer that says two things at once is refused too: one node or those
of a selector hold its sessions, and its peers have one address or are nodes. Which fields are not acted on is known by
name, for ``core.unserved`` to report. A password is read as the name of a Secret's key alone.

Source: crd.projectcalico.org/v1 BGPConfigurationSpec, BGPPeerSpec; RFC 4724 3 (restart time), RFC 5082 (GTSM).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Literal

import msgspec

from kit.bgp import MOST_RESTART
from kit.node_selectors import parse_selector
from proto.net import Address, Network
from proto.objects import BGPConfiguration, BGPPeer, NamedCommunity, PrefixAdvertisement
from services.cluster.core.bgp_parts import asn, community, seconds, secret_key
from services.cluster.core.bgp_shapes import (
    BGPConfigurationShape,
    BGPConfigurationSpec,
    BGPPeerShape,
    BGPPeerSpec,
    PrefixAdvertisementShape,
    ServiceRange,
)
from services.cluster.core.malformed import Wrong, quote
from services.cluster.core.parts import address, network
from services.cluster.core.shapes import Shape

SEVERITIES = ("Trace", "Debug", "Info", "Warning", "Error", "Fatal")
MOST_KEEPALIVE = 21845
"""A third of the longest hold time, in seconds (RFC 4271 4.2)."""
OF_ALL_NODES = (
    "asNumber",
    "nodeToNodeMeshEnabled",
    "nodeMeshPassword",
    "nodeMeshMaxRestartTime",
    "serviceClusterIPs",
    "serviceExternalIPs",
    "serviceLoadBalancerIPs",
    "serviceLoadBalancerAggregation",
)
"""What is read from BGPConfiguration ``default`` alone."""
OF_CONFIGURATION: Mapping[str, str] = {
    one.encode_name: one.name for one in msgspec.structs.fields(BGPConfigurationSpec)
}
"""Fields that are acted on, as the API spells them."""
OF_PEER: Mapping[str, str] = {
    one.encode_name: one.name
    for one in msgspec.structs.fields(BGPPeerSpec)
    if one.encode_name != "localWorkloadSelector"
}


class _Configuration(Shape, frozen=True):
    spec: BGPConfigurationSpec


class _Peer(Shape, frozen=True):
    spec: BGPPeerSpec


def bgp_configuration(shape: BGPConfigurationShape) -> BGPConfiguration:
    """crd.projectcalico.org/v1 BGPConfiguration; raises :class:`Wrong` and msgspec.ValidationError."""
    spec = msgspec.convert({"spec": shape.spec or {}}, _Configuration).spec
    if spec.listen_port is not None:
        _check_range("spec.listenPort", spec.listen_port, 1, 65535)
    restart = spec.node_mesh_max_restart_time
    return BGPConfiguration(
        name=shape.metadata.name,
        asn=None if spec.as_number is None else asn(spec.as_number, "spec.asNumber"),
        node_mesh=spec.node_to_node_mesh_enabled,
        log_severity=_severity(spec.log_severity_screen),
        listen_port=spec.listen_port,
        bind_mode=spec.bind_mode or None,
        communities=_communities(spec),
        advertisements=_advertisements(spec.prefix_advertisements),
        mesh_password=secret_key(spec.node_mesh_password, "spec.nodeMeshPassword"),
        mesh_restart_seconds=seconds(restart, "spec.nodeMeshMaxRestartTime", 0, MOST_RESTART) if restart else None,
        cluster_ips=_ranges(spec.service_cluster_ips, "spec.serviceClusterIPs"),
        external_ips=_ranges(spec.service_external_ips, "spec.serviceExternalIPs"),
        load_balancer_ips=_ranges(spec.service_load_balancer_ips, "spec.serviceLoadBalancerIPs"),
        load_balancer_aggregation=_aggregation(spec.service_load_balancer_aggregation),
    )


def _check_range(path: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise Wrong(path, f"{number} is out of range", f"use {least} to {most}")


def _severity(text: str | None) -> str | None:
    if not text:
        return None
    found = next((one for one in SEVERITIES if one.lower() == text.lower()), None)
    if found is None:
        raise Wrong("spec.logSeverityScreen", f"{quote(text)} is no severity", f"use one of {', '.join(SEVERITIES)}")
    return found


def _aggregation(text: str | None) -> bool | None:
    return text == "Enabled" if text else None


def _ranges(listed: list[ServiceRange] | None, path: str) -> tuple[Network, ...] | None:
    if listed is None:
        return None
    found = (network(one.cidr, f"{path}[{index}].cidr", strict=False) for index, one in enumerate(listed))
    return tuple(dict.fromkeys(found))


def _communities(spec: BGPConfigurationSpec) -> tuple[NamedCommunity, ...]:
    found: dict[str, NamedCommunity] = {}
    for index, one in enumerate(spec.communities or ()):
        path = f"spec.communities[{index}]"
        if one.name in found:
            raise Wrong(f"{path}.name", f"{quote(one.name)} is there twice", "give each community a name of its own")
        if ":" in one.name:
            raise Wrong(f"{path}.name", f"{quote(one.name)} has a colon, as communities have", "leave it out")
        found[one.name] = NamedCommunity(name=one.name, value=community(one.value, f"{path}.value"))
    return tuple(found.values())


def _advertisements(listed: list[PrefixAdvertisementShape] | None) -> tuple[PrefixAdvertisement, ...] | None:
    if listed is None:
        return None
    found: list[PrefixAdvertisement] = []
    for index, one in enumerate(listed):
        path = f"spec.prefixAdvertisements[{index}]"
        if not one.communities:
            raise Wrong(f"{path}.communities", "is missing", "list communities, or names of spec.communities")
        texts = [(text, f"{path}.communities[{at}]") for at, text in enumerate(one.communities)]
        found.append(
            PrefixAdvertisement(
                cidr=network(one.cidr, f"{path}.cidr", strict=False),
                communities=tuple(community(text, where) for text, where in texts if ":" in text),
                names=tuple(text for text, _ in texts if ":" not in text),
            )
        )
    return tuple(found)


def bgp_peer(shape: BGPPeerShape) -> BGPPeer:
    """crd.projectcalico.org/v1 BGPPeer; raises :class:`Wrong` and msgspec.ValidationError."""
    spec = msgspec.convert({"spec": shape.spec}, _Peer).spec
    _check_whose(spec)
    peer_ip, port = _peer_ip(spec.peer_ip) if spec.peer_ip else (None, 0)
    if spec.ttl_security is not None:
        _check_range("spec.ttlSecurity", spec.ttl_security, 1, 255)
    own = spec.num_allowed_local_as_numbers or 0
    _check_range("spec.numAllowedLocalASNumbers", own, 0, 255)
    restart, keepalive = spec.max_restart_time, spec.keepalive_time
    return BGPPeer(
        name=shape.metadata.name,
        node=spec.node or "",
        node_selector=_selector(spec.node_selector, "spec.nodeSelector"),
        peer_ip=peer_ip,
        port=port,
        asn=None if spec.as_number in (None, 0) else asn(spec.as_number or 0, "spec.asNumber"),
        local_asn=None if spec.local_as_number is None else asn(spec.local_as_number, "spec.localASNumber"),
        peer_selector=_selector(spec.peer_selector, "spec.peerSelector"),
        keep_original_next_hop=bool(spec.keep_original_next_hop),
        next_hop_mode=_next_hop_mode(spec),
        password=secret_key(spec.password, "spec.password"),
        source_address=spec.source_address or "UseNodeIP",
        restart_seconds=seconds(restart, "spec.maxRestartTime", 0, MOST_RESTART) if restart else None,
        keepalive_seconds=seconds(keepalive, "spec.keepaliveTime", 1, MOST_KEEPALIVE) if keepalive else None,
        allowed_local_asns=own,
        reachable_by=_gateway(spec.reachable_by, peer_ip) if spec.reachable_by else None,
        hops=spec.ttl_security,
        filters=tuple(spec.filters or ()),
        reverse_peering=spec.reverse_peering or "Auto",
    )


def _check_whose(spec: BGPPeerSpec) -> None:
    """Refuses what says two things at once, or not whom to peer with."""
    if spec.local_workload_selector:
        remedy = "name the peers by peerIP or peerSelector"
        raise Wrong("spec.localWorkloadSelector", "no session is held with pods of the node", remedy)
    if spec.node and spec.node_selector:
        raise Wrong("spec.nodeSelector", "is there beside spec.node", "write one of them")
    if spec.peer_ip and spec.peer_selector:
        raise Wrong("spec.peerSelector", "is there beside spec.peerIP", "write one of them")
    if not spec.peer_ip and not spec.peer_selector:
        raise Wrong(
            "spec.peerIP", "is missing", "write the peer's address, or spec.peerSelector for peers that are nodes"
        )
    for field, number in (("asNumber", spec.as_number), ("localASNumber", spec.local_as_number)):
        if spec.peer_selector and number:
            remedy = "remove it: nodes have their own AS number"
            raise Wrong(f"spec.{field}", "is there beside spec.peerSelector", remedy)
    if spec.peer_ip and not spec.as_number:
        raise Wrong("spec.asNumber", "is missing", "write the AS number of the peer at spec.peerIP")


def _selector(text: str | None, path: str) -> str:
    problem = parse_selector(text or "")
    if isinstance(problem, str):
        what, _, remedy = problem.rpartition("; ")
        raise Wrong(path, what, remedy) if what else Wrong(path, problem, "make it shorter")
    return text or ""


def _peer_ip(text: str) -> tuple[Address, int]:
    """``10.0.0.1``, ``10.0.0.1:1790``, ``fd00::1`` or ``[fd00::1]:1790``; port 0 where none is named."""
    path, host, port = "spec.peerIP", text, "0"
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise Wrong(path, f"{quote(text)} is not an address with a port", "write e.g. [fd00::1]:179")
        port = rest[1:] if rest else "0"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    found = address(host, path)
    if found.is_unspecified or found.is_multicast or found.is_loopback:
        raise Wrong(path, f"{found} is no address that a peer can have", "write the address of the peer's interface")
    if isinstance(found, IPv6Address) and found.is_link_local:
        raise Wrong(path, f"{found} is link-local, and no interface can be named", "write a global address of the peer")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise Wrong(path, f"{quote(port)} is not a TCP port", "use 1 to 65535")
    return found, int(port)


def _gateway(text: str, peer_ip: Address | None) -> Address:
    path = "spec.reachableBy"
    if peer_ip is None:
        raise Wrong(path, "is there beside spec.peerSelector", "remove it: nodes reach each other")
    found = address(text, path)
    if found.version != peer_ip.version:
        raise Wrong(path, f"{found} is not of the family of spec.peerIP {peer_ip}", "write the gateway's address of it")
    return found


def _next_hop_mode(spec: BGPPeerSpec) -> Literal["Auto", "Self", "Keep"]:
    mode = spec.next_hop_mode or "Auto"
    if spec.keep_original_next_hop and mode == "Self":
        raise Wrong("spec.nextHopMode", "Self is asked for beside keepOriginalNextHop", "write one of them")
    return mode
