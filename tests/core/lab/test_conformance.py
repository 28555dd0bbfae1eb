"""The suite's runner: which specs are chosen, what a report says, what an earlier run is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.conformance import Result, choose, done, impossible, outcome, table, texts
from lab.topology import LabError

SPECS = [
    "[sig-network] Netpol NetworkPolicy between server and client should enforce policy based on Ports",
    "[sig-network] Netpol NetworkPolicy should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP'",
    "[sig-network] Services should be rejected when no endpoints exist",
]


def _report(state: str, message: str = "") -> Any:
    failure = {"Failure": {"Message": message}} if message else {}
    other = {"LeafNodeType": "It", "State": "skipped", "ContainerHierarchyTexts": ["[x]"], "LeafNodeText": "other"}
    asked = {
        "LeafNodeType": "It",
        "State": state,
        "ContainerHierarchyTexts": ["[a]", "b"],
        "LeafNodeText": "c",
        **failure,
    }
    setup = {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"}
    return [{"SpecReports": [setup, other, asked]}]


def test_focus_and_skip_choose() -> None:
    assert choose(SPECS, "Netpol", "") == SPECS[:2]
    assert choose(SPECS, "", "Netpol") == SPECS[2:]
    assert choose(SPECS, "Netpol", "SCTP") == SPECS[:1]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(LabError, match="FOCUS/SKIP"):
        choose(SPECS, "(", "")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("Netpol [Feature:SCTPConnectivity] using SCTP should support a 'default-deny-ingress' policy", "SCTP"),
        (SPECS[1], ""),
        (SPECS[0], ""),
        ("Networking should provide Internet connection for containers [Feature:Networking-IPv4]", "internet"),
    ],
)
def test_only_what_the_machine_cannot_do_is_left_out(spec: str, why: str) -> None:
    assert (why in impossible(spec)) if why else impossible(spec) == ""


@pytest.mark.parametrize(
    ("state", "message", "said"),
    [
        ("passed", "", ("passed", "")),
        ("failed", "service is\nnot reachable", ("failed", "service is not reachable")),
        ("timedout", "", ("failed", "")),
        ("panicked", "nil", ("failed", "nil")),
        ("skipped", "needs two zones", ("skipped", "needs two zones")),
        ("skipped", "", ("failed", "the suite ended without a verdict")),
    ],
)
def test_a_report_is_read(state: str, message: str, said: tuple[str, str]) -> None:
    told = outcome(_report(state, message), "[a] b c", 1.5)
    assert (told.outcome, told.reason) == said


@pytest.mark.parametrize("report", [None, {}, [], "x", [{"SpecReports": None}]])
def test_no_report_is_a_failure(report: object) -> None:
    assert outcome(report, "s", 1.0).outcome == "failed"
    assert texts(report) == []


def test_specs_have_their_full_text() -> None:
    assert texts(_report("passed")) == ["[x] other", "[a] b c"]


def test_an_earlier_run_counts_but_not_its_torn_last_line(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert done(results) == {}
    results.write_text(
        json.dumps({"spec": "a", "outcome": "passed", "seconds": 1.0, "reason": ""}) + '\n{"spec": "b", "ou'
    )
    assert list(done(results)) == ["a"]


def test_the_table_begins_with_what_failed() -> None:
    told = table(
        [
            Result(spec="[sig-network] fine", outcome="passed", seconds=1),
            Result(spec="[sig-network] a|b", outcome="failed", seconds=1, reason="no | way"),
            Result(spec="[sig-network] left", outcome="skipped", seconds=0, reason="no SCTP"),
        ]
    )
    assert [line.split(" | ")[0] for line in told.splitlines()[2:]] == ["| a\\|b", "| left", "| fine"]
