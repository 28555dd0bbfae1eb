"""The diagnosis: causes before consequences, agents that are silent, clocks that are apart."""

from __future__ import annotations

from itertools import permutations

import pytest

from cli.faults import Usage
from cli.reports.doctor import Answered, Reported, causes, diagnosis, question
from proto.findings import DoctorRequest, Expected, Finding, Findings, Observed, Unchecked, pair_name

EXPECTED = ("dns", "routing-n1", "routing-n2", "dataplane-n1")


def finding(code: str, about: str, precedence: int, *affects: str) -> Finding:
    return Finding(
        code=code,
        fault="nodes-apart",
        about=about,
        cause="because",
        expected=Expected(text="this"),
        observed=(Observed(where="route", text="that"),),
        fixes=(),
        affects=affects,
        precedence=precedence,
    )


def answered(user: str, *found: Finding, at_ms: int = 1_000_000) -> Answered:
    return Answered(user=user, findings=Findings(at_ms=at_ms, findings=found), asked_ms=1_000_000, came_ms=1_000_100)


def codes(*found: Finding) -> dict[str, list[str]]:
    joined = causes(Reported(agent="routing-n1", finding=one) for one in found)
    return {one.finding.code: [under.finding.code for under in one.consequences] for one in joined}


def test_a_cause_has_its_consequences_beneath_it() -> None:
    pair = pair_name("n2", "n1")
    assert pair == "Pair n1 n2"
    lost, network = finding("lost", pair, 90), finding("fabric", pair, 30)
    rule = finding("firewall", pair, 20)
    assert codes(lost, network, rule) == {"firewall": ["fabric", "lost"]}
    assert codes(lost, finding("other", "Pair n1 n3", 20)) == {"other": [], "lost": []}


def test_what_is_about_a_node_explains_its_pairs_and_what_it_affects() -> None:
    silent = finding("silent", "Node n1", 10)
    assert codes(finding("lost", "Pair n1 n2", 90), silent) == {"silent": ["lost"]}
    assert codes(finding("lost", "Pair n11 n2", 90), silent) == {"silent": [], "lost": []}
    slow = finding("slow", "Service shop/web", 90)
    assert codes(slow, finding("full", "Node n1", 20, "Service shop/web")) == {"full": ["slow"]}


def test_of_two_of_one_precedence_neither_explains_the_other() -> None:
    assert codes(finding("a", "Node n1", 20), finding("b", "Node n1", 20)) == {"a": [], "b": []}


def test_what_lies_between_two_nodes_is_one_cause_seen_from_both_ends() -> None:
    ends = [finding("lost", pair_name("n1", "n2"), precedence) for precedence in (30, 30)]
    assert codes(*ends) == {"lost": ["lost"]}
    report = causes([Reported(agent=node, finding=finding("set", pair_name("n1", "n2"), 20)) for node in ("n1", "n2")])
    assert [(one.agent, one.consequences) for one in report] == [("n1", ()), ("n2", ())]


def test_copies_of_a_service_are_one_agent() -> None:
    """Whichever answers last: what both find counts once, and what one could not look at the other did."""
    found, missed = finding("a", "Service shop/web", 50), Unchecked(check="a, b", why="not compiled yet")
    other = finding("b", "Service shop/web", 50)
    first = Findings(at_ms=1_000_000, findings=(found,), checked=("a", "b"))
    second = Findings(at_ms=1_000_000, findings=(found, other), checked=("b", "c"))
    third = Findings(at_ms=1_000_000, unchecked=(missed, Unchecked(check="d", why="no")))
    for order in permutations((first, second, third)):
        copies = [Answered(user="dns", findings=one, asked_ms=1_000_000, came_ms=1_000_100) for one in order]
        report = diagnosis(DoctorRequest(), copies, ("dns",), 1000)
        assert sorted(cause.finding.code for cause in report.causes) == ["a", "b"]
        assert (report.agents, report.checked) == (("dns",), ("a", "b", "c"))
        assert [one.check for one in report.unchecked] == ["d"]


def test_an_agent_that_does_not_answer_is_a_finding() -> None:
    report = diagnosis(DoctorRequest(), [answered("dns"), answered("routing-n1")], EXPECTED, 1000)
    assert not report.well
    found = [(one.finding.code, one.finding.about) for one in report.causes]
    assert found == [("agent-silent", "Node n1"), ("agent-silent", "Node n2")]
    assert "dataplane" in report.causes[0].finding.cause


def test_where_all_answer_and_find_nothing_it_is_well() -> None:
    report = diagnosis(DoctorRequest(), [answered(user) for user in EXPECTED], EXPECTED, 1000)
    assert report.well
    assert report.causes == ()


def test_a_clock_that_is_apart() -> None:
    def found(off: int) -> list[str]:
        answers = [answered(user) for user in EXPECTED[:3]] + [answered("dataplane-n1", at_ms=1_000_000 + off)]
        return [one.finding.cause for one in diagnosis(DoctorRequest(), answers, EXPECTED, 1000).causes]

    assert found(1_500) == []
    assert found(-1_500) == []
    assert found(60_000) == ["the clock of node n1 is 60.0 s ahead of the others"]
    assert found(-60_000) == ["the clock of node n1 is 60.0 s behind the others"]


def test_what_could_not_be_looked_at_is_shown_and_is_no_finding() -> None:
    missed = Findings(at_ms=1_000_000, unchecked=(Unchecked(check="firewall-drops", why="no nft"),))
    answers = [answered(user) for user in EXPECTED[1:]]
    answers.append(Answered(user="dns", findings=missed, asked_ms=1_000_000, came_ms=1_000_100))
    report = diagnosis(DoctorRequest(), answers, EXPECTED, 1000)
    assert report.well
    assert [(one.agent, one.why) for one in report.unchecked] == [("dns", "no nft")]


def test_what_can_be_asked() -> None:
    assert question() == DoctorRequest()
    assert question("dns") == DoctorRequest(kind="dns")
    assert question("node", "n1") == DoctorRequest(kind="node", name="n1")
    assert question("service", "shop/web") == DoctorRequest(kind="service", name="shop/web")
    asked = question("shop/a", "shop/b:80")
    assert asked is not None
    assert (asked.kind, asked.source, asked.destination, asked.port) == ("connection", "shop/a", "shop/b", 80)
    assert question("web") is None
    with pytest.raises(Usage, match="names no port"):
        question("shop/a", "shop/b")
