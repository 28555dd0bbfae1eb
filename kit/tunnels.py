"""Tunnel devices, as ``routing`` makes them and ``dataplane`` finds them: names, marks, and what a next hop says.

The kernel's objects are all that the two services share, so what stands on them is read and written here alone.
A device is known by its alias, which carries what the datapath must know of it, never by its name: some of them (the
veth that carries IPIP) say nothing else of themselves. The next hop of a route over one stands for the *outer address*,
the other node's address on the shared network: an IPv4 address as itself or in a form that holds it, an IPv6 address
by a link-local one that is made of it (:func:`next_hop`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address

from proto.net import Address

ALIAS_VERSION = "airmesh-tunnel/1"
MODELS = ("vxlan", "ipip", "wireguard")
"""Models that have a device."""
DEVICES: Mapping[str, Mapping[int, str]] = {
    "vxlan": {4: "am-vxlan", 6: "am-vxlan6"},
    "ipip": {4: "am-ipip"},
    "wireguard": {4: "am-wg", 6: "am-wg"},
}
"""Names of the devices by model and family of the outer addresses."""
PREFIX = "am-"
"""Of every device of ours that is no pod's link."""
ROUTE_PROTOCOL = 186
"""rtm_protocol of every route of ``routing``: by it and the metric, they are found again after a restart. Routing
suites use the number too, with other metrics."""
METRIC = 64
"""Of routes to other nodes: not 0, so that a route made by hand for the same prefix is another route, not this one."""
LAST_METRIC = 4096
"""Of routes that refuse: any other route to the same prefix is better."""
_MOST_PORT, _MOST_VNI = 0xFFFF, 0xFFFFFF
_ISATAP = int(IPv6Address("fe80::5efe:0:0"))
_LINK_LOCAL = bytes.fromhex("fe80000000000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """What a tunnel device does."""

    model: str
    local: Address
    """The node's own outer address."""
    port: int = 0
    """Of UDP, at both ends; 0 where the model has none."""
    vni: int = 0
    """VXLAN network identifier; 0 elsewhere."""


def tunnel_alias(tunnel: Tunnel) -> str:
    """The mark of a device (``ip link`` shows it): version, model, own outer address, port, VNI."""
    return f"{ALIAS_VERSION} {tunnel.model} {tunnel.local} {tunnel.port} {tunnel.vni}"


def parse_alias(words: str) -> Tunnel | None:
    """Inverse of :func:`tunnel_alias`; None when it is not ours."""
    parts = words.split(" ")
    if len(parts) != 5 or parts[0] != ALIAS_VERSION or parts[1] not in MODELS:
        return None
    try:
        local, port, vni = ip_address(parts[2]), int(parts[3]), int(parts[4])
    except ValueError:
        return None
    if not (0 <= port <= _MOST_PORT and 0 <= vni <= _MOST_VNI):
        return None
    return Tunnel(model=parts[1], local=local, port=port, vni=vni)


def is_tunnel_name(name: str) -> bool:
    """Whether an interface of this name is a tunnel's, or part of one: no uplink, whatever addresses it has."""
    return name.startswith(PREFIX)


def next_hop(outer: Address, family: int) -> Address:
    """Next hop of a route for packets of a family to the node with this outer address.

    IPv4 packets to an IPv4 address: that address. IPv6 packets to an IPv4 address: its ISATAP form (RFC 5214). To an
    IPv6 address, for either family (RFC 8950): the link-local address that the other node's VXLAN device has by its MAC
    (RFC 4291, appendix A). The address itself cannot be one: the kernel refuses a next hop that another route, such as
    the uplink's own, leads to by another device (``ip6_route_check_nh_onlink``), and looks at no link-local one.
    """
    if isinstance(outer, IPv6Address):
        mac = vtep_mac(outer)
        return IPv6Address(_LINK_LOCAL + bytes([mac[0] ^ 0x02]) + mac[1:3] + b"\xff\xfe" + mac[3:])
    return IPv6Address(_ISATAP | int(outer)) if family == 6 else outer


def vtep_mac(outer: Address) -> bytes:
    """MAC address of a node's VXLAN device (six bytes, locally administered, unicast), the same on every node.

    Of an IPv4 address it is the address; of an IPv6 address a hash, so two may be alike by accident once in 2^40.
    """
    if isinstance(outer, IPv4Address):
        return b"\x02\x61" + outer.packed
    return b"\x02" + blake2b(outer.packed, digest_size=5).digest()
