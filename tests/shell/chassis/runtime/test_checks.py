"""Checks of an agent: side by side, each within its time, none a danger to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from chassis.runtime import checks
from chassis.runtime.checks import Checks, NotChecked
from chassis.telemetry.log import Log
from proto.findings import MAX_FINDINGS, DoctorRequest, Expected, Finding


def finding(code: str, precedence: int = 40) -> Finding:
    return Finding(
        code=code,
        fault="dns",
        about="Node n1",
        cause="so",
        expected=Expected(text="this"),
        observed=(),
        fixes=(),
        precedence=precedence,
    )


async def two(_: DoctorRequest) -> Iterable[Finding]:
    return finding("late", 90), finding("early", 10)


async def cannot(_: DoctorRequest) -> Iterable[Finding]:
    raise NotChecked("there is no nft")


async def fails(_: DoctorRequest) -> Iterable[Finding]:
    raise KeyError("bug")


async def hangs(_: DoctorRequest) -> Iterable[Finding]:
    await asyncio.Event().wait()
    return ()


async def test_findings_come_in_order_whatever_happens_to_other_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DEADLINE", 0.05)
    made = Checks(Log("test"))
    for code, check in (("two", two), ("cannot", cannot), ("fails", fails), ("hangs", hangs)):
        made.add((code,), check)
    answer = await made.answer(DoctorRequest())
    assert [one.code for one in answer.findings] == ["early", "late"]
    assert answer.checked == ("two",)
    assert {one.check: one.why for one in answer.unchecked} == {
        "cannot": "there is no nft",
        "fails": "the check itself failed; the agent's log says why",
        "hangs": "not done within 0 s",
    }


async def test_too_many_findings_are_counted() -> None:
    async def many(_: DoctorRequest) -> Iterable[Finding]:
        return [finding(f"c{number}") for number in range(MAX_FINDINGS + 3)]

    made = Checks(Log("test"))
    made.add(("many",), many)
    answer = await made.answer(DoctorRequest())
    assert (len(answer.findings), answer.left_out) == (MAX_FINDINGS, 3)
