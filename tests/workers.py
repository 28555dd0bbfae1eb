"""Workers of pytest-xdist (`pytest -n 4`): which files each runs, in which order, and which tests run beside which.

A plugin of pytest: `tests/conftest.py` brings its hooks in. It reads three marks:

- `lab`: all files with such tests are one unit, so one worker runs them, one after the other, in the one lab. They come
  first, since they are the longest unit and mostly wait.
- `alone`: the test looks at the whole machine, or measures what a process takes of it. While it runs, no other worker
  of this user runs a test, be it of another tree.
- `uncontended`: the test watches traffic or counts time, of which a processor that is never free makes something else.
  While it runs, other workers run only tests that mostly wait.

Files with tests of the last two kinds belong to the unit of the lab: a worker that waits for the lab's tests would wait
for long. Those with no other tests come first in it.

Every other file is a unit of its own, so that fixtures of a module are made once. A worker that is free takes the next;
what takes long comes before what does not, so that all end at about the same time. Beside what keeps all processors
busy a worker takes a file of tests that mostly wait, else one of those that compute. Without `-n` nothing of this
applies: one process runs all files in their alphabetical order.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Collection, Generator, Iterable, Mapping
from enum import Enum, auto
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS = os.cpu_count() or 1
LAB = "lab"
"""Name of the unit of all files that one worker runs in their order."""
FIRST = ("ship/", "house/test_types.py", "drills/", "netns/", "shell/", "bpf/", "core/", "house/", "golden/")
"""Below `tests/`: the order in which files are begun, those with long tests first."""
WAITING = ("tests/netns/", "tests/shell/")
"""Files whose tests mostly wait for timers, daemons and answers: a fifth of a processor and less, by measurement."""
COMPUTING = (
    "tests/netns/dataplane/datapath/",
    "tests/netns/routing/bgp/test_router_bfd.py",
    "tests/netns/routing/test_by_hand.py",
    "tests/shell/cli/",
)
"""Those among them that keep a processor busy."""
_MARKS = ("pytest.mark.lab", "pytest.mark.alone", "pytest.mark.uncontended")
_WHOLE = re.compile(r"^pytestmark = .*pytest\.mark\.(alone|uncontended)\b", re.MULTILINE)
_LOCK = pytest.StashKey["MachineLock"]()


class Kind(Enum):
    """What a test asks of the machine."""

    ALONE = auto()
    UNCONTENDED = auto()
    COMPUTES = auto()
    WAITS = auto()


LOCKS: Mapping[Kind, Mapping[str, int]] = {
    Kind.ALONE: {"machine": fcntl.LOCK_EX},
    Kind.UNCONTENDED: {"processors": fcntl.LOCK_EX, "machine": fcntl.LOCK_SH},
    Kind.COMPUTES: {"processors": fcntl.LOCK_SH, "machine": fcntl.LOCK_SH},
    Kind.WAITS: {"machine": fcntl.LOCK_SH},
}
"""What a test holds while it runs, in the order in which all take it, so that no two wait for each other."""
ENTRANCES = {"machine": "entrance", "processors": "processors-entrance"}
KEPT = (Kind.ALONE, Kind.UNCONTENDED)
"""Kinds whose locks stay until a test of another kind follows: to have them again takes as long as others' tests do."""


def file_of(nodeid: str) -> str:
    """The file of a test, as a path from the root."""
    return nodeid.partition("::")[0]


@cache
def _text(file: str) -> str:
    return (ROOT / file).read_text()


@cache
def unit(file: str) -> str:
    """The unit that a test file belongs to: `LAB`, or the file itself (its path from the root)."""
    return LAB if any(mark in _text(file) for mark in _MARKS) else file


@cache
def undisturbed(file: str) -> bool:
    """Whether all tests of a file are `alone` or `uncontended`."""
    return _WHOLE.search(_text(file)) is not None


