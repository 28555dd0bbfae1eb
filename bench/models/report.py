"""What is read off the rounds: a table of figures, and one of ratios with their targets. Pure.

A ratio is the median over the rounds of (one way / another), both measured in that round on the same CPU, with the
lowest and highest round beside it. Where a machine's own speed changes between two measurements of a round, what each
way took in its best round says more: that ratio stands beside.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.first.datapath import QUESTIONS, Question
from bench.first.figures import Summary, compare, table

KERNEL, KERNEL_VXLAN = "kernel routing", "kernel VXLAN"
HOST_GW, VXLAN, IPIP, WIREGUARD = "host-gw", "vxlan", "ipip", "wireguard"
FLOORS = {model: f"{model} floor" for model in (HOST_GW, VXLAN, IPIP)}
"""Programs that decide nothing: what the best ones of a model come near to."""
WAYS = (KERNEL, KERNEL_VXLAN, HOST_GW, VXLAN, IPIP, WIREGUARD, *FLOORS.values())
ROUND_TRIP, CONNECT, THROUGHPUT, DATAGRAMS, PACKETS = QUESTIONS[0], QUESTIONS[2], *QUESTIONS[4:]
FIGURES = (ROUND_TRIP, CONNECT, THROUGHPUT, DATAGRAMS, PACKETS)


def figures_of(way: str) -> tuple[Question, ...]:
    """What is measured of a way. What has a process on its path loses frames that nobody paces by the answer."""
    return tuple(figure for figure in FIGURES if figure is not PACKETS or way != WIREGUARD)


Results = Mapping[tuple[str, str, str], Sequence[Summary]]
"""(Way, program, verb) → one result a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound of one way's figure by another's."""

    figure: Question
    way: str
    peer: str
    bound: float | None = None
    """None: told, not judged."""

    @property
    def at_most(self) -> bool:
        """Whether less is better."""
        return self.figure in (ROUND_TRIP, CONNECT)

    def met(self, ratio: float) -> str:
        """`yes`, `no`, or nothing where there is no target."""
        if self.bound is None:
            return ""
        return "yes" if (ratio <= self.bound if self.at_most else ratio >= self.bound) else "no"

    @property
    def text(self) -> str:
        """`≤ 0.80`."""
        return "–" if self.bound is None else f"{'≤' if self.at_most else '≥'} {self.bound:.2f}"


TARGETS = (
    *(Target(figure=ROUND_TRIP, way=way, peer=KERNEL_VXLAN, bound=0.80) for way in (VXLAN, IPIP)),
    *(Target(figure=ROUND_TRIP, way=way, peer=HOST_GW, bound=1.08) for way in (VXLAN, IPIP)),
    *(Target(figure=CONNECT, way=way, peer=KERNEL_VXLAN) for way in (VXLAN, IPIP)),
    *(Target(figure=THROUGHPUT, way=way, peer=HOST_GW, bound=0.95) for way in (VXLAN, IPIP)),
    *(Target(figure=THROUGHPUT, way=way, peer=KERNEL_VXLAN) for way in (VXLAN, IPIP)),
    *(Target(figure=PACKETS, way=way, peer=KERNEL_VXLAN, bound=1.5) for way in (VXLAN, IPIP)),
    Target(figure=ROUND_TRIP, way=HOST_GW, peer=KERNEL, bound=0.95),
    Target(figure=PACKETS, way=HOST_GW, peer=KERNEL, bound=1.2),
    *(Target(figure=figure, way=WIREGUARD, peer=KERNEL_VXLAN) for figure in figures_of(WIREGUARD)),
    *(Target(figure=ROUND_TRIP, way=FLOORS[way], peer=KERNEL_VXLAN) for way in (VXLAN, IPIP)),
    *(Target(figure=ROUND_TRIP, way=FLOORS[way], peer=HOST_GW) for way in (VXLAN, IPIP)),
    *(Target(figure=THROUGHPUT, way=FLOORS[way], peer=HOST_GW) for way in (VXLAN, IPIP)),
    *(Target(figure=PACKETS, way=FLOORS[way], peer=KERNEL_VXLAN) for way in (VXLAN, IPIP)),
    *(Target(figure=figure, way=FLOORS[HOST_GW], peer=KERNEL) for figure in (ROUND_TRIP, THROUGHPUT, PACKETS)),
)


def values(results: Results, way: str, figure: Question) -> list[float]:
    """One value a round; none where the way was not measured."""
    return [figure.read(one) for one in results.get((way, figure.program, figure.verb), ())]


def _figures(results: Results, ways: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for figure in FIGURES:
        found = (values(results, way, figure) for way in ways)
        medians = (f"{statistics.median(one):.{figure.decimals}f}" if one else "–" for one in found)
        yield f"{figure.name}, {figure.unit}", *medians


def _ratios(results: Results, ways: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for target in TARGETS:
        if target.way in ways and target.peer in ways:
            found = compare(values(results, target.way, target.figure), values(results, target.peer, target.figure))
            best = of_best_rounds(target, results)
            judged = target.met(found.ratio)
            yield target.figure.name, f"{target.way} / {target.peer}", found.text, f"{best:.3g}", target.text, judged


def of_best_rounds(target: Target, results: Results) -> float:
    """The best round of the one way by the best of the other."""
    best = min if target.at_most else max
    way, peer = (best(values(results, name, target.figure)) for name in (target.way, target.peer))
    return way / peer


def report(results: Results) -> str:
    """Both tables, of the ways that were measured."""
    ways = [way for way in WAYS if any(key[0] == way for key in results)]
    return "\n\n".join(
        (
            table(("figure", *ways), list(_figures(results, ways))),
            table(
                ("figure", "ways", "ratio [of rounds]", "of best rounds", "target", "met"), list(_ratios(results, ways))
            ),
        )
    )
