"""Which of its pairs a routing agent tells."""

from __future__ import annotations

import pytest

from kit.pairs import chosen
from proto.pairs import MAX_PAIRS, GivenUp, Measurement, PairsRequest, PairState

PAIRS = (
    PairState(peer="n3", family=4, model="vxlan", state="taken"),
    PairState(peer="n2", family=6, state="none", why="no address"),
    PairState(
        peer="n2",
        family=4,
        model="host-gw",
        state="given-up",
        given_up=(GivenUp("ipip", "no answer", 7),),
        measured=(Measurement("ipip", "small", answered=False, at=7),),
    ),
)


@pytest.mark.parametrize(
    ("asked", "reported"),
    [
        (PairsRequest(), ["n2/4", "n2/6", "n3/4"]),
        (PairsRequest(nodes=("n1", "n9")), ["n2/4", "n2/6", "n3/4"]),
        (PairsRequest(nodes=("n2",)), None),
        (PairsRequest(peers=("n3",)), ["n3/4"]),
        (PairsRequest(peers=("n9",)), []),
        (PairsRequest(states=("none",)), ["n2/6"]),
        (PairsRequest(states=("none", "given-up"), peers=("n2", "n3")), ["n2/4", "n2/6"]),
    ],
    ids=str,
)
def test_those_are_reported_that_are_asked_for(asked: PairsRequest, reported: list[str] | None) -> None:
    answer = chosen(asked, "n1", PAIRS)
    if reported is None:
        assert answer is None
        return
    assert answer is not None
    assert answer.node == "n1"
    assert [f"{pair.peer}/{pair.family}" for pair in answer.pairs] == reported


def test_what_was_measured_is_reported_where_it_is_asked_for() -> None:
    short, whole = (chosen(PairsRequest(measured=measured), "n1", PAIRS) for measured in (False, True))
    assert short is not None
    assert whole is not None
    assert [(len(pair.given_up), len(pair.measured)) for pair in short.pairs] == [(0, 0)] * 3
    assert whole.pairs[0] == PAIRS[2]


def test_an_answer_has_a_bound_and_counts_what_is_left_out() -> None:
    many = [PairState(peer=f"n{number:05}", family=4) for number in range(MAX_PAIRS + 3)]
    answer = chosen(PairsRequest(), "n1", reversed(many))
    assert answer is not None
    assert (list(answer.pairs), answer.left_out) == (many[:MAX_PAIRS], 3)
