"""Findings come and go with the present state: two looks say so, and a look that could not check says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kit.standing import News, Standing, key_of
from proto.findings import MAX_FINDINGS, Expected, Finding


def finding(about: str = "Node n1", *, cause: str = "so", since: int = 0, change: str = "") -> Finding:
    return Finding(
        code="route-missing",
        fault="nodes-apart",
        about=about,
        cause=cause,
        expected=Expected(text="this"),
        observed=(),
        fixes=(),
        since=since,
        change=change,
    )


ONE = finding()


def look(standing: Standing, found: Iterable[Finding], now: int, *, unknown: bool = False) -> News:
    return standing.look(found, now, unknown=lambda _: unknown, change=lambda one: f"before {one.about}")


def test_it_comes_at_the_second_look_and_is_dated_by_the_first() -> None:
    standing = Standing()
    assert look(standing, [ONE], 100) == News()
    assert (standing.lasting, standing.settled) == ((), False)
    (came,) = look(standing, [finding(cause="now so")], 110).came
    assert (came.since, came.change, came.cause) == (100, "before Node n1", "now so")
    assert (standing.lasting, standing.settled) == ((came,), True)
    assert standing.dated(ONE).since == 100
    assert standing.dated(finding("Node n2")).since == 0


def test_what_is_seen_once_neither_comes_nor_goes() -> None:
    standing = Standing()
    assert look(standing, [ONE], 1) == look(standing, [], 2) == News()
    assert standing.settled


def test_it_is_gone_when_two_looks_have_missed_it() -> None:
    standing = Standing()
    look(standing, [ONE], 1)
    look(standing, [ONE], 2)
    assert look(standing, [], 3) == News()
    assert (len(standing.lasting), standing.settled) == (1, False)
    assert look(standing, [ONE], 4) == News(), "it was there all the time"
    assert look(standing, [], 5) == News()
    assert [one.since for one in look(standing, [], 6).gone] == [1]
    assert standing.lasting == ()


def test_a_look_that_could_not_check_leaves_it_as_it_was() -> None:
    standing = Standing()
    look(standing, [ONE], 1)
    look(standing, [ONE], 2)
    for now in range(3, 9):
        assert look(standing, [], now, unknown=True) == News()
    assert len(standing.lasting) == 1


def test_what_a_check_knows_of_since_when_comes_first() -> None:
    standing = Standing()
    look(standing, [finding(since=7, change="a restart")], 100)
    (came,) = look(standing, [finding(since=7, change="a restart")], 110).came
    assert (came.since, came.change) == (7, "a restart")


def test_it_keeps_no_more_than_fit_an_answer() -> None:
    standing = Standing()
    many = [finding(f"Node n{number}") for number in range(MAX_FINDINGS + 5)]
    look(standing, many, 1)
    assert len(look(standing, many, 2).came) == MAX_FINDINGS
    assert len(standing.lasting) == MAX_FINDINGS


@given(st.lists(st.frozensets(st.sampled_from("abc")), max_size=12))
def test_what_lasts_is_what_came_and_is_not_gone(looks: list[frozenset[str]]) -> None:
    """By an oracle that sees the whole history: two in a row decide, and nothing else changes it."""
    standing, reported = Standing(), set[str]()
    for now, seen in enumerate(looks):
        news = look(standing, [finding(f"Node {name}") for name in seen], now)
        came, gone = ({one.about[-1] for one in some} for some in (news.came, news.gone))
        assert not came & reported
        assert gone <= reported
        reported = (reported | came) - gone
        wanted = {name for name in "abc" if _lasts([name in one for one in looks[: now + 1]])}
        assert reported == wanted == {key_of(one)[1][-1] for one in standing.lasting}


def _lasts(seen: list[bool]) -> bool:
    """What the last two looks in a row that agree have said."""
    agreed = [one for one, other in pairwise(seen) if one == other]
    return bool(agreed) and agreed[-1]
