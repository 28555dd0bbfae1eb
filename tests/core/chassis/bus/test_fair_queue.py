"""Whose request is next: nobody goes without because of what others ask."""

from __future__ import annotations

import random

from chassis.bus.fair_queue import FairQueue


def queue(at_once: int = 8, each: int = 2, waiting: int = 3, waiting_bytes: int = 100) -> FairQueue[int]:
    return FairQueue(at_once=at_once, each=each, waiting=waiting, waiting_bytes=waiting_bytes)


def start(made: FairQueue[int]) -> list[str]:
    started: list[str] = []
    while (one := made.next()) is not None:
        started.append(one[0])
    return started


def test_past_its_own_bound_one_is_refused_and_the_other_is_served() -> None:
    made = queue()
    taken = []
    for number in range(50):
        taken.append(made.offer("thief", number, 1))
        start(made)
    assert sum(taken) == 5, "two under way, three behind them"
    assert made.offer("honest", 0, 1)
    assert start(made) == ["honest"]


def test_when_all_slots_are_taken_the_next_goes_to_who_has_least() -> None:
    made = queue()
    for thief in "abcd":
        for number in range(5):
            made.offer(thief, number, 1)
            start(made)
    assert made.offer("honest", 0, 1)
    assert start(made) == []
    made.done("a")
    assert start(made) == ["honest"]


def test_large_requests_do_not_wait_in_heaps() -> None:
    made = queue()
    for number in range(2):
        made.offer("thief", number, 90)
        start(made)
    assert made.offer("thief", 3, 90)
    assert not made.offer("thief", 4, 90)


def test_whatever_comes_and_ends_all_that_was_taken_is_answered_once() -> None:
    chance = random.Random(7)
    for _ in range(200):
        made = queue(at_once=chance.randint(1, 6), each=chance.randint(1, 3), waiting=chance.randint(0, 4))
        taken: list[int] = []
        answered: list[int] = []
        running: list[str] = []

        def begin(made: FairQueue[int] = made, running: list[str] = running, answered: list[int] = answered) -> None:
            while (one := made.next()) is not None:
                running.append(one[0])
                answered.append(one[1])

        for number in range(100):
            if made.offer(chance.choice("abc"), number, 1):
                taken.append(number)
            if running and chance.random() < 0.5:
                made.done(running.pop(chance.randrange(len(running))))
            begin()
        while running:
            made.done(running.pop())
            begin()
        assert sorted(answered) == taken
        assert made.idle
