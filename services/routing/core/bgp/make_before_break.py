"""Make before break of the node-to-node mesh: its sessions end when other ways carry what they carried.

The mesh goes off when ``nodeToNodeMeshEnabled`` says so, and for a node that becomes a route reflector. A session that
was held in it and is not asked for any more stays until each prefix that it brought is learnt from a peer that stays,
lies in one that is, or has a route of the pair of nodes itself, :data:`DEADLINE` seconds at most. Meanwhile any other
path is preferred to its paths, by whoever is sent them too (``route_policies.passed_over``).

The other node decides the same for itself, and may need more time for it. So this one ends the session as for a
restart, and the other keeps the routes for the restart time (RFC 4724). Where that (``nodeMeshMaxRestartTime``) is
shorter than :data:`DEADLINE`, down to 0, the session itself stays for the rest, though this node needs it no longer.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from kit.model_settings import DEFAULT
from proto.net import Network
from services.routing.core.bgp.rib.paths import OWN
from services.routing.core.bgp.rib.tables import Tables
from services.routing.core.bgp.values import Family, Prefix, covering, network_of
from services.routing.core.faults import Fault

DEADLINE = 120.0
"""Seconds that a session stays at most: as long as the other node keeps its routes without it, where nothing is set."""
PATIENCE = 10.0
"""Seconds after which a person is told: peers need some to send their tables."""
REPORTED_FOR = 600.0
"""Seconds for which a person is told that a session has ended without."""
_REMEDY = "see with `airmesh bgp` that the nodes' BGPPeers are up and pass the other nodes' routes on"
_ABOUT = ("BGPConfiguration", DEFAULT)


@dataclass(frozen=True, slots=True)
class Lacking:
    """What no other way leads to."""

    network: Network | None
    """None: nothing, and the session stays for the other node, which would keep no routes without it."""
    since: float
    """Seconds of a clock that does not go back."""

    @property
    def needed(self) -> bool:
        """It is this node that needs the session."""
        return self.network is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Sessions of the mesh that are not asked for any more. Made without arguments: there are none."""

    staying: Mapping[str, Lacking] = field(default_factory=lambda: MappingProxyType({}))
    """Those that stay, by name of the peer."""
    broken: Mapping[str, Lacking] = field(default_factory=lambda: MappingProxyType({}))
    """Those that have ended at the deadline, and when."""

    def after(self, going: Mapping[str, float], tables: Tables, routed: Container[Network], now: float) -> Handover:
        """What becomes of them. ``going``: those that are held and not asked for, and the seconds for which the other
        node keeps the routes if the session ends; ``routed``: prefixes that the pairs' own routes lead to.
        """
        broken = {name: one for name, one in self.broken.items() if now - one.since < REPORTED_FOR}
        staying: dict[str, Lacking] = {}
        for name, kept in sorted(going.items()):
            network = next(_lacking(tables, name, going, routed), None)
            since = self.staying[name].since if name in self.staying else now
            if now - since < DEADLINE - (kept if network is None else 0):
                staying[name] = Lacking(network, since)
            elif network is not None:
                broken[name] = Lacking(network, now)
        return Handover(staying=staying, broken=broken)

    def faults(self, now: float) -> tuple[Fault, ...]:
        """What a person should know: the first of those that wait, and of those that have waited in vain."""
        found = []
        lacking = ((name, one) for name, one in self.staying.items() if one.needed)
        waiting = [name for name, one in lacking if now - one.since >= PATIENCE]
        for name in waiting[:1]:
            what = f"the session {name} stays for {DEADLINE:.0f} s at most though the node mesh is off"
            found.append(
                Fault(f"{what}, as no other peer leads to {self.staying[name].network}", _REMEDY, about=_ABOUT)
            )
        for name in sorted(self.broken)[:1]:
            what = f"the node mesh is off, and nothing but its session {name} led to {self.broken[name].network}"
            found.append(Fault(what, _REMEDY, about=_ABOUT))
        return tuple(found)


def _lacking(tables: Tables, name: str, going: Collection[str], routed: Container[Network]) -> Iterator[Network]:
    """Prefixes that a peer has brought and that only peers which go lead to."""
    for family in Family:
        for prefix, path in tables.received(name, family):
            if path.rejection is None and path.reachable and not _is_learnt(tables, family, prefix, going):
                network = network_of(family, prefix)
                if network not in routed:
                    yield network


def _is_learnt(tables: Tables, family: Family, prefix: Prefix, going: Collection[str]) -> bool:
    """A peer that stays leads there, by the prefix or by one that is in use and holds it, the default route excepted.
    A prefix of this node's own needs nobody; one of another node in it does.
    """
    paths = tables.accepted(family).get(prefix, ())
    if any(path.source.name not in going and path.reachable for path in paths):
        return True
    chosen = tables.chosen(family)
    wider = (chosen[one][0] for one in islice(covering(prefix), 1, None) if one[0] and chosen.get(one))
    return any(best.source is not OWN and best.source.name not in going for best in wider)
