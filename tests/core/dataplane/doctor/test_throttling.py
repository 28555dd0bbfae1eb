"""CPU limits that hold up CoreDNS or a Service: what the counters rose by between two looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.dataplane.core.doctor.throttling import CODES, Periods, check, parse

STAT = "usage_usec 5\nnr_periods 100\nnr_throttled 40\nthrottled_usec 7\nnr_bursts 0\n"


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        (STAT, Periods(100, 40)),
        ("usage_usec 5\n", None),
        ("", None),
        ("nr_periods x\nnr_throttled 1\n", None),
        ("a b c\n", None),
    ],
)
def test_counters_of_a_cgroup(text: str, counted: Periods | None) -> None:
    assert parse(text) == counted


@pytest.mark.parametrize(
    ("before", "now", "is_throttled"),
    [
        (Periods(100, 40), Periods(120, 55), True),
        (Periods(100, 40), Periods(120, 40), False),
        (Periods(100, 40), Periods(120, 42), False),
        (Periods(0, 0), Periods(1000, 50), False),
        (Periods(100, 40), Periods(3, 3), False),
        (None, Periods(120, 55), False),
    ],
)
def test_a_pod_is_throttled_while_it_is_looked_at(before: Periods | None, now: Periods, is_throttled: bool) -> None:
    earlier = {} if before is None else {"kube-system/dns": before}
    for dns, code in zip((True, False), CODES, strict=True):
        found = list(check("n1", "kube-system/kube-dns", earlier, {"kube-system/dns": now}, dns=dns))
        assert [one.code for one in found] == ([code] if is_throttled else [])
        assert all("15 of 20 periods" in one.cause for one in found)


def test_every_code_has_a_page() -> None:
    faults = Path(__file__).parents[4] / "docs" / "faults"
    assert [code for code in CODES if not (faults / f"{code}.md").is_file()] == []
