"""Which addresses a pod is to have: of which families, from where, and kept or not.

Owns the reading of annotations. A pod gets one address of each family that has a pool which gives addresses to its
node: one that is enabled, honoured whole (``kit.pools``) and selects the node. A block gives addresses once the node's
own Node object names it: what ``ipam`` may have to rebuild from Nodes alone is never less than what is in use. A pod
keeps its addresses (they become claims, and move with their owner) when it belongs to a StatefulSet, or when it, else
its namespace, says ``airmesh.io/keep-address: "true"`` (``"false"`` overrules both). Calico's
``cni.projectcalico.org/ipAddrs`` asks for certain addresses, which are claims too. Refuses an annotation it cannot use,
by name, instead of giving another address.

Source: https://docs.tigera.io/calico/latest/networking/ipam/use-specific-ip
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec

from kit.pools import Pools, within
from proto.annotations import FIXED_ADDRESSES, KEEP_ADDRESS, REFUSED
from proto.net import Address, Family, Network
from proto.objects import Namespace, Node, Owner, Pod

BOTH: tuple[Family, Family] = (4, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What pods of one node are given addresses from."""

    families: tuple[Family, ...] = ()
    """Those that every pod gets an address of, IPv4 first."""
    asked: tuple[Family, ...] = ()
    """Those that a pod may ask for a certain address of."""
    ranges: tuple[Network, ...] = ()
    """Of the pools that give to this node: its blocks outside of them give no new address."""
    named: frozenset[Network] = frozenset()
    """Blocks that the annotation ``airmesh.io/blocks`` of the node's own Node names."""

    def gives(self, block: Network) -> bool:
        """Whether new addresses may be taken from a block of this node."""
        return block in self.named and self.will_give(block)

    def will_give(self, block: Network) -> bool:
        """Whether they may be as soon as the Node names the block."""
        return any(within(block, range_) for range_ in self.ranges)


def supply_of(pools: Pools, node: Node) -> Supply:
    """What a node's pods are given addresses from."""
    taken = [pool for family in BOTH for pool in pools.enabled(family) if pool.takes(node)]
    given = {pool.cidr.version for pool in taken}
    asked = given | {pool.cidr.version for pool in pools.sound if pool.enabled}
    return Supply(
        families=tuple(family for family in BOTH if family in given),
        asked=tuple(family for family in BOTH if family in asked),
        ranges=tuple(pool.cidr for pool in taken),
        named=frozenset(node.blocks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPlan:
    """What is to be asked for. ``owner`` is None when the addresses come from the node's own blocks."""

    families: tuple[Family, ...]
    owner: Owner | None = None
    fixed: Mapping[int, Address] = field(default_factory=dict)
    """Family → the address that an annotation asks for."""


@dataclass(frozen=True, slots=True)
class BadWish:
    """The annotation cannot be used: one sentence with the remedy."""

    why: str


def plan_addresses(pod: Pod, namespace: Namespace | None, supply: Supply) -> AddressPlan | BadWish:
    """What the pod is to have."""
    notes, of_namespace = dict(pod.annotations), dict(namespace.annotations if namespace else ())
    for kind, wishes, whose in (("Pod", notes, ""), ("Namespace", of_namespace, f" of namespace {pod.namespace}")):
        if refused := next((key for key in REFUSED[kind] if wishes.get(key)), None):
            return BadWish(f"annotation {refused}{whose}: {REFUSED[kind][refused]}")
    fixed = _fixed(notes.get(FIXED_ADDRESSES, ""), supply.asked)
    if isinstance(fixed, BadWish):
        return fixed
    families = tuple(family for family in BOTH if family in supply.families or family in fixed)
    if not families:
        return BadWish("no IPPool gives addresses to this node; airmesh ipam show tells why, of each pool")
    keep = notes.get(KEEP_ADDRESS, of_namespace.get(KEEP_ADDRESS, ""))
    if keep not in ("", "true", "false"):
        return BadWish(f'annotation {KEEP_ADDRESS}: {keep[:32]!r}; use "true" or "false"')
    stateful = pod.owner is not None and pod.owner.kind == "StatefulSet" and pod.owner.ordinal >= 0
    if not fixed and (keep == "false" or not (keep or stateful)):
        return AddressPlan(families=families)
    owner = pod.owner or Owner(namespace=pod.namespace, kind="Pod", name=pod.name)
    return AddressPlan(families=families, owner=owner, fixed=fixed)


def _fixed(text: str, families: tuple[Family, ...]) -> dict[int, Address] | BadWish:
    if not text:
        return {}
    remedy = 'give a JSON list with at most one address of each family, such as ["10.0.0.1"]'
    try:
        listed = [ip_address(one) for one in msgspec.json.decode(text[:1024], type=list[str])]
    except (msgspec.DecodeError, ValueError) as error:
        return BadWish(f"annotation {FIXED_ADDRESSES}: {error}; {remedy}")
    chosen = {address.version: address for address in listed}
    if len(chosen) != len(listed):
        return BadWish(f"annotation {FIXED_ADDRESSES}: two addresses of one family; {remedy}")
    without = [str(address) for address in listed if address.version not in families]
    if without:
        return BadWish(f"annotation {FIXED_ADDRESSES}: no enabled IPPool has the family of {', '.join(without)}")
    return {int(version): address for version, address in chosen.items()}
