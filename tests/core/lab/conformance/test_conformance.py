"""The suite's runner: which specs are chosen, what a report says, what an earlier run is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.conformance import resolver
from lab.conformance.report import SUMMARY, Result, done, note, renewed, table, tables
from lab.conformance.suite import choose, impossible, log_name, outcome, texts
from lab.topology import LabError
from services.dns.core.caddyfile import parse
from services.dns.core.corefile import Recipe, render
from services.dns.core.merge import merge

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
        ("IngressClass [Feature:Ingress] should set default value on new IngressClass [Serial]", ""),
        ("KubeProxy should set TCP CLOSE_WAIT timeout [Privileged]", "kube-proxy"),
        ("Networking should check kube-proxy urls", "kube-proxy"),
        ("DNS configMap nameserver Change stubDomain should be able to change stubDomain configuration", ""),
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
    reported = outcome(_report(state, message), "[a] b c", 1.5)
    assert (reported.outcome, reported.reason) == said


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


def test_the_last_word_about_a_spec_counts(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    for word in ("failed", "passed"):
        note(results, Result(spec="a", outcome=word, seconds=1))
    assert [result.outcome for result in done(results).values()] == ["passed"]


def test_logs_have_names_that_distinguish_specs() -> None:
    long = "[sig-network] [Feature:IPv6DualStack] " + "x" * 400
    names = {log_name(spec) for spec in [*SPECS, long, long + "y", "a: b", "a b"]}
    assert len(names) == 7
    assert all(len(name) < 200 and name.endswith(".log") and "/" not in name for name in names)


def test_the_table_begins_with_what_failed() -> None:
    reported = table(
        [
            Result(spec="[sig-network] fine", outcome="passed", seconds=1),
            Result(spec="[sig-network] a|b", outcome="failed", seconds=1, reason="no | way"),
            Result(spec="[sig-network] left", outcome="skipped", seconds=0, reason="no SCTP"),
        ]
    )
    assert [line.split(" | ")[0] for line in reported.splitlines()[2:]] == ["| a\\|b", "| left", "| fine"]


MIXED = [
    Result(spec="[sig-network] DNS [Conformance]", outcome="passed", seconds=60),
    Result(spec="[sig-network] Netpol deny", outcome="failed", seconds=120, reason="got through"),
    Result(spec="[sig-network] Services loud", outcome="skipped", seconds=0, reason="no SCTP"),
]


def test_the_summary_counts_each_group_and_all() -> None:
    assert tables(MIXED).splitlines()[4:8] == [
        "| [Conformance] | 1 | 0 | 0 | 1 |",
        "| NetworkPolicy | 0 | 1 | 0 | 2 |",
        "| The others | 0 | 0 | 1 | 0 |",
        "| all | 1 | 1 | 1 | 3 |",
    ]


def test_a_group_without_specs_has_no_table() -> None:
    assert "NetworkPolicy" not in tables(MIXED[:1])


def test_the_document_keeps_its_text_and_loses_its_old_tables() -> None:
    reported = renewed(f"# Title\n\nwords\n\n{SUMMARY}\nold\n", MIXED)
    assert reported.startswith(f"# Title\n\nwords\n\n{SUMMARY}")
    assert "old" not in reported
    assert renewed(reported, MIXED) == reported


def test_a_document_without_a_marker_for_tables_is_refused() -> None:
    with pytest.raises(LabError, match="Summary"):
        renewed("# Title\n", MIXED)


def test_a_spec_of_public_names_gets_an_upstream_that_stays() -> None:
    specs = [
        "DNS configMap nameserver Forward PTR lookup should forward PTR records",
        "DNS configMap nameserver Change",
    ]
    assert [resolver.is_asked(spec) for spec in specs] == [True, False]
    text = resolver.with_upstream(render(Recipe()))
    assert f"forward . {resolver.ADDRESS}\n" in text
    assert "fallthrough in-addr.arpa ip6.arpa\n" in text
    assert merge(Recipe(), text).text == text
    assert parse(resolver.COREFILE).servers
