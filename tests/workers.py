"""Workers of pytest-xdist (`pytest -n 3`): which files each runs, in which order, and which tests run alone.

A plugin of pytest: `tests/conftest.py` brings its hooks in. It reads two marks:

- `lab`: all files with such tests are one unit, so one worker runs them, one after the other, in the one lab. They come
  first, since they are the longest unit and mostly wait.
- `alone`: the test looks at the whole machine, or measures what a process takes of it. While it runs, no other worker
  of this user runs a test, be it of another tree. Its file belongs to the unit of the lab: a worker that waits for the
  lab's tests would wait for long.

Every other file is a unit of its own, so that fixtures of a module are made once. A worker that is free takes the next;
what takes long comes before what does not, so that both end at about the same time. Without `-n` nothing of this
applies: one process runs all files in their alphabetical order.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
LAB = "lab"
"""Name of the unit of all files that one worker runs in their order."""
FOLDERS = ("ship", "drills", "netns", "shell", "bpf", "core", "house", "golden")
"""Below `tests/`: the order in which files are begun, those with long tests first."""
_MARKS = ("pytest.mark.lab", "pytest.mark.alone")
_LOCK = pytest.StashKey["MachineLock"]()


@cache
def unit(file: str) -> str:
    """The unit that a test file belongs to: `LAB`, or the file itself (its path from the root)."""
    text = (ROOT / file).read_text()
    return LAB if any(mark in text for mark in _MARKS) else file


def order(file: str) -> tuple[bool, int]:
    """When a file is begun: the smaller the sooner. Files of one rank keep their order."""
    folder = file.split("/")[1]
    return unit(file) != LAB, FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)


class MachineLock:
    """A readers-writer lock of all workers, as two locked files: any number of tests at once, or one that is `alone`.

    Whoever waits holds the entrance, so nobody overtakes; the kernel releases what a dead worker held.
    """

    def __init__(self, folder: Path) -> None:
        self._entrance, self._machine = ((folder / name).open("w") for name in ("entrance", "machine"))

    @contextmanager
    def held(self, *, alone: bool) -> Generator[None]:
        """While one test runs. Waits without a bound: what it waits for is tests, and these have time-outs."""
        fcntl.flock(self._entrance, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._entrance, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._machine, fcntl.LOCK_UN)


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
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test's fixtures, body and time-out begin when the machine may be had."""
    lock = item.config.stash.get(_LOCK, None)
    if lock is None:
        return (yield)
    with lock.held(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def arrange(items: list[pytest.Item]) -> None:
    """In the order in which workers begin them."""
    items.sort(key=lambda item: order(item.nodeid.partition("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Units instead of tests, in the order of :func:`arrange`."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only the process that hands tests out needs it

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist is without types
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Scheduling(config, log)
