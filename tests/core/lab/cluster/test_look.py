"""How a machine is looked at: what /proc says is read as it is, and the table tells all that is lacking."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.cluster import namespaces, preflight
from lab.cluster.preflight import DISK_BYTES, GIB, MEMORY_BYTES, PROGRAMS, judge, report
from lab.topology import LabError
from linux import bpf, features
from tests.core.lab.cluster.test_preflight import WHOLE


@pytest.mark.parametrize(
    ("release", "kernel"),
    [
        ("6.18.44", (6, 18)),
        ("6.1.0-18-amd64", (6, 1)),
        ("5.15.167.4-microsoft-standard-WSL2", (5, 15)),
        ("6.6.0-rc1", (6, 6)),
        ("7.0", (7, 0)),
        ("6.x", (6, 0)),
    ],
)
def test_the_kernels_version(monkeypatch: pytest.MonkeyPatch, release: str, kernel: tuple[int, int]) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert preflight._kernel() == kernel


@pytest.mark.parametrize(
    ("text", "available"),
    [
        ("MemTotal: 8 kB\nMemAvailable:   4194304 kB\nBuffers: 1 kB\n", 4 * GIB),
        ("MemTotal: 8 kB\n", 0),
        ("", 0),
    ],
)
def test_memory_is_what_could_be_had(monkeypatch: pytest.MonkeyPatch, text: str, available: int) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _self: text)
    assert preflight._memory_available() == available


def test_room_is_that_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    free = preflight._free(tmp_path)
    assert preflight._free(tmp_path / "a" / "b" / "c") == pytest.approx(free, rel=0.05)
    assert not (tmp_path / "a").exists(), "looking makes nothing"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (LabError("ip netns add: Operation not permitted"), "ip netns add: Operation not permitted"),
        (FileNotFoundError(2, "No such file", "ip"), "[Errno 2] No such file: 'ip'"),
        (None, ""),
    ],
)
def test_why_no_namespace_can_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: Exception | None, said: str
) -> None:
    asked: list[list[str]] = []

    def run(argv: list[str], *_: Any) -> str:
        asked.append(argv)
        if raised is not None:
            raise raised
        return ""

    monkeypatch.setattr(namespaces, "run", run)
    monkeypatch.setattr(namespaces, "NETNS", tmp_path)
    assert preflight._try_namespace()[0] == said
    assert all(argv[3 if argv[1] == "netns" else 2].startswith("am-try-") for argv in asked)


def test_the_namespace_of_a_trial_is_removed_even_when_the_rest_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    removed: list[str] = []

    def run(argv: list[str], *_: Any) -> str:
        if argv[1] == "netns":
            (tmp_path / argv[3]).touch()
            return ""
        raise LabError("veth: Operation not supported")

    monkeypatch.setattr(namespaces, "run", run)
    monkeypatch.setattr(namespaces, "NETNS", tmp_path)
    monkeypatch.setattr(namespaces, "remove", removed.extend)
    assert preflight._try_namespace()[0] == "veth: Operation not supported"
    assert removed == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
def test_why_no_map_can_be_made(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuses(*_: int) -> int:
        raise bpf.BpfError(bpf.Command.MAP_CREATE, code)

    monkeypatch.setattr(bpf, "map_create", refuses)
    assert features.map_error() == os.strerror(code)


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in PROGRAMS:
        if name != "nft":
            (tmp_path / name).write_text("")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(preflight, "_try_namespace", lambda: ("", set()))
    monkeypatch.setattr(features, "map_error", lambda: "")
    monkeypatch.setattr(preflight, "_go", lambda: "/go")
    found = preflight.look()
    assert found.missing == ("nft",)
    assert found.unserved == ("vxlan", "wireguard")
    assert [one.remedy for one in judge(found) if one.what == "program nft"] == [
        "make setup (apt-get install nftables)"
    ]


def reported(monkeypatch: pytest.MonkeyPatch, **change: Any) -> tuple[int, list[str]]:
    machine = preflight.Machine(**{name: getattr(WHOLE, name) for name in WHOLE.__dataclass_fields__} | change)
    monkeypatch.setattr(preflight, "look", lambda: machine)
    lines: list[str] = []
    return report(lines.append), lines


def test_a_whole_machine_is_reported_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reported(monkeypatch) == (0, ["preflight: this machine has all that a lab needs"])


def test_a_note_does_not_stop_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = reported(monkeypatch, kernel=(6, 1))
    assert (code, lines[0]) == (0, "good to know:")
    assert lines[1].split() == ["tcx", "kernel", "6.1", "clsact", "is", "used", "instead"]
    assert lines[-1] == "preflight: this machine has all that a lab needs"


def test_what_lacks_stops_it_and_stands_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = reported(monkeypatch, root=False, missing=("nft", "containerd"), kernel=(6, 1))
    assert (code, lines[0]) == (1, "this machine lacks:")
    assert len(lines) == 1 + 4
    columns = {line.index(remedy) for line, remedy in zip(lines[1:], ("run as", "clsact", "make", "make"), strict=True)}
    assert len(columns) == 1


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"disk_free": DISK_BYTES}, []),
        ({"disk_free": DISK_BYTES - 1}, ["disk"]),
        ({"memory": MEMORY_BYTES}, []),
        ({"memory": MEMORY_BYTES - 1}, ["memory"]),
        ({"kernel": (6, 6)}, []),
        ({"kernel": (6, 5)}, ["tcx"]),
        ({"kernel": (7, 0)}, []),
        ({"kernel": (6, 1), "bpf": "no"}, ["bpf(2)"]),  # without bpf(2) it does not matter by what a program would hang
    ],
)
def test_bounds_are_exact(change: dict[str, Any], lacks: list[str]) -> None:
    machine = preflight.Machine(**{name: getattr(WHOLE, name) for name in WHOLE.__dataclass_fields__} | change)
    assert [one.what for one in judge(machine)] == lacks
