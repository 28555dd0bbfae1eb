"""The ledger knows a process by its pid and start time, and survives torn files."""

import os
from pathlib import Path

import pytest

from lab.cluster import ledger
from lab.cluster.ledger import Entry

STAT = "{pid} ({name}) {state} 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 {start} 1 1"


@pytest.mark.parametrize(
    ("name", "state", "start"),
    [("bash", "S", 77), ("a b", "R", 78), ("x) R 1 (y", "S", 79), (")", "D", 80)],
)
def test_start_time_is_found_behind_any_name(name: str, state: str, start: int) -> None:
    assert ledger.start_time(STAT.format(pid=5, name=name, state=state, start=start)) == start


@pytest.mark.parametrize("state", ["Z", "X"])
def test_the_dead_have_no_start_time(state: str) -> None:
    assert ledger.start_time(STAT.format(pid=5, name="a", state=state, start=9)) == 0


@pytest.mark.parametrize("text", ["", "5", "5 (a", "5 (a) S 1"])
def test_half_a_line_is_nobody(text: str) -> None:
    assert ledger.start_time(text) == 0


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    entries = [Entry(name="etcd", argv=("k8s", "etcd"), pid=7, started=9), Entry(name="intended", argv=("x",))]
    ledger.write(tmp_path / "p.json", ledger.encode(entries))
    assert ledger.read(tmp_path / "p.json") == entries
    assert (tmp_path / "p.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("text", [b"", b"[{", b'{"name": 1}', b'[{"name": "a"}]', b"\xff"])
def test_a_torn_ledger_names_nobody(text: bytes) -> None:
    assert ledger.decode(text) == []


def test_a_pid_given_to_a_stranger_is_not_ours() -> None:
    me, born = os.getpid(), ledger.start_time_of(os.getpid())
    ours = Entry(name="ours", argv=(), pid=me, started=born)
    stranger = Entry(name="stranger", argv=(), pid=me, started=born - 1)
    intended = Entry(name="intended", argv=())
    assert ledger.alive([ours, stranger, intended]) == [ours]
