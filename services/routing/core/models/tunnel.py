"""What models that tunnel have in common: a device of their own, and a next hop that stands for the other node.

The two nodes speak IPv4 to each other when both have such an address and the model goes over it, else IPv6; each end is
the first of the node's addresses of that family. Refuses a node that has no such address, that says it has this node's
own, and packets of IPv6 where what is left of the uplink's MTU is less than IPv6 needs.
"""

from __future__ import annotations

from kit.models import LEAST_MTU
from kit.models import Model as Traits
from kit.tunnels import DEVICES, next_hop
from services.routing.core.faults import Fault
from services.routing.core.models.contract import NodeContext, Pair, Path, first

PATIENCE = 15.0
"""Seconds that what nodes do in turn may take before it is a fault."""


def underlay_of(traits: Traits, own: NodeContext, pair: Pair) -> int:
    """The family that two nodes speak to each other by a model; 0: none."""
    theirs = {address.version for address in pair.peer.underlay}
    return min((family for family in traits.overhead if family in theirs and own.address(family)), default=0)


def device_mtu(traits: Traits, own: NodeContext, underlay: int) -> int:
    """MTU of a model's device: the smallest of the uplinks', less what the model adds, and no more than is allowed."""
    fits = min((uplink.mtu for uplink in own.links), default=0) - traits.overhead[underlay]
    allowed = own.settings.most_mtu(traits.name, underlay)
    return min(fits, allowed) if allowed else fits


def tunnel_path(traits: Traits, pair: Pair) -> Path | Fault:
    """The way to the other node over the model's device."""
    own, name, peer = pair.own, traits.name, pair.peer.node
    underlay = underlay_of(traits, own, pair)
    local, outer = own.address(underlay), first(pair.peer.underlay, underlay)
    if local is None or outer is None:
        families = " or ".join(f"IPv{family}" for family in sorted(traits.overhead))
        return Fault(
            f"node {peer} and this node have no addresses of one family that {name} goes over",
            f"give both an {families} address on the interfaces of AIRMESH_UPLINKS",
            of_others=True,
        )
    if outer in own.underlay:
        return Fault(
            f"node {peer} says it has {outer}, which is this node's own",
            "give each node an address and a name of its own",
            of_others=True,
        )
    device = own.devices.get((name, underlay))
    if device is None:
        return Fault(
            f"this node's device {DEVICES[name][underlay]} of {name} is not there",
            "look at this node's other faults and at `ip -d link`; it is tried again each second",
            of_others=True,
            after=PATIENCE,
        )
    fits = min((pair.mtu(uplink) for uplink in own.links), default=device.mtu + traits.overhead[underlay])
    mtu = min(device.mtu, fits - traits.overhead[underlay])
    if pair.family == 6 and mtu < LEAST_MTU:
        return Fault(
            f"{name} to node {peer} leaves {mtu} bytes of an uplink's MTU, and IPv6 needs {LEAST_MTU} of every link",
            f"raise the uplinks' MTU to {LEAST_MTU + traits.overhead[underlay]} at least, or ask for a model that adds "
            "less",
            of_others=True,
        )
    return Path(
        model=name,
        via=next_hop(outer, pair.family),
        link=device.index,
        mtu=mtu,
        link_mtu=device.mtu,
        device=device.name,
        local=local,
        remote=outer,
        onlink=True,
        source=own.address(pair.family),
    )
