"""What is read off the rounds of the models: figures of the ways that were measured, ratios, and targets met or not."""

from __future__ import annotations

import pytest

from bench.first.figures import Summary
from bench.models.report import (
    FIGURES,
    HOST_GW,
    KERNEL,
    KERNEL_VXLAN,
    PACKETS,
    ROUND_TRIP,
    THROUGHPUT,
    VXLAN,
    Target,
    report,
    values,
)


def took(*microseconds: float) -> list[Summary]:
    return [Summary(count=9, failed=0, seconds=1.0, p50_us=one, p99_us=one) for one in microseconds]


def rounds(**ways: tuple[float, ...]) -> dict[tuple[str, str, str], list[Summary]]:
    names = {"kernel": KERNEL, "flannel": KERNEL_VXLAN, "host_gw": HOST_GW, "vxlan": VXLAN}
    return {
        (names[way], figure.program, figure.verb): took(*microseconds)
        for way, microseconds in ways.items()
        for figure in FIGURES
    }


@pytest.mark.parametrize(
    ("figure", "bound", "ratio", "met"),
    [
        (ROUND_TRIP, 0.8, 0.8, "yes"),
        (ROUND_TRIP, 0.8, 0.81, "no"),
        (THROUGHPUT, 0.95, 0.95, "yes"),
        (THROUGHPUT, 0.95, 0.94, "no"),
        (PACKETS, 1.5, 1.6, "yes"),
        (PACKETS, None, 0.1, ""),
    ],
    ids=lambda value: getattr(value, "program", str(value)),
)
def test_a_target_is_met_on_its_side(figure: object, bound: float | None, ratio: float, met: str) -> None:
    target = Target(figure=figure, way=VXLAN, peer=KERNEL_VXLAN, bound=bound)  # type: ignore[arg-type]
    assert target.met(ratio) == met


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    said = report(rounds(flannel=(20.0, 40.0, 10.0), vxlan=(10.0, 30.0, 8.0)))
    line = next(one for one in said.splitlines() if one.startswith(f"| {ROUND_TRIP.name} | vxlan / kernel VXLAN"))
    assert line == f"| {ROUND_TRIP.name} | vxlan / kernel VXLAN | 0.75 [0.5-0.8] | 0.8 | ≤ 0.80 | yes |"


def test_what_was_not_measured_is_not_in_the_tables() -> None:
    said = report(rounds(kernel=(20.0,), host_gw=(18.0,)))
    assert "| figure | kernel routing | host-gw |" in said
    assert "host-gw / kernel routing" in said
    assert "vxlan" not in said
    assert values(rounds(kernel=(20.0,)), VXLAN, ROUND_TRIP) == []
