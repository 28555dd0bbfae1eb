"""The decision process: which of the paths of a prefix is the best, and which share its traffic (RFC 4271 9.1.2).

The steps are a table. Each compares all paths that are left and keeps those with the least value, so the outcome
depends on the set of paths and never on the order in which they came. MED is compared only between paths of one
neighbouring system, all of them at once (what others call deterministic MED). Paths that are left after the interior
cost are equal: as many of them as asked for are used together, in different systems too, and the steps after that only
say which of them is sent to peers that take one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from services.routing.core.bgp.communities import LLGR_STALE
from services.routing.core.bgp.rib.paths import DEFAULT_LOCAL_PREF, OWN, NextHop, Path
from services.routing.core.bgp.values import Asn, Segment, SegmentKind


def _local_preference(path: Path) -> int:
    preference = path.attributes.local_pref
    return -(DEFAULT_LOCAL_PREF if preference is None else preference)


def path_length(as_path: tuple[Segment, ...]) -> int:
    """Systems on the path: a set counts as one, a confederation's segments not at all (RFC 4271 9.1.2.2, RFC 5065)."""
    length = 0
    for segment in as_path:
        if segment.kind is SegmentKind.SEQUENCE:
            length += len(segment.numbers)
        elif segment.kind is SegmentKind.SET:
            length += 1
    return length


def _neighbour(path: Path) -> Asn:
    """The system that a path came from: the nearest of its AS path; 0 where it began in this one or with a set."""
    for segment in path.attributes.as_path:
        if segment.kind is SegmentKind.SEQUENCE:
            return segment.numbers[0]
        if segment.kind is SegmentKind.SET:
            return 0
    return 0


def _address(path: Path) -> int:
    return path.source.address.version << 128 | int(path.source.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One comparison: paths with the least value stay."""

    name: str
    value: Callable[[Path], int]
    within: Callable[[Path], Asn] | None = None
    """Only paths that agree in this are compared with each other; None: all are."""


STEPS = (
    Step(name="long-lived stale", value=lambda path: LLGR_STALE in path.attributes.communities),
    Step(name="local preference", value=_local_preference),
    Step(name="begun by this speaker", value=lambda path: path.source is not OWN),
    Step(name="length of the AS path", value=lambda path: path_length(path.attributes.as_path)),
    Step(name="origin", value=lambda path: path.attributes.origin),
    Step(name="MED", value=lambda path: path.attributes.med or 0, within=_neighbour),
    Step(name="external before internal", value=lambda path: not path.source.external),
    Step(name="interior cost", value=lambda path: path.hop.reach.cost if path.hop and path.hop.reach else 0),
)
"""What makes a path better. Those that are left after the last one are equal. RFC 9494 4.3 has the first."""

TIES = (
    Step(name="router id", value=lambda path: int(path.attributes.originator_id or path.source.router_id)),
    Step(name="length of the cluster list", value=lambda path: len(path.attributes.cluster_list)),
    Step(name="address of the peer", value=_address),
    Step(name="name of the peer", value=lambda path: int.from_bytes(path.source.name.encode())),
    Step(name="path identifier", value=lambda path: path.path_id),
)
"""What picks one of equal paths (RFC 4271 9.1.2.2 f and g, RFC 4456 9). No two paths of a prefix agree in all."""

SAME_NEXT_HOP = "a better path has the same next hop"
BEYOND = "enough equal paths are used"


def _left(step: Step, paths: list[Path]) -> list[Path]:
    if step.within is None:
        values = [step.value(path) for path in paths]
        least = min(values)
        return [path for path, value in zip(paths, values, strict=True) if value == least]
    best: dict[Asn, int] = {}
    for path in paths:
        group, value = step.within(path), step.value(path)
        best[group] = min(value, best.get(group, value))
    return [path for path in paths if step.value(path) == best[step.within(path)]]


def _tie(path: Path) -> tuple[int, ...]:
    return tuple(step.value(path) for step in TIES)


def choose(paths: Sequence[Path], most: int) -> tuple[Path, ...]:
    """The best path, then its equals up to ``most`` altogether, each with a next hop of its own.

    Empty where no path's next hop is reached. ``paths`` are those that import policy accepted.
    """
    left = [path for path in paths if path.reachable]
    for step in STEPS:
        if len(left) < 2:
            return tuple(left)
        left = _left(step, left)
    left.sort(key=_tie)
    used: dict[NextHop | None, Path] = {}
    for path in left:
        used.setdefault(path.hop, path)
        if len(used) == most:
            break
    return tuple(used.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a path fared."""

    path: Path
    used: bool
    """It is the best one, or carries a part of its traffic."""
    lost_at: str
    """The step at which a better path was preferred, or why it was not considered; empty: the best path."""


def explain(paths: Iterable[Path], most: int) -> tuple[Standing, ...]:
    """How each path fared, best first; rejected ones may be among them."""
    paths = tuple(paths)
    chosen = choose([path for path in paths if path.rejection is None], most)
    lost: list[tuple[int, Path, str]] = []
    left: list[Path] = []
    for path in paths:
        if path.rejection is not None:
            lost.append((len(STEPS) + 2, path, path.rejection.value))
        elif not path.reachable:
            lost.append((len(STEPS) + 1, path, "its next hop is not reached"))
        else:
            left.append(path)
    for number, step in enumerate(STEPS):
        kept = _left(step, left) if left else []
        lost += [(len(STEPS) - number, path, step.name) for path in left if path not in kept]
        left = kept
    left.sort(key=_tie)
    ranked = [Standing(path=path, used=path in chosen, lost_at=_lost_tie(path, left, chosen)) for path in left]
    lost.sort(key=lambda entry: (entry[0], _tie(entry[1])))
    return (*ranked, *(Standing(path=path, used=False, lost_at=step) for _, path, step in lost))


def _lost_tie(path: Path, equals: list[Path], chosen: tuple[Path, ...]) -> str:
    """At which step one of equal paths came behind the best one, or why it is not even used beside it."""
    best = equals[0]
    if path is best:
        return ""
    if path not in chosen:
        return SAME_NEXT_HOP if any(path.hop is one.hop for one in chosen) else BEYOND
    return next(step.name for step in TIES if step.value(path) != step.value(best))
