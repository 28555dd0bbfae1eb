"""Tunnel devices, as ``routing`` makes them and ``dataplane`` finds them: names, marks, and what a next hop says.

The kernel's objects are all that the two services share, so what stands on them is read and written here alone.
A device is known by its alias, which carries what the datapath must know of it, never by its name: some of them (the
veth that carries IPIP) say nothing else of themselves. A route over one has the *outer address* as its next hop, the
other node's address on the shared network; where a packet's family is another than that address's, a form of it
(:func:`next_hop`). So the table alone tells where an encapsulated packet goes.
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
_MOST_PORT, _MOST_VNI = 0xFFFF, 0xFFFFFF
_ISATAP = int(IPv6Address("fe80::5efe:0:0"))
_LOW = 0xFFFFFFFF


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

    IPv6 packets over an IPv4 address: its ISATAP form (RFC 5214). IPv4 packets over an IPv6 address: that address, as
    RFC 8950 has it (RTA_VIA).
    """
    if family == 6 and isinstance(outer, IPv4Address):
        return IPv6Address(_ISATAP | int(outer))
    return outer


def outer_address(via: Address) -> Address | None:
    """The outer address that a next hop stands for; None for one that stands for none (another link-local address)."""
    if isinstance(via, IPv6Address) and via.is_link_local:
        return IPv4Address(int(via) & _LOW) if int(via) & ~_LOW == _ISATAP else None
    return via


def vtep_mac(outer: Address) -> bytes:
    """MAC address of a node's VXLAN device (six bytes, locally administered, unicast), the same on every node.

    Of an IPv4 address it is the address; of an IPv6 address a hash, so two may be alike by accident once in 2^40.
    """
    if isinstance(outer, IPv4Address):
        return b"\x02\x61" + outer.packed
    return b"\x02" + blake2b(outer.packed, digest_size=5).digest()
