"""What a person sets of the models of routing: tunnel number, ports, sizes, encryption; read off FelixConfiguration.

Whoever must know asks here: ``routing`` (devices, routes), ``dataplane`` (what may pass unencrypted, a pod's MTU). Two
objects count on a node, Calico's rule: ``default``, and above it ``node.<name>``. What both ends of a tunnel must agree
on (tunnel number, VXLAN's port, whether packets are encrypted) counts from ``default`` alone; ``cluster`` tells of one
that stands elsewhere. Values are sound: what is out of range never gets past ``cluster``.

Source: Calico's FelixConfiguration reference (names, defaults, 0 as "chosen for you").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType

from proto.objects import FelixConfiguration

DEFAULT = "default"
"""Name of the object that is for all nodes."""
NODE = "node."
"""Beginning of the names of those that are for one."""

VXLAN_VNI = 4096
"""Calico's; Flannel's is 1."""
VXLAN_PORT = 4789
"""UDP, of IANA for VXLAN (RFC 7348); Flannel's is 8472, the kernel's first."""
WIREGUARD_PORT = 51820
"""UDP, Calico's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What is set, on one node. Made without arguments: nothing is."""

    vxlan_vni: int = VXLAN_VNI
    """Tunnel number, 1 to 16,777,215."""
    vxlan_port: int = VXLAN_PORT
    """UDP port that VXLAN packets are sent to."""
    wireguard_port: int = WIREGUARD_PORT
    """UDP port that this node's WireGuard listens on; the others learn it from its word in ``routes``."""
    encrypted: frozenset[int] = frozenset()
    """Families (4, 6) of pods' packets that go from node to node encrypted or not at all."""
    sizes: MappingProxyType[tuple[str, int], int] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """What :meth:`most_mtu` tells."""

    def most_mtu(self, model: str, underlay: int) -> int:
        """The largest packet of a pod, in bytes, that a person allows in this model between nodes that speak this
        family to each other; 0: nothing is set, and it follows from the links.
        """
        return self.sizes.get((model, underlay), 0)


def model_settings(configurations: Iterable[FelixConfiguration], node: str = "") -> ModelSettings:
    """What holds on ``node`` (empty: on a gateway, or for the cluster), whatever the order of ``configurations``."""
    by_name = {one.name: one for one in configurations}
    shared = by_name.get(DEFAULT, FelixConfiguration(name=DEFAULT))
    own = by_name.get(NODE + node, FelixConfiguration(name=NODE)) if node else FelixConfiguration(name=NODE)
    sizes = {
        ("vxlan", 4): _first(own.vxlan_mtu, shared.vxlan_mtu),
        ("vxlan", 6): _first(own.vxlan_mtu_v6, shared.vxlan_mtu_v6),
        ("ipip", 4): _first(own.ipip_mtu, shared.ipip_mtu),
        ("wireguard", 4): _first(own.wireguard_mtu, shared.wireguard_mtu),
        ("wireguard", 6): _first(own.wireguard_mtu_v6, shared.wireguard_mtu_v6),
    }
    wanted = {4: shared.wireguard_enabled, 6: shared.wireguard_enabled_v6}
    return ModelSettings(
        vxlan_vni=_first(shared.vxlan_vni) or VXLAN_VNI,
        vxlan_port=_first(shared.vxlan_port) or VXLAN_PORT,
        wireguard_port=_first(own.wireguard_listening_port, shared.wireguard_listening_port) or WIREGUARD_PORT,
        encrypted=frozenset(family for family, on in wanted.items() if on),
        sizes=MappingProxyType({which: size for which, size in sizes.items() if size}),
    )


def _first(*values: int | None) -> int:
    return next((value for value in values if value is not None), 0)
