"""Can the tests fail? Each mutant is a bug sown into a copy of the tree; the tests that it names must then fail.

``python -m tests.drills.mutants`` sows all of ``tests.drills.mutations``, one after the other, and prints who caught
what; names as arguments choose some, ``--list`` only lists. Exit code 1 when a mutant survives, or when it cannot be
judged: its text is not there exactly once, or its tests fail without it, or break instead of failing.

The working tree is never touched: a copy of it lies in a temporary folder, and each mutant is a copy of that. The
tests of a mutant run there in a process of their own, with this very Python, at first without the bug (once for each
set of tests): a test that is red or left out already says nothing. Caught means that an assertion failed, or that a
state which a test waits for never came; an error of import, of a name or of a fixture is no catch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.drills.mutations import MUTANTS, Mutant
from tests.house.tree import ROOT, files

PATIENCE = 240.0
"""Seconds that the tests of one mutant may take."""
_VERDICTS = ("AssertionError", "assert", "Failed", "TimeoutError")
"""How a test says no, as pytest begins the failure's message: ``Failed`` is pytest.fail, raises and its time-out."""


class Outcome(Enum):
    """What became of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    """Nothing can be said: see why."""
    LEFT_OUT = "left out"
    """This machine cannot run its tests."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Outcome and, in a few words, why: the test that caught it, or what is wrong with the experiment."""

    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run of pytest came to."""

    code: int | None
    """Exit code; None when it did not end in time."""
    failures: tuple[tuple[str, str], ...] = ()
    """Tests whose own body failed, with the first line of the message."""
    errors: tuple[tuple[str, str], ...] = ()
    """Modules that cannot be imported, fixtures that fail."""
    skipped: tuple[str, ...] = ()
    """Why tests were left out."""
    passed: int = 0


class Unfit(Exception):
    """A mutant that cannot be sown."""


def sow(mutant: Mutant, tree: Path) -> None:
    """Put the bug into the tree; raises :class:`Unfit` unless its text stands there exactly once."""
    file = tree / mutant.file
    if not file.is_file():
        raise Unfit(f"there is no {mutant.file}")
    text = file.read_text()
    if (count := text.count(mutant.old)) != 1:
        raise Unfit(f"its text stands {count} times in {mutant.file}, not once")
    file.write_text(text.replace(mutant.old, mutant.new))


def judge(run: Run) -> Judged:
    """What the tests say of a tree with a bug, given that they pass without it."""
    if run.code is None:
        return Judged(Outcome.BROKEN, f"its tests did not end within {PATIENCE:.0f} s")
    for test, message in run.failures:
        if message.startswith(_VERDICTS):
            return Judged(Outcome.CAUGHT, test)
    for test, message in (*run.errors, *run.failures):
        return Judged(Outcome.BROKEN, f"{test} broke: {message}")
    if run.code == 0:
        return Judged(Outcome.SURVIVED, f"{run.passed} tests pass")
    return Judged(Outcome.BROKEN, f"pytest ended with {run.code} and no test that failed")


def fault_of(clean: Run) -> Judged | None:
    """Why these tests can judge nobody, by their run without a bug; None when they can."""
    if clean.skipped:
        return Judged(Outcome.LEFT_OUT, clean.skipped[0])
    if clean.code == 0 and clean.passed:
        return None
    red = next((f"{test}: {message}" for test, message in (*clean.errors, *clean.failures)), f"exit {clean.code}")
    return Judged(Outcome.BROKEN, f"without the bug: {red}")


@dataclass(slots=True)
class Field:
    """Copies of the tree, and what is known of its tests without a bug."""

    folder: Path
    clean: Path
    known: dict[tuple[str, ...], Run] = field(default_factory=dict)

    def without(self, tests: tuple[str, ...]) -> Run:
        """The tests on the clean copy; run once."""
        if tests not in self.known:
            self.known[tests] = run_tests(self.clean, tests, self.folder)
        return self.known[tests]

    def judge(self, mutant: Mutant) -> Judged:
        """Sow the bug into a copy and let its tests judge it."""
        tree = self.folder / "sown"
        shutil.copytree(self.clean, tree, symlinks=True)
        try:
            sow(mutant, tree)
            return fault_of(self.without(mutant.tests)) or judge(run_tests(tree, mutant.tests, self.folder))
        except Unfit as error:
            return Judged(Outcome.BROKEN, str(error))
        finally:
            shutil.rmtree(tree)


@contextmanager
def sown_field() -> Iterator[Field]:
    """A temporary folder with a clean copy of the tree; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="am-mutants-") as folder:
        clean = Path(folder) / "clean"
        for path in files():
            (clean / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, clean / path, follow_symlinks=False)
        yield Field(Path(folder), clean)


def run_tests(tree: Path, tests: Sequence[str], folder: Path) -> Run:
    """pytest in ``tree``, up to the first test that fails."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", f"--junitxml={report}", *tests]
    # Bytecode of BPF programs is kept by its source: the mutants' does not belong among the good ones.
    environment = {**os.environ, "AIRMESH_BPF_CACHE": str(folder / "bpf")}
    for variable in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):  # modules are the copy's own, and compiled once for all
        environment.pop(variable, None)
    process = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        code: int | None = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        code = None
        process.send_signal(signal.SIGINT)  # pytest ends its fixtures, and with them what they made
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
    return read(report, code)


def read(report: Path, code: int | None) -> Run:
    """A run from pytest's JUnit report."""
    if not report.is_file():
        return Run(code=code)
    failures, errors, skipped, passed = [], [], [], 0
    for case in ET.parse(report).getroot().iter("testcase"):
        name = "::".join(part for part in (case.get("classname", "").rpartition(".")[2], case.get("name", "")) if part)
        found = {child.tag: child.get("message", "").strip().partition("\n")[0] for child in case}
        if "failure" in found:
            failures.append((name, found["failure"]))
        elif "error" in found:
            errors.append((name, found["error"]))
        elif "skipped" in found:
            skipped.append(found["skipped"])
        else:
            passed += 1
    return Run(code=code, failures=tuple(failures), errors=tuple(errors), skipped=tuple(skipped), passed=passed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The drill; returns the exit code."""
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    parser = argparse.ArgumentParser(prog="python -m tests.drills.mutants", description="Can the tests fail?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to sow; all when none is named")
    parser.add_argument("--list", action="store_true", help="print names, files and tests; sow nothing")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in by_name]:
        parser.error(f"no mutant is called {', '.join(unknown)}; --list prints the names")
    chosen = [by_name[name] for name in asked.names] or list(MUTANTS)
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.name:34} {mutant.file:44} {' '.join(mutant.tests)}")
        return 0
    bad = 0
    with sown_field() as field_:
        for mutant in chosen:
            began = time.monotonic()
            judged = field_.judge(mutant)
            bad += judged.outcome in (Outcome.SURVIVED, Outcome.BROKEN)
            print(
                f"{judged.outcome.value:9} {mutant.name:34} {time.monotonic() - began:5.1f} s  {judged.why}", flush=True
            )
    print(f"{len(chosen)} mutants, {bad} not caught" if bad else f"{len(chosen)} mutants, none survived")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
