"""Which tests of the suite run beside which, and what a worker that is free takes next (tests/workers.py)."""

from __future__ import annotations

import fcntl
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from tests import workers
from tests.workers import LAB, LOCKS, Kind, MachineLock, computes, following, latest_load, load, order, unit

BUSY = workers.PROCESSORS
COMPUTING = "tests/core/test_workers.py"
WAITING = "tests/netns/routing/test_routes.py"
UNDISTURBED = "tests/drills/test_kills.py::test_all_are_killed_at_once"
OF_THE_LAB = "tests/journeys/test_fields.py::test_each"


def together(one: Kind, other: Kind) -> bool:
    """Whether tests of two kinds may run at once."""
    shared = LOCKS[one].keys() & LOCKS[other].keys()
    return all(LOCKS[one][name] == LOCKS[other][name] == fcntl.LOCK_SH for name in shared)


@pytest.mark.parametrize(
    ("one", "beside"),
    [
        (Kind.ALONE, set()),
        (Kind.UNCONTENDED, {Kind.WAITS}),
        (Kind.COMPUTES, {Kind.COMPUTES, Kind.WAITS}),
        (Kind.WAITS, {Kind.UNCONTENDED, Kind.COMPUTES, Kind.WAITS}),
    ],
)
def test_who_runs_beside_whom(one: Kind, beside: set[Kind]) -> None:
    assert {other for other in Kind if together(one, other)} == beside


def test_all_take_their_locks_in_one_order() -> None:
    names = list(workers.ENTRANCES)
    assert all(sorted(locks, key=names.index, reverse=True) == list(locks) for locks in LOCKS.values())


def _free(file: IO[str], how: int) -> bool:
    """Whether a lock is had at once."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("held", Kind)
@pytest.mark.parametrize("wanted", Kind)
def test_locks_of_two_workers_do_as_the_table_says(tmp_path: Path, held: Kind, wanted: Kind) -> None:
    first = MachineLock(tmp_path)
    first.take(held)
    with ExitStack() as stack:
        files = {name: stack.enter_context((tmp_path / name).open("w")) for name in LOCKS[wanted]}
        refused = not all(_free(files[name], how) for name, how in LOCKS[wanted].items())
    assert refused != together(held, wanted)
    first.release()
    second = MachineLock(tmp_path)
    second.take(Kind.ALONE)
    assert second.held is Kind.ALONE


def test_a_worker_beside_busy_processors_takes_what_waits() -> None:
    assert following([COMPUTING, WAITING], BUSY) == WAITING
    assert following([COMPUTING, WAITING], BUSY - 1) == COMPUTING
    assert following([WAITING, COMPUTING], BUSY - 1) == COMPUTING


def test_what_is_left_is_taken_even_if_it_does_not_fit() -> None:
    assert following([COMPUTING], BUSY) == COMPUTING
    assert following([WAITING], 0) == WAITING


def test_the_lab_takes_all_processors_until_its_undisturbed_tests_are_over() -> None:
    assert load(LAB, [OF_THE_LAB, UNDISTURBED]) == BUSY
    assert load(LAB, [OF_THE_LAB]) == 1
    assert latest_load({LAB: {UNDISTURBED: True, OF_THE_LAB: False}}) == 1


def test_a_worker_is_as_busy_as_what_it_was_given_last() -> None:
    assert latest_load({}) == 0
    assert latest_load({COMPUTING: {f"{COMPUTING}::a": True}, WAITING: {f"{WAITING}::a": False}}) == 0
    assert latest_load({WAITING: {f"{WAITING}::a": True}, COMPUTING: {f"{COMPUTING}::a": False}}) == 1
    assert latest_load({COMPUTING: {f"{COMPUTING}::a": True}}) == 0


def test_the_lab_comes_first_and_in_it_what_is_undisturbed() -> None:
    drill, journey = (test.partition("::")[0] for test in (UNDISTURBED, OF_THE_LAB))
    assert unit(drill) == unit(journey) == LAB
    assert sorted([COMPUTING, WAITING, journey, drill], key=order) == [drill, journey, WAITING, COMPUTING]


def test_named_folders_and_files_are_there() -> None:
    """A file that moves is not quietly begun last, or taken for one that computes."""
    assert all((workers.ROOT / "tests" / name).exists() for name in workers.FIRST)
    assert all((workers.ROOT / name).exists() for name in (*workers.WAITING, *workers.COMPUTING))
    assert all(computes(name) and name.startswith(workers.WAITING) for name in workers.COMPUTING)
