"""Questions to `policy`: what can have no answer is refused by name, and many of them hold nobody up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chassis.faults import Refused
from proto.policy import Revision
from proto.requests import ExplainMany, ExplainRequest
from services.policy.api import BREATH, MAX_QUESTIONS, MAX_TEXT, Api
from services.policy.core.graph import Graph

SEVENTH = Revision("e", 7)
WORLD = ExplainRequest(source="192.0.2.1", destination="2001:db8::1", port=443, protocol=6)
UNKNOWN = ExplainRequest(source="shop/web", destination="192.0.2.1", port=443, protocol=6)


def api(compiled: Revision | None = SEVENTH) -> tuple[Api, Any]:
    """An empty cluster that was compiled up to a revision, and what it is compiled by."""
    compiler = SimpleNamespace(lock=asyncio.Lock(), compiled_up_to=compiled, generation=0)
    return Api(Graph(), cast("Any", compiler)), compiler


def ask(**change: Any) -> ExplainRequest:
    fields: dict[str, Any] = {"source": "192.0.2.1", "destination": "192.0.2.2", "port": 443, "protocol": 6}
    return ExplainRequest(**(fields | change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": ""}, "source has 0 characters: give namespace/pod or an address"),
        ({"destination": ""}, "destination has 0 characters"),
        ({"source": "x" * (MAX_TEXT + 1)}, f"source has {MAX_TEXT + 1} characters"),
        ({"destination": "x" * 100_000}, "destination has 100000 characters"),
        ({"port": -1}, "port -1 is not within 0 to 65535"),
        ({"port": 65536}, "port 65536 is not within 0 to 65535"),
        ({"protocol": -1}, "protocol -1 is not within 0 to 255"),
        ({"protocol": 256}, "protocol 256 is not within 0 to 255 (6 TCP, 17 UDP, 132 SCTP)"),
    ],
)
async def test_a_question_without_an_answer_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    asked, _ = api()
    for call in (asked.explain(ask(**change)), asked.matrix(ExplainMany((WORLD, ask(**change))))):
        with pytest.raises(Refused) as refused:
            await call
        assert (refused.value.code, refused.value.retry) == ("malformed", False)
        assert said in refused.value.message


@pytest.mark.parametrize(
    "change", [{"port": 0}, {"port": 65535}, {"protocol": 0}, {"protocol": 255}, {"protocol": 58}, {"source": "::1"}]
)
async def test_the_bounds_belong_to_what_is_answered(change: dict[str, Any]) -> None:
    asked, _ = api()
    answer = await asked.explain(ask(**change))
    assert answer.revision == "e:7"


@pytest.mark.parametrize(
    "end", ["shop/web", "x" * MAX_TEXT, "10.0.0.256", "a/b/c", "/", "\x00", "shop/web:80", "\ud800"]
)
async def test_an_end_that_is_not_there_is_reported_alone_and_denied_among_many(end: str) -> None:
    asked, _ = api()
    with pytest.raises(Refused) as refused:
        await asked.explain(ask(source=end))
    assert refused.value.code == "not-found"
    answers = (await asked.matrix(ExplainMany((WORLD, ask(destination=end), WORLD)))).answers
    assert [answer.allowed for answer in answers] == [True, False, True]
    assert answers[1].reasons == (refused.value.message,)


async def test_before_the_first_compile_nothing_is_answered_and_it_helps_to_ask_again() -> None:
    asked, compiler = api(None)
    for call in (asked.explain(WORLD), asked.matrix(ExplainMany((WORLD,)))):
        with pytest.raises(Refused) as refused:
            await call
        assert (refused.value.code, refused.value.retry) == ("not-synced", True)
    compiler.compiled_up_to = Revision("e", 1)
    assert (await asked.explain(WORLD)).revision == "e:1"


@pytest.mark.parametrize("count", [0, 1, MAX_QUESTIONS])
async def test_as_many_as_the_contract_has_are_answered_in_their_order(count: int) -> None:
    asked, _ = api()
    questions = tuple(UNKNOWN if number % 3 == 1 else WORLD for number in range(count))
    answers = (await asked.matrix(ExplainMany(questions))).answers
    assert [answer.allowed for answer in answers] == [number % 3 != 1 for number in range(count)]


async def test_one_more_is_refused_before_any_is_looked_at() -> None:
    asked, compiler = api()
    async with compiler.lock:  # it would wait here
        with pytest.raises(Refused) as refused:
            await asked.matrix(ExplainMany((WORLD,) * (MAX_QUESTIONS + 1)))
    assert refused.value.code == "too-many"
    assert f"{MAX_QUESTIONS + 1} questions at once; ask at most {MAX_QUESTIONS}" in refused.value.message


async def test_many_questions_let_others_have_their_turn() -> None:
    asked, _ = api()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    heart = asyncio.create_task(beat())
    await asked.matrix(ExplainMany((WORLD,) * (BREATH * 10)))
    heart.cancel()
    assert beats >= 10


async def test_questions_wait_while_the_graph_is_between_two_states() -> None:
    asked, compiler = api()
    async with compiler.lock:
        waiting = asyncio.create_task(asked.explain(WORLD))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        compiler.compiled_up_to = Revision("e", 9)
    assert (await waiting).revision == "e:9"


async def test_what_was_prepared_for_one_graph_is_not_used_for_the_next() -> None:
    asked, compiler = api()
    await asked.explain(WORLD)
    first = asked._explainer
    await asked.explain(WORLD)
    assert asked._explainer is first
    compiler.generation += 1
    await asked.explain(WORLD)
    assert asked._explainer is not None
    assert asked._explainer is not first
    assert asked._explainer[0] == compiler.generation
