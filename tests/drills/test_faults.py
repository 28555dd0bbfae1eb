"""Every fault that can be injected into a lab: `airmesh doctor` names its cause first, and nothing once it is mended.

`make drill-faults` prints the score; `AIRMESH_TEST_LAB` uses a lab of a routed fabric that is up.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest

from cli.app import run
from cli.faults import Exit
from lab.cluster import faults
from tests.labkit import NAME, Lab, attach, raised

pytestmark = [pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1200)]

ATTEMPTS = 5
SECONDS = 240.0
"""The largest packet of a way is sought from the top every two minutes; all else is found within one."""
STANDS = 30.0
"""So long the first cause has to be the same: agents see what a fault does at different times."""
SHAPE = ("--nodes", "2", "--fabric", "routed", "--model", "vxlan")
SCORE: list[tuple[str, str, bool]] = []


@pytest.fixture(scope="module")
def routed() -> Iterator[Lab]:
    given = os.environ.get("AIRMESH_TEST_LAB")
    if given:
        yield attach(given)
        return
    with raised(f"{NAME[:10]}f", *SHAPE) as lab:
        yield lab


@pytest.fixture(scope="module", autouse=True)
def _score() -> Iterator[None]:
    yield
    rows = [f"{name:30}{first:30}{'' if right else 'WRONG'}" for name, first, right in SCORE]
    print(f"\n{'fault':30}first cause", *rows, sep="\n")
    print(f"{sum(right for _, _, right in SCORE)} of {len(SCORE)} named first")


def diagnosis(lab: Lab, asked: str = "") -> dict[str, Any]:
    """What `airmesh doctor` says of what is asked; asked again when a busy machine did not answer in time. In this
    process: an interpreter that starts costs more than the question.
    """
    said, code = io.StringIO(), int(Exit.UNREACHABLE)
    for _ in range(ATTEMPTS):
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
            for name, value in lab.observer.items():
                patch.setenv(name, value)
            code = run(["doctor", *asked.split(), "--output", "json"])
        if code != Exit.UNREACHABLE:
            break
    assert code in (Exit.WELL, Exit.NOT_WELL)
    found: dict[str, Any] = json.loads(said.getvalue())
    assert found["well"] == (code == Exit.WELL)
    return found


def codes(found: dict[str, Any]) -> list[str]:
    return [cause["finding"]["code"] for cause in found["causes"]]


def until_well(lab: Lab, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not (found := diagnosis(lab))["well"]:
        assert time.monotonic() < end, found["causes"]


def first_cause(lab: Lab, asked: str = "", seconds: float = SECONDS) -> str:
    """What is named first for :data:`STANDS` seconds: a fault begins, and what is seen of it comes bit by bit."""
    end = time.monotonic() + seconds
    before, since = "", 0.0
    while time.monotonic() < end:
        named = codes(diagnosis(lab, asked))
        if not named or named[0] != before:
            before, since = named[0] if named else "", time.monotonic()
        elif time.monotonic() >= since + STANDS:
            return before
        time.sleep(0.5)
    return before


@pytest.mark.parametrize("name", list(faults.known()))
def test_a_fault_is_named_first_and_gone_when_it_is_mended(routed: Lab, name: str) -> None:
    until_well(routed)
    try:
        fault = faults.break_(routed.where, name)
        first = first_cause(routed, fault.asks)
    finally:
        faults.mend(routed.where, name)
    print(f"{name}: {first or 'nothing'}", flush=True)
    SCORE.append((name, first or "nothing", first == fault.finds))
    assert first == fault.finds
    until_well(routed)


@pytest.mark.timeout(3600)
def test_nothing_is_found_where_nothing_is_wrong(routed: Lab) -> None:
    until_well(routed)
    for _ in range(int(os.environ.get("AIRMESH_HEALTHY_RUNS", "20"))):
        assert codes(diagnosis(routed)) == []