def order(file: str) -> tuple[bool, bool, int]:
    """When a file is begun: the smaller the sooner. Files of one rank keep their order."""
    inside = file.partition("/")[2]
    position = next((number for number, start in enumerate(FIRST) if inside.startswith(start)), len(FIRST))
    of_lab = unit(file) == LAB
    return not of_lab, of_lab and not undisturbed(file), position


def computes(unit_: str) -> bool:
    """Whether a unit keeps a processor busy."""
    return not unit_.startswith(WAITING) or unit_.startswith(COMPUTING)


def load(unit_: str, pending: Iterable[str]) -> int:
    """Processors that a unit takes, by the tests of it that are not over; all, while some of them are undisturbed."""
    if unit_ == LAB and any(undisturbed(file_of(test)) for test in pending):
        return PROCESSORS
    return int(computes(unit_))


def latest_load(given: Mapping[str, Mapping[str, bool]]) -> int:
    """The load of a worker, by the units that it was given, oldest first: their tests, and whether each is over."""
    if not given:
        return 0
    latest = next(reversed(list(given)))
    pending = [test for test, over in given[latest].items() if not over]
    return load(latest, pending) if pending else 0


def following(units: Collection[str], taken: int) -> str:
    """Which unit is begun next, of those that are left (at least one, in order), when so many processors are taken."""
    wanted = taken < PROCESSORS
    return next((one for one in units if computes(one) == wanted), next(iter(units)))


def kind(item: pytest.Item) -> Kind:
    """What a test asks of the machine: its mark says so, else its file."""
    if item.get_closest_marker("alone"):
        return Kind.ALONE
    if item.get_closest_marker("uncontended"):
        return Kind.UNCONTENDED
    return Kind.COMPUTES if computes(file_of(item.nodeid)) else Kind.WAITS


class MachineLock:
    """Readers-writer locks of all workers, two locked files each: :data:`LOCKS` says who may run beside whom.

    Whoever waits holds the entrance, so nobody overtakes; the kernel releases what a dead worker held.
    """

    def __init__(self, folder: Path) -> None:
        self.held: Kind | None = None
        self._files = {name: (folder / name).open("w") for pair in ENTRANCES.items() for name in pair}

    def take(self, wanted: Kind) -> None:
        """Before a test runs. Waits without a bound: what it waits for is tests, and these have time-outs."""
        if self.held is wanted:
            return
        self.release()
        for name, how in LOCKS[wanted].items():
            entrance = self._files[ENTRANCES[name]]
            fcntl.flock(entrance, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._files[name], how)
            finally:
                fcntl.flock(entrance, fcntl.LOCK_UN)
        self.held = wanted

    def release(self) -> None:
        """When the next test is of another kind, or there is none."""
        for name in ENTRANCES:
            fcntl.flock(self._files[name], fcntl.LOCK_UN)
        self.held = None


def pytest_configure(config: pytest.Config) -> None:
    """A worker opens the lock of all workers."""
    if is_worker(config):
        folder = Path(gettempdir()) / f"airmesh-tests-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        config.stash[_LOCK] = MachineLock(folder)


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another that reports them."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """A test's fixtures, body and time-out begin when the machine may be had."""
    lock = item.config.stash.get(_LOCK, None)
    if lock is None:
        return (yield)
    own = kind(item)
    lock.take(own)
    try:
        return (yield)
    finally:
        if own not in KEPT or nextitem is None or kind(nextitem) is not own:
            lock.release()


def arrange(items: list[pytest.Item]) -> None:
    """In the order in which workers begin them."""
    items.sort(key=lambda item: order(file_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Units instead of tests, in the order of :func:`arrange`, each beside what fits it."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only the process that hands tests out needs it

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist is without types
        def _split_scope(self, nodeid: str) -> str:
            return unit(file_of(nodeid))

        def _assign_work_unit(self, node: WorkerController) -> None:
            taken = sum(latest_load(units) for other, units in self.assigned_work.items() if other is not node)
            self.workqueue.move_to_end(following(self.workqueue, taken), last=False)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False
    return Scheduling(config, log)
