"""What a BGP speaker's tables hold, as a person is shown it: paths with what became of each, and how many there are.

An answer is bounded by paths and by bytes, and so is the work for it: of a whole table the first paths in its own order
are looked at, of a prefix those that hold it, by their lengths. Only where peers send several paths of a prefix
(RFC 7911) are all paths of such a peer looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from proto.bgp import (
    MAX_PATHS,
    MAX_PATHS_BYTES,
    BgpPath,
    BgpRoutes,
    BgpRoutesRequest,
    PrefixCount,
    RoutesTable,
    SessionState,
    is_named,
)
from proto.bgp import Standing as StandingName
from proto.net import Network
from services.routing.core.bgp import text
from services.routing.core.bgp.rib import decision
from services.routing.core.bgp.rib.decision import Standing
from services.routing.core.bgp.rib.paths import Path
from services.routing.core.bgp.rib.tables import Counted, Tables
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import (
    Attributes,
    Family,
    Origin,
    Prefix,
    covering,
    network_of,
    prefix_of,
)

STATES: dict[State, SessionState] = {
    State.IDLE: "Idle",
    State.CONNECT: "Connect",
    State.ACTIVE: "Active",
    State.OPEN_SENT: "OpenSent",
    State.OPEN_CONFIRM: "OpenConfirm",
    State.ESTABLISHED: "Established",
}
_ORIGINS: dict[Origin, Literal["igp", "egp", "incomplete"]] = {
    Origin.IGP: "igp",
    Origin.EGP: "egp",
    Origin.INCOMPLETE: "incomplete",
}
_STEPS = frozenset(step.name for step in (*decision.STEPS, *decision.TIES))
_PATH_BYTES = 320
"""Of a path without its texts: names of fields, addresses, numbers."""


def counts(tables: Tables, peer: str) -> tuple[PrefixCount, ...]:
    """How much was received from a peer and is sent to it, by family."""
    return tuple(
        PrefixCount(family=4 if family is Family.IPV4 else 6, received=one.received, sent=one.sent, stale=one.stale)
        for family, one in tables.count(peer).items()
    )


def routes(tables: Tables, asked: BgpRoutesRequest, node: str, peers: Iterable[str]) -> BgpRoutes:
    """The answer of a node to a question; ``peers``: the names of all."""
    named = sorted(peer for peer in peers if is_named(peer, asked.peer))
    paths: list[BgpPath] = []
    left_out, room = 0, MAX_PATHS_BYTES
    for family in Family:
        held = None
        if asked.prefix is not None:
            of, prefix = prefix_of(asked.prefix)
            held = tuple(covering(prefix)) if of is family else ()
        looked = _Look(tables, family, held)
        units, total = _UNITS[asked.table](looked, named)
        taken, room = _fitting(units, MAX_PATHS - len(paths), room)
        paths += [path for unit in taken for path in unit]
        left_out += total - len(taken)
    paths.sort(key=lambda path: (path.prefix.version, path.prefix.network_address.packed, path.prefix.prefixlen))
    return BgpRoutes(node=node, speaks=True, peers=len(named), paths=tuple(paths), left_out=left_out)


Unit = tuple[BgpPath, ...]
"""What is in an answer whole or not at all."""


def _fitting(units: Iterable[Unit], most: int, room: int) -> tuple[list[Unit], int]:
    """The first units that find room, and the room that is left; 0 once one found none."""
    taken: list[Unit] = []
    for unit in units:
        size = sum(map(_size, unit))
        if len(unit) > most or size > room:
            return taken, 0
        most, room = most - len(unit), room - size
        taken.append(unit)
    return taken, room


def _size(path: BgpPath) -> int:
    texts = (path.peer, path.why, path.as_path, *path.communities)
    return _PATH_BYTES + sum(2 + len(text) for text in texts)


@dataclass(frozen=True, slots=True)
class _Look:
    """The tables of one family, as a question asks for them."""

    tables: Tables
    family: Family
    held: tuple[Prefix, ...] | None
    """Only these prefixes; None: all."""
    known: dict[tuple[Path, ...], tuple[Standing, ...]] = field(default_factory=dict)
    """How sets of paths fared: those of many prefixes are the same."""

    def standings(self, prefix: Prefix) -> tuple[Standing, ...]:
        """How the paths to a prefix fared that policy accepted."""
        paths = self.tables.accepted(self.family).get(prefix, ())
        if paths not in self.known:
            self.known[paths] = self.tables.standings(self.family, prefix)
        return self.known[paths]

    def path(self, prefix: Prefix, standing: Standing, all_of: Sequence[Standing]) -> BgpPath:
        """A path that a peer sent, or one of this node's own."""
        path = standing.path
        return _path(
            network_of(self.family, prefix),
            path.source.name,
            _name(standing, all_of),
            _why(standing, all_of),
            path.attributes,
            path_id=path.path_id,
            stale=self.tables.is_stale(path, self.family, prefix),
        )


