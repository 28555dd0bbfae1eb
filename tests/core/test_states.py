"""State lists themselves: a script leads where its states say, and a core with a memory of the order is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from tests.core.states import (
    DELIVERIES,
    EXPANDERS,
    Driver,
    Flush,
    Put,
    Settle,
    difference,
    every_order,
    follow,
    kind_of,
    run,
    script,
)

Key = tuple[str, str]
ONE: dict[Key, int] = {("node", "a"): 1, ("pod", "a"): 1, ("pod", "b"): 2}
OTHER: dict[Key, int] = {("node", "a"): 1, ("node", "b"): 2, ("pod", "b"): 3, ("pod", "c"): 4}
LAST: dict[Key, int] = {("node", "b"): 2}
STATES = [ONE, OTHER, LAST]


class Sums(Driver[Key, int]):
    """The sum of the values of each kind: a core that is right."""

    def __init__(self) -> None:
        self.held: dict[Key, int] = {}
        self.sums: dict[str, int] = {}

    def put(self, key: Key, value: int | None) -> None:
        self.sums[key[0]] = self.sums.get(key[0], 0) - self.held.pop(key, 0) + (value or 0)
        if value is not None:
            self.held[key] = value

    def settle(self) -> object:
        return {kind: total for kind, total in self.sums.items() if total}


class CountsRepeats(Sums):
    """Adds a value again that is there already."""

    def put(self, key: Key, value: int | None) -> None:
        if value is not None and self.held.get(key) == value:
            self.held.pop(key)
        super().put(key, value)


class ForgetsNothing(Sums):
    """Keeps what goes."""

    def put(self, key: Key, value: int | None) -> None:
        if value is not None:
            super().put(key, value)


class WantsNodesFirst(Sums):
    """Loses pods that come while no node is there."""

    def put(self, key: Key, value: int | None) -> None:
        if value is None or key[0] == "node" or any(kind == "node" for kind, _ in self.held):
            super().put(key, value)


class FreezesAtAFlush(Sums):
    """Does what it is told before the first flush alone."""

    frozen = False

    def put(self, key: Key, value: int | None) -> None:
        if not self.frozen:
            super().put(key, value)

    def flush(self) -> None:
        self.frozen = True


class TripsOverStrangers(Sums):
    """Cannot bear that what never was goes."""

    def put(self, key: Key, value: int | None) -> None:
        if value is None:
            self.held[key]
        super().put(key, value)


class Overdraws(Sums):
    """Ends right, but on its way says more than there is."""

    most: ClassVar[int] = 7

    def check(self, present: object) -> None:
        assert sum(self.sums.values()) <= self.most


def oracle(state: dict[Key, int]) -> object:
    kinds = {kind for kind, _ in state}
    return {kind: sum(value for key, value in state.items() if key[0] == kind) for kind in kinds}


@every_order(seeds=12)
def test_a_core_that_is_right_passes(expander: str, seed: int) -> None:
    follow(Sums, oracle, STATES, expander, seed)


@pytest.mark.parametrize(
    "core", [CountsRepeats, ForgetsNothing, WantsNodesFirst, FreezesAtAFlush, TripsOverStrangers, Overdraws]
)
def test_a_core_that_remembers_more_than_the_state_is_caught_within_a_few_seeds(core: Callable[[], Sums]) -> None:
    caught = [(name, seed) for name in EXPANDERS for seed in range(12) if not passes(core, name, seed)]
    assert len(caught) >= 3


def passes(core: Callable[[], Sums], expander: str, seed: int) -> bool:
    try:
        follow(core, oracle, STATES, expander, seed)
    except AssertionError:
        return False
    return True


def test_what_is_shown_is_cut_down_to_the_steps_that_matter() -> None:
    with pytest.raises(AssertionError) as caught:
        follow(ForgetsNothing, oracle, STATES, "empty between", 4)
    reported = str(caught.value)
    assert "empty between, seed 4" in reported
    assert "after 3 steps" in reported, "a value that comes, the same that goes, and the settling"
    assert "core   " in reported
    assert "oracle 'absent'" in reported


def test_what_was_raised_stays_the_cause() -> None:
    with pytest.raises(AssertionError, match="after 1 steps") as caught:
        follow(TripsOverStrangers, oracle, STATES, "in order", 3)
    assert isinstance(caught.value.__cause__, KeyError)


class Recorder(Driver[Key, int]):
    def __init__(self) -> None:
        self.held: dict[Key, int] = {}
        self.settled: list[dict[Key, int]] = []

    def put(self, key: Key, value: int | None) -> None:
        if value is None:
            self.held.pop(key, None)
        else:
            self.held[key] = value

    def settle(self) -> object:
        self.settled.append(dict(self.held))
        return self.held


@pytest.mark.parametrize(
    ("expander", "passed"),
    [
        ("in order", [ONE, OTHER, LAST]),
        ("reversed", [LAST, OTHER, ONE]),
        ("empty between", [ONE, {}, OTHER, {}, LAST, {}]),
        ("twice over", [ONE, ONE, OTHER, OTHER, LAST, LAST, ONE, OTHER, LAST]),
        ("there and back", [ONE, ONE, OTHER, ONE, LAST, ONE]),
        ("only the last", [LAST]),
    ],
)
@pytest.mark.parametrize("seed", range(12))
def test_a_script_settles_in_each_state_whatever_passes_between(
    expander: str, passed: list[dict[Key, int]], seed: int
) -> None:
    recorder = Recorder()
    run(lambda: recorder, lambda state: state, script(STATES, expander, seed))
    assert recorder.settled == passed


def test_a_seed_gives_the_same_script_and_another_one_another() -> None:
    assert script(STATES, "shuffled", 3) == script(STATES, "shuffled", 3)
    assert len({tuple(script(STATES, "in order", seed)) for seed in range(12)}) == 12


def test_scripts_have_all_that_a_view_may_bring() -> None:
    repeated = gone_again = detours = flushes = 0
    for seed in range(24):
        held: dict[Key, int] = {}
        for step in script(STATES, "in order", seed):
            flushes += isinstance(step, Flush)
            if isinstance(step, Put):
                repeated += step.value is not None and held.get(step.key) == step.value
                gone_again += step.value is None and step.key not in held
                detours += step == Put(("pod", "c"), 4) and ("pod", "c") in ONE | held
                if step.value is None:
                    held.pop(step.key, None)
                else:
                    held[step.key] = step.value
    assert min(repeated, gone_again, detours, flushes) > 0


def orders(delivery: str) -> list[list[bool]]:
    """For each of some seeds of that delivery: of its events, in their order, whether they bring a value."""
    seeds = range(list(DELIVERIES).index(delivery), 60, len(DELIVERIES))
    scripts = [script([ONE, OTHER], "in order", seed) for seed in seeds]
    found = []
    for steps in scripts:
        settles = [at for at, step in enumerate(steps) if isinstance(step, Settle)]
        between = [step for step in steps[settles[0] : settles[1]] if isinstance(step, Put)]
        wanted = difference(ONE, OTHER)
        if len(between) == len(wanted):
            found.append([step.value is not None for step in between])
    return found


def test_removals_come_first_or_last() -> None:
    assert orders("removals first")
    assert all(order == sorted(order) for order in orders("removals first"))
    assert orders("removals last")
    assert all(order == sorted(order, reverse=True) for order in orders("removals last"))


@pytest.mark.parametrize(
    ("key", "kind"), [(("pod", "a"), "pod"), ("pod.n1.x.a", "pod"), ("pods", "pods"), (7, "int"), ((), "tuple")]
)
def test_the_kind_of_a_key(key: object, kind: object) -> None:
    assert kind_of(key) == kind
