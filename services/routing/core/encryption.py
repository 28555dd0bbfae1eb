"""When this node has WireGuard, and what becomes of packets that are to be encrypted while they cannot be.

A family of pods' packets for which encryption is asked goes by WireGuard or not at all. From the first pass that knows
it, no other way is made for it, and its pools are prohibited beneath their routes (``core.models.wireguard``). Ways
that packets take as they are when encryption is asked for stay until WireGuard to that node is proved,
:data:`PLAIN_GRACE` seconds at most: so it is switched on under load, and still means what it says.

Nodes hear one after the other that it is no longer asked for, and who has not heard refuses what comes in the clear: so
each stays on WireGuard for :data:`STAYS` seconds more.

While FelixConfiguration is not known (the agent has just started), what the kernel says counts: a family with a
prohibited range was asked for when it was last known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import replace

from kit.models import ENCRYPTS
from kit.tunnels import METRIC
from kit.underlay import MOST_ADDRESSES, owners_of
from proto.net import Address
from services.routing.core.choice import Choice
from services.routing.core.fib import Kind, Snapshot, Uplink
from services.routing.core.mesh import Mesh
from services.routing.core.pairs import underlay_of
from services.routing.core.wireguard import Known, Wish

PLAIN_GRACE = 30.0
"""Seconds that packets may go on as they are after encryption was asked for."""


STAYS = 5.0
"""Seconds that a node goes on encrypting after it heard that nobody asks for it: longer than an object takes to all."""


def last_known(mesh: Mesh, kernel: Snapshot) -> Mesh:
    """With the families that must be encrypted as they were, where what is set is not known yet."""
    if mesh.settings_complete:
        return mesh
    kept = {route.destination.version for route in kernel.routes if route.is_ours and route.kind is Kind.PROHIBIT}
    return with_families(mesh, kept)


def staying(encrypted: Set[int], before: Set[int], until: Mapping[int, float], now: float) -> dict[int, float]:
    """Families that are encrypted here for a while yet, and until when. ``encrypted``: those that are asked for,
    ``before``: those that were at the last look.
    """
    ended = dict.fromkeys(before - encrypted, now + STAYS)
    return {family: end for family, end in {**until, **ended}.items() if end > now and family not in encrypted}


def with_families(mesh: Mesh, families: Iterable[int]) -> Mesh:
    """With these families encrypted, too."""
    settings = replace(mesh.settings, encrypted=mesh.settings.encrypted | set(families))
    return replace(mesh, settings=settings)


def asked_since(mesh: Mesh, before: Mapping[int, float], now: float) -> dict[int, float]:
    """Since when encryption of each family is asked for, of a clock that does not go back."""
    return {family: before.get(family, now) for family in mesh.settings.encrypted}


def withheld(choice: Choice, family: int, since: Mapping[int, float], now: float) -> Choice:
    """The choice of a pair, without a way on which packets of this family have gone in the clear for long enough."""
    plain = choice.path is not None and choice.path.model != ENCRYPTS
    if not plain or family not in since or choice.asked != (ENCRYPTS,) or now - since[family] < PLAIN_GRACE:
        return choice
    why = f"encryption is asked for since {PLAIN_GRACE:.0f} s, and WireGuard is not proved: {choice.why}"
    return replace(choice, path=None, state="none", why=why)


def wish_of(mesh: Mesh, kernel: Snapshot) -> Wish | None:
    """What the devices of WireGuard are to be; None where nobody asks for it and there are none. Those that are there
    keep their peers until they are taken away: other nodes may send by them yet.
    """
    links = tuple(uplink for uplink in kernel.uplinks if uplink.up)
    local = underlay_of(links, kernel.loopback) if links else ()
    there = any(one.tunnel is not None and one.tunnel.model == ENCRYPTS for one in kernel.devices)
    asked = any(ENCRYPTS in names for names in mesh.pools.values()) or mesh.settings.encrypted
    if not local or not (asked or there):
        return None
    known = Known(
        me=mesh.me,
        routes=mesh.routes,
        blocks=mesh.blocks,
        claims=mesh.claims,
        underlay=_underlay(mesh, (*links, kernel.loopback) if kernel.loopback is not None else links),
        families=frozenset(address.version for address in local),
        complete=mesh.whole,
        reported=mesh.reported,
    )
    return Wish(
        known=known,
        port=mesh.settings.wireguard_port,
        uplink_mtu=min(uplink.mtu for uplink in links),
        local=local,
        taken=_taken(mesh, kernel),
    )


def _underlay(mesh: Mesh, links: Collection[Uplink]) -> dict[str, set[Address]]:
    """Whose an address of the shared network is. A gateway, which holds nothing, has those that nobody else tells; what
    a gateway and a node both tell is neither's, since a stolen key may be either.
    """
    own = {interface.ip for uplink in links for interface in uplink.addresses}
    reported = {name: routes.underlay[:MOST_ADDRESSES] for name, routes in mesh.routes.items()}
    owners = owners_of(reported, mesh.blocks.values(), mesh.claims, {}, own=own, me=mesh.me)
    announced = Counter(address for addresses in reported.values() for address in set(addresses))
    holders = {block.node for block in mesh.blocks.values()} | {claim.node for claim in mesh.claims}
    found: dict[str, set[Address]] = {}
    for name, routes in mesh.routes.items():
        if routes.gateway and name not in holders:
            for address in reported[name]:
                owners.pop(address, None)
                if announced[address] == 1 and address not in own and not _is_pods(mesh, address):
                    found.setdefault(name, set()).add(address)
    for address, name in owners.items():
        found.setdefault(name, set()).add(address)
    return found


def _is_pods(mesh: Mesh, address: Address) -> bool:
    kept = any(claim.address == address for claim in mesh.claims)
    return kept or any(cidr.version == address.version and address in cidr for cidr in mesh.blocks)


def _taken(mesh: Mesh, kernel: Snapshot) -> dict[str, set[int]]:
    """The interfaces that routes to each node lead out by."""
    claimed = {claim.address: claim.node for claim in mesh.claims}
    found: dict[str, set[int]] = {}
    for route in kernel.routes:
        if route.is_ours and route.metric == METRIC and route.link:
            block = mesh.blocks.get(route.destination)
            name = block.node if block is not None else claimed.get(route.destination.network_address, "")
            found.setdefault(name, set()).add(route.link)
    return found
