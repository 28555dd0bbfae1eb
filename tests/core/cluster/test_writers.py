"""Who writes what no agent of ours does."""

from __future__ import annotations

from services.cluster.core.writers import accused, levels


def after(seconds: int, a_second: int, *, every: int = 10) -> dict[str, float]:
    level: dict[str, float] = {}
    for _ in range(seconds // every):
        level = levels(level, {"n1": a_second * every}, every)
    return level


def test_a_node_that_writes_all_it_has_at_once_is_not_accused() -> None:
    assert not accused(levels({}, {"n1": 8194 + 4}, 10.0), {})


def test_nor_one_whose_pods_come_and_go_for_an_hour() -> None:
    assert not accused(after(3600, 90), {})


def test_one_that_never_ends_is_accused_within_half_a_minute_and_forgiven() -> None:
    level = after(30, 500)
    assert list(accused(level, {})) == ["n1"]
    for _ in range(30):
        level = levels(level, {}, 10.0)
    assert not level


def test_what_cannot_be_read_is_said_beside_it() -> None:
    said = accused({"n1": 20_000.0}, {"n1": 3, "n2": 1, "n3": 0})
    assert said == {
        "n1": "writes 3 values that cannot be read and writes its keys far more often than an agent does",
        "n2": "writes 1 values that cannot be read",
    }
