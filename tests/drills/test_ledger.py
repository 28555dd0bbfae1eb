"""The ledger finds what it is there to find: a drill's judge that cannot say no would be none."""

from __future__ import annotations

from tests.drills.ledger import Ledger


def written(*lines: tuple[float, str, str, str]) -> Ledger:
    """Lines of (time, ``+`` given or ``-`` given back, holder, address or owner/address)."""
    ledger = Ledger()
    for at, what, holder, address in lines:
        owner, _, plain = address.rpartition("/")
        if what == "+":
            ledger.given(at, holder, [plain], owner)
        else:
            ledger.given_back(at, holder)
    return ledger


def test_two_holders_at_once_are_found_and_one_after_the_other_are_not() -> None:
    good = written((1, "+", "a", "x"), (2, "-", "a", ""), (3, "+", "b", "x"))
    assert (good.held_twice(), good.too_soon(1), good.reused()) == ([], [], 1)
    assert len(good.too_soon(1.5)) == 1
    bad = written((1, "+", "a", "x"), (3, "+", "b", "x"), (4, "-", "a", ""))
    assert len(bad.held_twice()) == 1
    unended = written((1, "+", "a", "x"), (3, "+", "c", "y"), (9, "+", "b", "x"))
    assert len(unended.held_twice()) == 1


def test_a_third_holder_inside_a_long_hold_is_found() -> None:
    lines = [(1, "+", "a", "x"), (2, "+", "b", "x"), (3, "-", "b", ""), (4, "+", "c", "x"), (9, "-", "a", "")]
    assert len(written(*lines).held_twice()) == 2


def test_the_same_answer_again_is_no_second_hold_and_another_answer_is_odd() -> None:
    same = written((1, "+", "a", "x"), (2, "+", "a", "x"))
    assert (same.held_twice(), same.odd, same.reused()) == ([], [], 0)
    assert len(written((1, "+", "a", "x"), (2, "+", "a", "y")).odd) == 1


def test_an_owner_keeps_its_address_without_rest_and_another_owner_does_not_get_it() -> None:
    kept = written((1, "+", "a", "o/x"), (2, "-", "a", ""), (2.1, "+", "b", "o/x"))
    assert (kept.too_soon(1), kept.moved()) == ([], [])
    lost = written((1, "+", "a", "o/x"), (2, "-", "a", ""), (2.1, "+", "b", "o/y"), (2.2, "+", "c", "p/x"))
    assert (len(lost.too_soon(1)), len(lost.moved())) == (1, 1)
