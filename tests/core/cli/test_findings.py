"""`airmesh doctor --watch`: a line when a finding comes or is gone, nothing while all stays as it is."""

from __future__ import annotations

from cli.reports.doctor import Answered, diagnosis
from cli.reports.findings import Watched, WatchedFinding, line
from proto.findings import DoctorRequest, Expected, Finding, Findings

AGENTS = ("dns", "routing-n1")


def finding(code: str = "route-missing", about: str = "Node n1", *, precedence: int = 40, change: str = "") -> Finding:
    return Finding(
        code=code,
        fault="nodes-apart",
        about=about,
        cause="because",
        expected=Expected(text="this"),
        observed=(),
        fixes=(),
        since=900,
        change=change,
        precedence=precedence,
    )


def take(watched: Watched, at: int, **by_agent: tuple[Finding, ...]) -> list[tuple[str, str, str]]:
    """What is lines when these agents (``routing_n1``) answer with these findings."""
    answers = [
        Answered(
            user=agent.replace("_", "-"),
            findings=Findings(at_ms=1, findings=found),
            asked_ms=at * 1000,
            came_ms=at * 1000,
        )
        for agent, found in by_agent.items()
    ]
    report = diagnosis(DoctorRequest(standing=True), answers, AGENTS, at)
    return [(one.state, one.agent, one.finding.code) for one in watched.take(report)]


def test_what_lasts_when_the_watch_begins_comes_and_goes() -> None:
    watched, one, other = Watched(), finding(), finding("firewall-drops", "Pair n1 n2")
    assert take(watched, 1000, dns=(), routing_n1=(one,)) == []
    assert take(watched, 1003, dns=(), routing_n1=(one, other)) == [("lasts", "routing-n1", "route-missing")]
    assert take(watched, 1006, dns=(), routing_n1=(one, other)) == [("came", "routing-n1", "firewall-drops")]
    assert take(watched, 1009, dns=(), routing_n1=(other,)) == []
    assert take(watched, 1012, dns=(), routing_n1=(other,)) == [("gone", "routing-n1", "route-missing")]
    assert take(watched, 1015, dns=(), routing_n1=(other,)) == []


def test_of_an_agent_that_is_silent_nothing_is_gone() -> None:
    watched, one = Watched(), finding()
    for at in (1000, 1003):
        take(watched, at, dns=(), routing_n1=(one,))
    assert take(watched, 1006, dns=()) == [], "it may be late"
    assert take(watched, 1009, dns=()) == [("came", "", "agent-silent")]
    assert take(watched, 1012, dns=()) == []
    assert take(watched, 1015, dns=(), routing_n1=(one,)) == []
    assert take(watched, 1018, dns=(), routing_n1=(one,)) == [("gone", "", "agent-silent")]


def test_a_line_says_what_it_follows_from_and_what_changed_before() -> None:
    watched = Watched()
    cause, under = finding(precedence=10), finding("path-mtu-small", "Pair n1 n2", change="IPPool default was written")
    report = diagnosis(
        DoctorRequest(standing=True),
        [
            Answered(user=user, findings=Findings(at_ms=1, findings=found), asked_ms=0, came_ms=0)
            for user, found in (("dns", ()), ("routing-n1", (under, cause)))
        ],
        AGENTS,
        1000,
    )
    watched.take(report)
    lines = watched.take(report)
    assert [(one.finding.code, one.follows) for one in lines] == [
        ("route-missing", ""),
        ("path-mtu-small", "route-missing"),
    ]
    assert words(lines[1]).endswith(
        "since 1 min 40 s ago, after: IPPool default was written, follows from route-missing"
    )
    assert words(lines[0]).startswith("12:00:00 lasts route-missing Node n1 because since")


def words(one: WatchedFinding) -> str:
    return " ".join(cell.text for cell in line("12:00:00", one))
