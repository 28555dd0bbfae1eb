"""WireGuard: packets go encrypted to the other node's address, over any network that takes UDP between the two.

Serves a pair in which each node knows the other's key and has a device; keys, devices and peers are what
``core.wireguard`` is about.
The next hop tells the other node's address for people and for the datapath: WireGuard itself goes by the destination.

Where packets of a family must be encrypted, every pool's range of it is *prohibited* beneath the routes to its blocks:
while a device, a key, a peer's record or this agent is missing, packets to other nodes' pods meet that and are refused,
instead of leaving as they are by the default route. The kernel keeps it with every agent dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set

from kit.models import LEAST_MTU, WIREGUARD
from kit.models import Model as Traits
from kit.prefixes import overlap
from kit.tunnels import next_hop
from proto.net import Address, Network
from services.routing.core.faults import Fault
from services.routing.core.fib import Device, Entry
from services.routing.core.models.contract import NodeContext, Pair, Path
from services.routing.core.models.tunnel import PATIENCE
from services.routing.core.wireguard import DEVICES


class Wireguard:
    """See the module."""

    traits: Traits = WIREGUARD

    def device(self, own: NodeContext, underlay: int) -> Device | Fault | None:
        """None that the planner makes: a device has keys and peers, which are made with it."""
        return None

    def path(self, pair: Pair) -> Path | Fault:
        """Over the device of the slot that both nodes take."""
        own, peer, state = pair.own, pair.peer.node, pair.own.wireguard
        if not state.links:
            return state.fault or Fault(
                "this node's WireGuard device is not there (yet)",
                "look at this node's other faults and at `ip -d link show am-wg`",
                after=PATIENCE,
            )
        slot, outer = state.slots.get(peer), state.outer.get(peer)
        if slot is None or outer is None:
            return Fault(
                f"this node and node {peer} do not have each other's WireGuard keys (yet)",
                f"look at the faults of routing on node {peer}: it needs a kernel with WireGuard or wireguard-go, an "
                "address of its own on the shared network, and a key that no other node tells",
                of_others=True,
                after=PATIENCE,
            )
        overhead = self.traits.overhead[outer.version]
        allowed = own.settings.most_mtu(self.traits.name, outer.version) or state.mtu
        mtu = min(state.mtu, allowed, *(pair.mtu(uplink) - overhead for uplink in own.links))
        if pair.family == 6 and mtu < LEAST_MTU:
            return Fault(
                f"wireguard to node {peer} leaves {mtu} bytes of an uplink's MTU, and IPv6 needs {LEAST_MTU}",
                f"raise the uplinks' MTU to {LEAST_MTU + overhead} at least",
                of_others=True,
            )
        return Path(
            model=self.traits.name,
            via=next_hop(outer, pair.family),
            link=state.links[slot],
            mtu=mtu,
            link_mtu=state.mtu,
            device=DEVICES[slot],
            local=own.address(outer.version),
            remote=outer,
            onlink=True,
            source=own.address(pair.family),
        )

    def entries(self, link: int, outer: Address) -> tuple[Entry, ...]:
        """None: a packet finds its peer by its destination."""
        return ()


def prohibited(pools: Collection[Network], blocks: Iterable[Network], encrypted: Set[int]) -> list[Network]:
    """The ranges to which packets of the families ``encrypted`` go so or not at all: pools, and blocks in none."""
    found = [cidr for cidr in pools if cidr.version in encrypted]
    alone = (cidr for cidr in blocks if cidr.version in encrypted and not any(overlap(cidr, pool) for pool in pools))
    return [*found, *alone]
