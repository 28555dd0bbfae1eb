"""State lists: a core is fed one state after another in every order of events, and must end where its oracle does.

A state is the whole of a core's inputs, values by key. A list of states becomes a script of events (a value that is
put, a key that goes), of flushes and of settlings, by two choices: an expander says which states follow each other, a
delivery says in which order the events between two of them come. Flushes fall at random. At each settling the core's
output is compared with what the oracle makes of the present state alone; so whatever order, repetition or half-done
work the core saw, it must have left no trace.

The model is the calculation graph's tests of Calico. The seed is the parameter of the test: it picks the delivery and
all chance. A script that fails is cut down to the few steps that still fail, and those are what the failure shows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from random import Random
from typing import Any, Generic, TypeVar

import pytest

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

SHRINKING_RUNS = 400


class Driver(Generic[K, V]):
    """The core under test, fed as its shell feeds it.  A test makes one of its own for its core."""

    def put(self, key: K, value: V | None) -> None:
        """One event: the key has this value now, or is gone."""
        raise NotImplementedError

    def flush(self) -> None:
        """What the shell does when its loop wakes, with more events to come.  Cores that act at once have nothing."""

    def settle(self) -> object:
        """Do all that is to do, and give the output that the oracle gives for the same state."""
        raise NotImplementedError

    def check(self, present: Mapping[K, V]) -> None:
        """What must hold after each flush, however far the events of a change have come.  Raises AssertionError."""


@dataclass(frozen=True)
class Put(Generic[K, V]):
    key: K
    value: V | None


@dataclass(frozen=True)
class Flush:
    pass


@dataclass(frozen=True)
class Settle:
    pass


Event = Put[K, V]
Step = Put[K, V] | Flush | Settle
State = Mapping[K, V]
Oracle = Callable[[dict[K, V]], object]


# Which states follow each other.
EXPANDERS: dict[str, Callable[[list[Any], Random], list[Any]]] = {
    "in order": lambda states, _: states,
    "reversed": lambda states, _: states[::-1],
    "shuffled": lambda states, chance: chance.sample(states, len(states)),
    "empty between": lambda states, _: list(chain.from_iterable((state, {}) for state in states)),
    "twice over": lambda states, _: [*chain.from_iterable((state, state) for state in states), *states],
    "there and back": lambda states, _: list(chain.from_iterable((state, states[0]) for state in states)),
    "only the last": lambda states, _: states[-1:],
}


def kind_of(key: object) -> object:
    """``("pod", …)`` and ``pod.…`` are of the kind ``pod``; a key of another form is of its type's kind."""
    if isinstance(key, tuple) and key:
        return key[0]
    return key.partition(".")[0] if isinstance(key, str) else type(key).__name__


def by_kind(events: Sequence[Event[K, V]], chance: Random) -> list[list[Event[K, V]]]:
    groups: dict[object, list[Event[K, V]]] = {}
    for event in events:
        groups.setdefault(kind_of(event.key), []).append(event)
    return chance.sample(list(groups.values()), len(groups))


def interleaved(events: Sequence[Event[K, V]], chance: Random) -> list[Event[K, V]]:
    return [event for row in zip_longest(*by_kind(events, chance)) for event in row if event is not None]


def shuffled(events: Sequence[T], chance: Random) -> list[T]:
    return chance.sample(list(events), len(events))


# In which order the events of a change come.
DELIVERIES: dict[str, Callable[[list[Any], Random], list[Any]]] = {
    "removals first": lambda events, _: sorted(events, key=lambda event: event.value is not None),
    "removals last": lambda events, _: sorted(events, key=lambda event: event.value is None),
    "shuffled": shuffled,
    "each twice": lambda events, chance: shuffled([*events, *events], chance),
    "kind after kind": lambda events, chance: [event for group in by_kind(events, chance) for event in group],
    "kinds interleaved": interleaved,
}


def difference(before: State[K, V], after: State[K, V]) -> list[Event[K, V]]:
    """The events that lead from one state to another: what goes, then what comes or changes."""
    gone = [Put[K, V](key, None) for key in before if key not in after]
    return gone + [Put[K, V](key, value) for key, value in after.items() if key not in before or before[key] != value]


