"""Which addresses a pod is to have: of which families, from where, and kept or not.

Owns the reading of annotations. A pod gets one address of each family that has an enabled pool. It keeps them (they
become claims, and move with their owner) when it belongs to a StatefulSet, or when it, else its namespace, says
``airmesh.io/keep-address: "true"`` (``"false"`` overrules both). Calico's ``cni.projectcalico.org/ipAddrs`` asks for
certain addresses, which are claims too. Refuses an annotation it cannot use, by name, instead of giving another
address. Source: https://docs.tigera.io/calico/latest/networking/ipam/use-specific-ip
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal

import msgspec

from proto.net import Address
from proto.objects import IPPool, Namespace, Owner, Pod

KEEP = "airmesh.io/keep-address"
STATIC = "cni.projectcalico.org/ipAddrs"

Family = Literal[4, 6]


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


def families_of(pools: Iterable[IPPool]) -> tuple[Family, ...]:
    """Families that have an enabled pool, IPv4 first."""
    versions = {pool.cidr.version for pool in pools if not pool.disabled}
    both: tuple[Family, Family] = (4, 6)
    return tuple(family for family in both if family in versions)


def plan_addresses(pod: Pod, namespace: Namespace | None, pools: Iterable[IPPool]) -> AddressPlan | BadWish:
    """What the pod is to have."""
    families = families_of(pools)
    if not families:
        return BadWish("no IPPool is enabled; create one, or set spec.disabled of one to false")
    notes = dict(pod.annotations)
    fixed = _fixed(notes.get(STATIC, ""), families)
    if isinstance(fixed, BadWish):
        return fixed
    keep = notes.get(KEEP, dict(namespace.annotations).get(KEEP, "") if namespace else "")
    if keep not in ("", "true", "false"):
        return BadWish(f'annotation {KEEP}: {keep[:32]!r}; use "true" or "false"')
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
        return BadWish(f"annotation {STATIC}: {error}; {remedy}")
    chosen = {address.version: address for address in listed}
    if len(chosen) != len(listed):
        return BadWish(f"annotation {STATIC}: two addresses of one family; {remedy}")
    without = [str(address) for address in listed if address.version not in families]
    if without:
        return BadWish(f"annotation {STATIC}: no enabled IPPool has the family of {', '.join(without)}")
    return {int(version): address for version, address in chosen.items()}
