"""IPIP: IPv4 in IPv4 (RFC 2003). The device is a veth that carries the routes; the datapath encapsulates what goes in.

The kernel's own driver is not needed, and on the wire nobody sees the difference. Refuses IPv6, which it has no form
for (protocol 4 is IPv4 in IP). A veth without neighbours' protocols needs no entries.
"""

from __future__ import annotations

from kit.models import IPIP
from kit.models import Model as Traits
from kit.tunnels import Tunnel
from proto.net import Address
from services.routing.core.faults import Fault
from services.routing.core.fib import Device, Entry
from services.routing.core.models.contract import NodeContext, Pair, Path
from services.routing.core.models.tunnel import device_mtu, tunnel_path


class Ipip:
    """See the module."""

    traits: Traits = IPIP

    def device(self, own: NodeContext, underlay: int) -> Device | Fault | None:
        """One, for nodes that speak IPv4 to each other."""
        local = own.address(underlay)
        if local is None or not own.links:
            return None
        return Device(tunnel=Tunnel(model=self.traits.name, local=local), mtu=device_mtu(self.traits, own, underlay))

    def path(self, pair: Pair) -> Path | Fault:
        """Over the device, for packets of IPv4."""
        if pair.family != 4:
            return Fault(
                "ipip carries IPv4 alone, and the pool has IPv6 addresses",
                "ask for vxlan in the IPPool (vxlanMode, with ipipMode: Never)",
            )
        return tunnel_path(self.traits, pair)

    def entries(self, link: int, outer: Address) -> tuple[Entry, ...]:
        """It needs none."""
        return ()