def _chosen(look: _Look, peers: Sequence[str]) -> tuple[Iterable[Unit], int]:
    """Each prefix with its paths; of prefixes that are asked about also those that policy rejected."""
    if look.held is None:
        accepted = look.tables.accepted(look.family)
        return (_unit(look, prefix, look.standings(prefix)) for prefix in accepted), len(accepted)
    rejected: dict[Prefix, list[Standing]] = {}
    for peer in peers:
        for prefix, path in look.tables.received(peer, look.family, look.held):
            if path.rejection is not None:
                rejected.setdefault(prefix, []).append(Standing(path=path, used=False, lost_at=path.rejection.value))
    of_prefixes = ((prefix, (*look.standings(prefix), *rejected.get(prefix, ()))) for prefix in look.held)
    units = [_unit(look, prefix, standings) for prefix, standings in of_prefixes if standings]
    return units, len(units)


def _unit(look: _Look, prefix: Prefix, standings: Sequence[Standing]) -> Unit:
    return tuple(look.path(prefix, one, standings) for one in standings)


def _received(look: _Look, peers: Sequence[str]) -> tuple[Iterable[Unit], int]:
    """Each path that a peer sent."""
    units = (
        (_learnt(look, prefix, path),)
        for peer in peers
        for prefix, path in look.tables.received(peer, look.family, look.held)
    )
    if look.held is not None:
        found = list(units)
        return found, len(found)
    return units, sum(counted.received for counted in _counted(look, peers))


def _learnt(look: _Look, prefix: Prefix, path: Path) -> BgpPath:
    if path.rejection is not None:
        rejected = Standing(path=path, used=False, lost_at=path.rejection.value)
        return look.path(prefix, rejected, (rejected,))
    standings = look.standings(prefix)
    return look.path(prefix, next(one for one in standings if one.path is path), standings)


def _sent(look: _Look, peers: Sequence[str]) -> tuple[Iterable[Unit], int]:
    """Each path that a peer is sent; of prefixes that are asked about also why it is sent none."""
    units = (
        (_path(network_of(look.family, prefix), peer, "sent", "", attributes, path_id=path_id),)
        for peer in peers
        for prefix, path_id, attributes in look.tables.sent(peer, look.family, look.held)
    )
    if look.held is not None:
        found = [*units, *_withheld(look, peers, look.held)]
        return found, len(found)
    return units, sum(counted.sent for counted in _counted(look, peers))


def _withheld(look: _Look, peers: Sequence[str], prefixes: Iterable[Prefix]) -> Iterator[Unit]:
    for prefix in prefixes:
        for peer in peers:
            why = look.tables.why_not_sent(peer, look.family, prefix)
            if why is not None:
                best = look.tables.chosen(look.family)[prefix][0]
                yield (_path(network_of(look.family, prefix), peer, "withheld", why.value, best.attributes),)


def _counted(look: _Look, peers: Sequence[str]) -> Iterator[Counted]:
    for peer in peers:
        if (counted := look.tables.count(peer).get(look.family)) is not None:
            yield counted


_UNITS: dict[RoutesTable, Callable[[_Look, Sequence[str]], tuple[Iterable[Unit], int]]] = {
    "chosen": _chosen,
    "received": _received,
    "sent": _sent,
}
"""By table: what an answer is made of, and how many of that there are."""


def _name(standing: Standing, all_of: Sequence[Standing]) -> StandingName:
    if standing.path.rejection is not None:
        return "rejected"
    if not standing.used:
        return "unused"
    return "best" if standing is all_of[0] else "used"


def _why(standing: Standing, all_of: Sequence[Standing]) -> str:
    """What decided, as a phrase."""
    if standing.used and standing.lost_at:
        return "as good as the best one: it shares the traffic"
    if standing.lost_at:
        return f"another is better by {standing.lost_at}" if standing.lost_at in _STEPS else standing.lost_at
    considered = [one for one in all_of[1:] if one.path.rejection is None and one.path.reachable]
    if not considered:
        return "no other path can be used" if len(all_of) > 1 else "the only path"
    by = considered[0].lost_at
    return f"better than others by {by}" if by in _STEPS else "as good as others, and the first of them"


def _path(
    network: Network,
    peer: str,
    standing: StandingName,
    why: str,
    attributes: Attributes,
    *,
    path_id: int = 0,
    stale: bool = False,
) -> BgpPath:
    return BgpPath(
        prefix=network,
        peer=peer,
        standing=standing,
        why=why,
        next_hop=attributes.next_hop,
        as_path=text.as_path(attributes.as_path),
        origin=_ORIGINS[attributes.origin],
        med=attributes.med,
        local_pref=attributes.local_pref,
        communities=(
            *map(text.community, attributes.communities),
            *map(text.large_community, attributes.large_communities),
        ),
        path_id=path_id,
        stale=stale,
    )
