"""Dashboards are read by Grafana's own types (its Foundation SDK), strictly: what Grafana would pass over is wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.images.build import build_all
from lab.images.observability import DASHBOARDS
from tests.shell.observability.test_rules import BOARDS


def misspelt(board: Any) -> None:
    board["panels"][0]["gridpos"] = board["panels"][0].pop("gridPos")


def unknown_option(board: Any) -> None:
    next(one for one in board["panels"] if one["type"] == "timeseries").setdefault("options", {})["legends"] = {}


def wrong_type(board: Any) -> None:
    board["panels"][0]["id"] = "one"


def unknown_part_of_a_query(board: Any) -> None:
    board["panels"][0]["targets"][0]["expression"] = board["panels"][0]["targets"][0].pop("expr")


WRONGS = {
    misspelt: "gridpos",
    unknown_option: "legends",
    wrong_type: "id",
    unknown_part_of_a_query: "expr",
}


@pytest.fixture
async def read() -> Callable[[Path], str]:
    """What is wrong with a dashboard; empty for one that is taken."""
    built = await build_all((DASHBOARDS,), paths.settings().cache, print)

    def run(path: Path) -> str:
        done = subprocess.run([built[DASHBOARDS.name], path], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (done.stderr == "")
        return done.stderr

    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_grafanas_types_take_a_dashboard_and_nothing_that_is_wrong(
    read: Callable[[Path], str], tmp_path: Path
) -> None:
    for board in BOARDS:
        assert read(board) == ""
        for spoil, named in WRONGS.items():
            spoilt = json.loads(board.read_text())
            spoil(spoilt)
            path = tmp_path / board.name
            path.write_text(json.dumps(spoilt))
            assert named in read(path), spoil.__name__
