"""VXLAN: Ethernet frames in UDP (RFC 7348), by a device of the kernel that learns nothing. IPv4 and IPv6 over either.

All that it must know of another node follows from that node's outer address: the MAC address of its end
(``kit.tunnels.vtep_mac``), set as a permanent neighbour for each form of the next hop, and where frames to that MAC
address go.
"""

from __future__ import annotations

from kit.models import VXLAN
from kit.models import Model as Traits
from kit.tunnels import Tunnel, next_hop, vtep_mac
from proto.net import Address
from services.routing.core.faults import Fault
from services.routing.core.fib import Device, Entry, Forwarding, Neighbour
from services.routing.core.models.contract import NodeContext, Pair, Path
from services.routing.core.models.tunnel import device_mtu, tunnel_path


class Vxlan:
    """See the module."""

    traits: Traits = VXLAN

    def device(self, own: NodeContext, underlay: int) -> Device | Fault | None:
        """One for each family that nodes speak to each other."""
        local = own.address(underlay)
        if local is None or not own.links:
            return None
        settings = own.settings
        tunnel = Tunnel(model=self.traits.name, local=local, port=settings.vxlan_port, vni=settings.vxlan_vni)
        return Device(tunnel=tunnel, mtu=device_mtu(self.traits, own, underlay))

    def path(self, pair: Pair) -> Path | Fault:
        """Over the device of the family that both speak."""
        return tunnel_path(self.traits, pair)

    def entries(self, link: int, outer: Address) -> tuple[Entry, ...]:
        """A neighbour for each next hop, and the outer address itself, which packets of measurement go to."""
        mac = vtep_mac(outer)
        hops = dict.fromkeys((outer, next_hop(outer, 4), next_hop(outer, 6)))
        return (*(Neighbour(link, hop, mac) for hop in hops), Forwarding(link, mac, outer))
