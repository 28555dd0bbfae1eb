"""host-gw: packets go as they are to the other node's address on a link that both are on. Adds nothing to them.

Refuses a node that is not on a link of this one (a route there would be a black hole), that has no address of the
family, or that says it has this node's own.
"""

from __future__ import annotations

from kit.models import HOST_GW
from kit.models import Model as Traits
from proto.net import Address
from services.routing.core.faults import Fault
from services.routing.core.fib import Device, Entry
from services.routing.core.models.contract import NodeContext, Pair, Path


class HostGw:
    """See the module."""

    traits: Traits = HOST_GW

    def device(self, own: NodeContext, underlay: int) -> Device | Fault | None:
        """It has none."""
        return None

    def entries(self, link: int, outer: Address) -> tuple[Entry, ...]:
        """It has none."""
        return ()

    def path(self, pair: Pair) -> Path | Fault:
        """Through the first of the other node's addresses that is on a link of ours."""
        candidates = [address for address in pair.peer.underlay if address.version == pair.family]
        for address in candidates:
            for uplink in pair.links:
                for interface in uplink.addresses:
                    if interface.version != pair.family or address not in interface.network:
                        continue
                    if address == interface.ip:
                        return Fault(
                            f"node {pair.peer.node} says it has {address}, which is this node's own",
                            "give each node an address and a name of its own",
                            of_others=True,
                        )
                    mtu = pair.mtu(uplink) - self.traits.overhead[pair.family]
                    return Path(
                        model=self.traits.name,
                        via=address,
                        link=uplink.index,
                        mtu=mtu,
                        link_mtu=uplink.mtu,
                        device=uplink.name,
                        local=interface.ip,
                        remote=address,
                    )
        if not candidates:
            return Fault(
                f"node {pair.peer.node} has no IPv{pair.family} address on its uplinks",
                f"give it an IPv{pair.family} address",
                of_others=True,
            )
        text = ", ".join(str(address) for address in candidates[:4])
        return Fault(
            f"node {pair.peer.node} ({text}) is not on a link of this node, so host-gw cannot reach it",
            "put the nodes on one layer-2 network or name the right interface in AIRMESH_UPLINKS",
            of_others=bool(pair.links),
        )
