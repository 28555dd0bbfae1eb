"""The types of the whole tree: `mypy --strict` has nothing to say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house.tree import ROOT

SECONDS = 900
"""Without its cache it takes a minute of a processor, which others share."""


@pytest.mark.timeout(SECONDS)
def test_types_are_whole() -> None:
    command = [sys.executable, "-m", "mypy", "."]
    output = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert output.returncode == 0, output.stdout[-6000:] + output.stderr[-2000:]
