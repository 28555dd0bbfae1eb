"""What a lab says of itself: lines that a shell takes as they are, and one line for each lab that has a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.cluster import status, up
from lab.cluster.api import has_condition
from lab.cluster.port_forward import Ports, read_ports
from lab.paths import Paths, Settings, paths
from lab.topology import LabError


def lab_in(folder: Path, lab: str = "air") -> Paths:
    where = paths(lab, Settings(labs=folder / "labs", run=folder / "run", cache=folder / "cache"))
    where.state.mkdir(parents=True)
    return where


@pytest.mark.parametrize("name", ["plain", "with space", "quote'd", "$(touch /tmp/never)", "a;b", 'double"', "ü"])
def test_a_shell_takes_the_lines_as_they_are(tmp_path: Path, name: str) -> None:
    """Whatever folder a person chose: nothing in it is a command."""
    where = lab_in(tmp_path / name)
    where.ports.write_bytes(msgspec.json.encode(Ports(api=6443, nats=4222)))
    lines = list(status.environment_lines(where))
    script = "\n".join([*lines, 'printf "%s\\n" "$KUBECONFIG" "$AIRMESH_NATS" "$AIRMESH_NATS_SEED_FILE" "$PATH"'])
    done = subprocess.run(
        ["/bin/sh", "-euc", script], env={"PATH": "/mine"}, capture_output=True, text=True, timeout=5, check=True
    )
    kubeconfig, url, seed, path = done.stdout.splitlines()
    assert kubeconfig == str(where.kubeconfig)
    assert url == "nats://127.0.0.1:4222"
    assert seed.startswith(str(where.nats))
    assert path.endswith(":/mine"), "a person's own programs stay"
    assert done.stderr == ""


@pytest.mark.parametrize("written", [None, b"", b"{", b"\xff", b'{"api": "x"}', b"{}"])
def test_a_lab_that_is_not_up_has_no_environment(tmp_path: Path, written: bytes | None) -> None:
    where = lab_in(tmp_path)
    if written is not None:
        where.ports.write_bytes(written)
    assert read_ports(where.ports) == Ports()
    with pytest.raises(LabError, match="lab air is not up: make lab LAB=air"):
        list(status.environment_lines(where))


async def test_every_folder_of_a_lab_is_a_line_and_others_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Settings(labs=tmp_path / "labs", run=tmp_path / "run", cache=tmp_path)
    assert await status.labs(given) == []
    for name in ("b", "air", "Not-A-Lab", ".hidden", "lost+found"):
        (tmp_path / "labs" / name).mkdir(parents=True)

    async def is_up(where: Paths) -> bool:
        return where.lab == "air"

    monkeypatch.setattr(up, "is_up", is_up)
    assert [line.split() for line in await status.labs(given)] == [
        ["air", "no", "record", "up"],
        ["b", "no", "record", "not", "whole"],
    ]


@pytest.mark.parametrize(
    ("item", "holds"),
    [
        ({}, False),
        ({"status": {}}, False),
        ({"status": {"conditions": []}}, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, True),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, False),
        ({"status": {"conditions": [{"type": "Other", "status": "True"}]}}, False),
        ({"status": {"conditions": [{"status": "True"}, {"type": "Ready", "status": "True"}]}}, True),
    ],
)
def test_a_condition_holds_when_the_api_says_true(item: dict[str, Any], holds: bool) -> None:
    assert has_condition(item, "Ready") is holds
