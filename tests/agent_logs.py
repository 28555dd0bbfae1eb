"""What a lab's agents said while a test ran: their warnings and errors, in the report of its failure.

A plugin of pytest: `tests/conftest.py` brings its two hooks in. The fixture `lab` says where the logs lie (`LOGS` in
the session's stash); how long each log was is written down as a test begins, and read on from there when it fails. Of
each agent the last few lines count, each cut, and of a log no more than its end is read, so a report has a bound. What
the library of traces says does not count: where nobody listens for spans, it would be all that there is.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

LOGS = pytest.StashKey[Path]()
"""Of the session: the folder of the running lab's logs."""
_MARKS = pytest.StashKey[dict[str, int]]()
"""Of a test: how long each agent's log was as it began."""
AGENTS = ("cluster", "dataplane", "dns", "ipam", "nats", "policy", "routing")
LINES = 12
"""Of each agent."""
CHARACTERS = 400
"""Of each line."""
_BYTES = 1 << 20
_LOUD = ("warning", "error")
_QUIET_LIBRARY = "opentelemetry."
"""Loggers of its exporter, which says of each export that nobody took it."""
_LOUD_NATS = ("[WRN]", "[ERR]", "[FTL]")


def lengths(logs: Path) -> dict[str, int]:
    """Bytes of each agent's log now, by the agent's name."""
    return {path.stem: path.stat().st_size for path in sorted(logs.glob("*.log")) if path.stem.startswith(AGENTS)}


def warnings(logs: Path, since: Mapping[str, int]) -> str:
    """The last warnings and errors that each agent wrote after `since` (a log that is new counts from its start)."""
    reported, silent = list[str](), list[str]()
    for agent, length in lengths(logs).items():
        begin = since.get(agent, 0)
        # A log that became shorter was made again, by a lab of the same name.
        lines = _read(logs / f"{agent}.log", begin if begin <= length else 0)
        loud = [line for line in lines if _is_loud(agent, line)]
        reported += [f"{agent}: {line[:CHARACTERS]}" for line in loud[-LINES:]]
        if len(loud) > LINES:
            reported.append(f"{agent}: and {len(loud) - LINES} before these")
        if not loud:
            silent.append(agent)
    if silent:
        reported.append(f"no warning, no error: {', '.join(silent)}")
    return "\n".join(reported)


def _read(path: Path, begin: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(begin, path.stat().st_size - _BYTES))
        return file.read().decode(errors="replace").splitlines()


def _is_loud(agent: str, line: str) -> bool:
    """Agents write JSON; whatever else is in their logs is a trace of their end."""
    if agent == "nats":
        return any(word in line for word in _LOUD_NATS)
    try:
        written = json.loads(line)
        return written.get("level") in _LOUD and not str(written.get("library", "")).startswith(_QUIET_LIBRARY)
    except (ValueError, AttributeError):
        return bool(line.strip())


def _uses_lab(item: pytest.Item) -> bool:
    return "lab" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Write down where each log ends; before the session's first lab there is none."""
    logs = item.session.stash.get(LOGS, None)
    if logs is not None and _uses_lab(item):
        item.stash[_MARKS] = lengths(logs)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure's report says what the agents said meanwhile."""
    report = yield
    logs = item.session.stash.get(LOGS, None)
    if report.failed and logs is not None and _uses_lab(item):
        marks = item.stash.get(_MARKS, dict[str, int]())
        report.sections.append(("the lab's agents since this test began", warnings(logs, marks)))
    return report
