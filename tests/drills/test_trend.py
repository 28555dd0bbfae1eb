"""The trend finds what it is there to find: a judge of leaks that cannot say yes would be none."""

from __future__ import annotations

import random

import pytest

from tests.drills.trend import HOUR, Sample, Series, slope

STEP = 20.0


def series(values: list[float], every: int = 0) -> Series:
    """Looks every ``STEP`` seconds; a new process after each ``every`` looks, where that is given."""
    made = Series()
    for number, value in enumerate(values):
        process = (number // every + 1, 0) if every else (1, 0)
        made.samples.append(Sample(at=number * STEP, process=process, value=value))
    return made


def noisy(hourly: float, looks: int, seed: int, width: float = 0.3) -> list[float]:
    chosen = random.Random(seed)
    return [60 + hourly * number * STEP / HOUR + chosen.gauss(0, width) for number in range(looks)]


def test_a_straight_rise_has_its_own_slope() -> None:
    found = slope([(number * 60.0, 5 + number * 0.1) for number in range(20)])
    assert found.estimate == pytest.approx(6.0)
    assert found.least == pytest.approx(6.0)
    assert found.most == pytest.approx(6.0)


def test_the_interval_holds_the_true_slope_as_often_as_it_says() -> None:
    within = 0
    for seed in range(300):
        found = slope([(number * STEP, value) for number, value in enumerate(noisy(3.0, 30, seed))])
        within += found.least <= 3.0 <= found.most
    assert 0.92 <= within / 300 <= 0.98


@pytest.mark.parametrize("seed", range(8))
def test_a_leak_of_two_an_hour_is_found_beneath_noise_and_a_level_is_not(seed: int) -> None:
    assert series(noisy(2.0, 180, seed)).trend(60).grows(1.0)
    assert not series(noisy(0.0, 180, seed)).trend(60).grows(1.0)
    assert not series(noisy(0.4, 180, seed)).trend(60).grows(1.0)


def test_outliers_move_nothing() -> None:
    values = noisy(0.0, 180, 1)
    for number in range(0, 180, 6):
        values[number] += 40
    assert not series(values).trend(60).grows(1.0)


def test_in_minutes_the_limit_is_what_an_hour_may_add() -> None:
    assert not series([60 + number * 0.02 for number in range(18)]).trend(60).grows(1.0)
    assert series([60 + number * 0.2 for number in range(18)]).trend(60).grows(1.0)


def test_a_process_that_ends_takes_its_growth_along() -> None:
    within = [60 + number % 10 * 0.5 for number in range(180)]
    trend = series(within, every=10).trend(60)
    assert trend.incarnations == 18
    assert len(trend.points) == 18
    assert not trend.grows(1.0)


def test_what_each_process_finds_more_of_is_found() -> None:
    inherited = [60 + number // 10 * 0.2 + number % 10 * 0.5 for number in range(180)]
    assert series(inherited, every=10).trend(60).grows(1.0)


def test_processes_that_never_grow_old_enough_have_no_slope() -> None:
    trend = series([60.0] * 40, every=2).trend(60)
    assert trend.slope is None
    assert "too few" in str(trend)
    assert not trend.grows(1.0)


def test_one_moment_has_no_slope() -> None:
    with pytest.raises(ValueError, match="two points"):
        slope([(1.0, 2.0), (1.0, 3.0)])
