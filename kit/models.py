"""The models of routing: how packets of pods travel between two nodes. The one place that says which there are.

Owns their names, what each adds to a packet, and what asks for which: fields of an IPPool, its annotation
``airmesh.io/model``, and FelixConfiguration for all of them (``kit.model_settings``). Whoever must know asks here:
``kit.pools`` (a pool that asks for a model that nobody serves gives no blocks), ``routing`` (what each of
:data:`SERVED` does in the kernel is in ``services/routing/core/models``) and ``dataplane`` (a pod's MTU). So all of
them serve a model from the release on that names it here.

A pod's MTU is that of this node's uplinks less what the models add: the smallest over the pairs that its packets may
take, as with Calico and Cilium. It follows from this node's own links and from pools, never from what another node
tells, or one node's word would make the packets of all others small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from kit.model_settings import ModelSettings
from proto.objects import IPPool

LEAST_MTU = 1280
"""What IPv6 needs of every link (RFC 8200, 5): below it the kernel takes a link's IPv6 addresses away for good."""
MOST_MTU = 65535
"""Of a veth (ETH_MAX_MTU)."""
USUAL_MTU = 1500
"""Of Ethernet: what is taken where there is no uplink yet."""
NOTHING_SET = ModelSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is true of a model on every pair of nodes."""

    name: str
    overhead: Mapping[int, int]
    """Bytes that it adds to a packet, by the family in which the nodes speak to each other; it does not go over a
    family that is not here."""


HOST_GW = Model(name="host-gw", overhead={4: 0, 6: 0})
"""Packets as they are, routed through the other node: nodes of one layer-2 network."""

VXLAN = Model(name="vxlan", overhead={4: 50, 6: 70})
"""Ethernet frames in UDP (RFC 7348): outer IP header, UDP 8, VXLAN 8, inner Ethernet 14. Either family over either."""
IPIP = Model(name="ipip", overhead={4: 20})
"""IPv4 in IPv4 (RFC 2003)."""
WIREGUARD = Model(name="wireguard", overhead={4: 60, 6: 80})
"""Encrypted packets in UDP: outer IP header, UDP 8, type, receiver and counter 16, tag 16. Each family over either."""

SERVED: Mapping[str, Model] = {model.name: model for model in (HOST_GW, IPIP, VXLAN, WIREGUARD)}
"""Those that there are, by name."""
LEARNT_PROTOCOL = 185
"""rtm_protocol of a route that a BGP peer sent: a packet that takes it goes by no model."""
ENCRYPTS = WIREGUARD.name
"""The model that FelixConfiguration asks for by ``wireguardEnabled``."""
AUTO: Mapping[int, tuple[str, ...]] = {
    4: (HOST_GW.name, IPIP.name, VXLAN.name, ENCRYPTS),
    6: (HOST_GW.name, VXLAN.name, ENCRYPTS),
}
"""By family of pods' packets, what ``auto`` may take, the cheapest first."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A field of an IPPool that asks for a model."""

    field: str
    mode: str
    """``Always`` or ``CrossSubnet``."""
    model: str


def wishes(pool: IPPool) -> tuple[Wish, ...]:
    """The encapsulations that a pool asks for; none: packets as they are."""
    fields = (("ipipMode", pool.ipip_mode, IPIP.name), ("vxlanMode", pool.vxlan_mode, VXLAN.name))
    return tuple(Wish(name, mode, model) for name, mode, model in fields if mode != "Never")


def asked(pool: IPPool, served: Mapping[str, Model] = SERVED, encrypted: Set[int] = frozenset()) -> tuple[str, ...]:
    """Names of the models that packets to addresses of a pool may take, the one to be preferred first.

    ``encrypted``: families whose packets must not pass in the clear, whatever the pool says: then one model alone, and
    nothing comes in its place. Where several are named, one that does not work is given up for the next; a single one
    never is. Addresses of a pool whose model nobody serves, given before it asked for that, are reached as before.
    """
    if pool.cidr.version in encrypted and ENCRYPTS in served:
        return (ENCRYPTS,)
    if pool.model == "auto":
        return tuple(name for name in AUTO[pool.cidr.version] if name in served)
    for wish in wishes(pool):
        if wish.model in served:
            return (HOST_GW.name, wish.model) if wish.mode == "CrossSubnet" else (wish.model,)
    return (HOST_GW.name,)


def models_of(
    pools: Iterable[IPPool], served: Mapping[str, Model] = SERVED, encrypted: Set[int] = frozenset()
) -> tuple[Model, ...]:
    """The models that packets between pods with addresses of these pools may take."""
    names = {name for pool in pools for name in asked(pool, served, encrypted)}
    return tuple(model for name, model in served.items() if name in names)


def pod_mtu(uplinks: Iterable[int], models: Iterable[Model], settings: ModelSettings = NOTHING_SET) -> int:
    """The MTU of a pod's link on a node whose uplinks have these MTUs, where packets may take any of ``models``, and a
    person allows no larger ones than ``settings`` say.
    """
    uplink = min(uplinks, default=USUAL_MTU)
    fit = (
        min(uplink - added, settings.most_mtu(model.name, family) or MOST_MTU)
        for model in models
        for family, added in model.overhead.items()
    )
    return max(LEAST_MTU, min(min(fit, default=uplink), MOST_MTU))