def script(states: Sequence[State[K, V]], expander: str, seed: int) -> list[Step[K, V]]:
    """The steps that lead a core through ``states``.

    Beside the events of each change it holds what a view repeats after a break (values that are there already), keys
    that go though they never were, and values of other states that pass before a key has its own.
    """
    chance = Random(f"{expander} {seed}")
    deliver = DELIVERIES[list(DELIVERIES)[seed % len(DELIVERIES)]]
    repeats, detours, flushes = (chance.choice((0.0, 0.2, 1.0)), chance.choice((0.0, 0.3)), chance.choice((0, 0.2, 1)))
    pool = [(key, value) for state in states for key, value in state.items()]
    steps: list[Step[K, V]] = []
    before: State[K, V] = {}
    for after in EXPANDERS[expander](list(states), chance):
        events: list[Event[K, V]] = difference(before, after)
        events += [Put(key, value) for key, value in after.items() if chance.random() < repeats]
        events += [
            Put(key, None) for key, _ in pool if key not in before and key not in after and chance.random() < 0.1
        ]
        strays = [Put[K, V](key, chance.choice((value, None))) for key, value in pool if chance.random() < detours]
        delivered = [*shuffled(strays, chance), *deliver(events, chance)]
        passed = {stray.key for stray in strays}
        last = {event.key for event in events}
        delivered += [Put(key, after.get(key)) for key in passed - last]
        for event in delivered:
            steps.append(event)
            if chance.random() < flushes:
                steps.append(Flush())
        steps.append(Settle())
        before = after
    return steps


class Disagreement(AssertionError):
    """The core's output is not what the oracle makes of the present state."""


def shown(found: object, expected: object) -> str:
    """Where two outputs differ: of mappings and sets only the differing part."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        absent = "absent"
        keys = [key for key in {**found, **expected} if found.get(key, absent) != expected.get(key, absent)]
        return "\n".join(
            f"  {key!r}:\n    core   {found.get(key, absent)!r}\n    oracle {expected.get(key, absent)!r}"
            for key in keys
        )
    if isinstance(found, set | frozenset) and isinstance(expected, set | frozenset):
        return f"  only the core:   {found - expected!r}\n  only the oracle: {expected - found!r}"
    return f"  core   {found!r}\n  oracle {expected!r}"


def run(make: Callable[[], Driver[K, V]], oracle: Oracle[K, V], steps: Sequence[Step[K, V]]) -> None:
    """Lead a new core through the steps."""
    driver, present = make(), dict[K, V]()
    for step in steps:
        if isinstance(step, Put):
            driver.put(step.key, step.value)
            if step.value is None:
                present.pop(step.key, None)
            else:
                present[step.key] = step.value
        elif isinstance(step, Flush):
            driver.flush()
            driver.check(present)
        else:
            found, expected = driver.settle(), oracle(dict(present))
            if found != expected:
                raise Disagreement(shown(found, expected))
            driver.check(present)


def failure(make: Callable[[], Driver[K, V]], oracle: Oracle[K, V], steps: Sequence[Step[K, V]]) -> Exception | None:
    try:
        run(make, oracle, steps)
    except Exception as error:
        return error
    return None


def shortest(
    make: Callable[[], Driver[K, V]], oracle: Oracle[K, V], steps: Sequence[Step[K, V]], error: Exception
) -> tuple[list[Step[K, V]], Exception]:
    """A part of the steps that fails in the same way, and how it fails: runs of steps are left out, then single ones.

    Any part of a script is a script, since the oracle reads the state that the part itself leads to.
    """
    kept, runs, size = list(steps), 0, len(steps) // 2
    while size and runs < SHRINKING_RUNS:
        at = 0
        while at < len(kept) and runs < SHRINKING_RUNS:
            fewer = kept[:at] + kept[at + size :]
            runs += 1
            found = failure(make, oracle, fewer)
            if type(found) is type(error):
                kept, error = fewer, found
            else:
                at += size
        size //= 2
    return kept, error


def follow(
    make: Callable[[], Driver[K, V]], oracle: Oracle[K, V], states: Sequence[State[K, V]], expander: str, seed: int
) -> None:
    """Lead a new core through the states, as the expander and the seed have it.

    Raises:
        AssertionError: The shortest steps found that fail, and how.
    """
    steps = script(states, expander, seed)
    error = failure(make, oracle, steps)
    if error is None:
        return
    few, error = shortest(make, oracle, steps, error)
    trail = "\n".join(f"  {step!r}" for step in few)
    raise AssertionError(f"{expander}, seed {seed}: {error!r}\n{error}\nafter {len(few)} steps:\n{trail}") from error


def every_order(seeds: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parametrize a test with each expander and that many seeds (six give every delivery once)."""

    def parametrized(test: Callable[..., None]) -> Callable[..., None]:
        for name, values in (("seed", range(seeds)), ("expander", EXPANDERS)):
            test = pytest.mark.parametrize(name, values)(test)
        return test

    return parametrized
