"""Fixes are run where their finding is, verified, and taken back when they do not help."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import repair
from cli.faults import Usage
from cli.reports.doctor import Answered, Diagnosis, diagnosis
from proto.findings import DoctorRequest, Expected, Finding, Findings, Fix

WAY = "env NODE={node} sh -c"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "STANDS", 0.0)
    monkeypatch.setattr(repair, "EVERY", 0.01)


def agreed(_finding: Finding, _fix: Fix) -> bool:
    return True


def found(folder: Path, *, node: str = "n1", agent: str = "routing-n1", automatic: bool = True) -> Diagnosis:
    """A finding while the file `wrong` is there; its fix removes it, and writes down where that was."""
    wrong = folder / "wrong"
    fix = Fix(
        command=f"rm {wrong}; echo $NODE >> {folder}/ran",
        risk="none",
        automatic=automatic,
        undo=f"touch {folder}/undone",
    )
    finding = Finding(
        code="c",
        fault="dns",
        about="Node n1",
        node=node,
        cause="so",
        expected=Expected(text="this"),
        observed=(),
        fixes=(Fix(command="false", risk="none"), fix),
    )
    sent = Findings(at_ms=0, findings=(finding,) if wrong.exists() else ())
    return diagnosis(DoctorRequest(), [Answered(user=agent, findings=sent, asked_ms=0, came_ms=0)], (), 0)


def test_a_fix_that_helps_is_verified(tmp_path: Path) -> None:
    (tmp_path / "wrong").touch()
    (one,) = repair.apply(found(tmp_path), WAY, lambda: found(tmp_path), agreed)
    assert (one.outcome, one.why) == ("verified", "")
    assert (tmp_path / "ran").read_text() == "n1\n"
    assert not (tmp_path / "undone").exists()


def test_a_fix_that_does_not_help_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "VERIFIED", 0.0)
    (tmp_path / "wrong").touch()
    before = found(tmp_path)
    (one,) = repair.apply(before, WAY, lambda: before, agreed)
    assert one.outcome == "undone"
    assert (tmp_path / "undone").exists()


def test_a_fix_that_another_daemon_takes_back_has_not_helped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone in every second diagnosis."""
    monkeypatch.setattr(repair, "STANDS", 60.0)
    monkeypatch.setattr(repair, "VERIFIED", 0.1)
    wrong = tmp_path / "wrong"
    wrong.touch()
    before = found(tmp_path)

    def again() -> Diagnosis:
        seen = found(tmp_path)
        if wrong.exists():
            wrong.unlink()
        else:
            wrong.touch()
        return seen

    (one,) = repair.apply(before, WAY, again, agreed)
    assert one.outcome == "undone"
    assert (tmp_path / "undone").exists()


def test_a_fix_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "wrong").touch()
    (one,) = repair.apply(found(tmp_path), "sh -c 'echo no way >&2; exit 3' {node}", lambda: found(tmp_path), agreed)
    assert (one.outcome, one.why) == ("failed", "no way")


@pytest.mark.parametrize(
    ("node", "agent", "automatic"),
    [("n1", "routing-n1", False), ("n1", "routing-n2", True), ("n1", "policy", True), ("", "policy", True)],
)
def test_no_agent_has_a_command_run_elsewhere(tmp_path: Path, node: str, agent: str, automatic: bool) -> None:
    (tmp_path / "wrong").touch()
    assert (
        repair.apply(found(tmp_path, node=node, agent=agent, automatic=automatic), WAY, lambda: found(tmp_path), agreed)
        == ()
    )
    assert not (tmp_path / "ran").exists()


def test_what_nobody_agrees_to_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "wrong").touch()
    shown: list[str] = []

    def declined(finding: Finding, fix: Fix) -> bool:
        shown.append(f"{finding.node}: {fix.command}")
        return False

    assert repair.apply(found(tmp_path), WAY, lambda: found(tmp_path), declined) == ()
    assert shown == [f"n1: rm {tmp_path}/wrong; echo $NODE >> {tmp_path}/ran"]
    assert not (tmp_path / "ran").exists()


def test_a_way_to_nodes_says_where_the_name_belongs() -> None:
    assert repair.check_way(WAY) == WAY
    with pytest.raises(Usage, match="--by"):
        repair.check_way("ssh root")
