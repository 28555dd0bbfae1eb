"""State machines as tables: (state, event) → (next state, action); what the table does not hold is an error.

The table is data, so it can be printed beside its RFC and checked for holes; actions are values that the caller carries
out, the machine itself does nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)
E = TypeVar("E", bound=Hashable)
A = TypeVar("A")


class NoTransition(Exception):
    """The table has no entry for this state and event."""

    def __init__(self, state: object, event: object) -> None:
        super().__init__(f"no transition from {state} on {event}")
        self.state = state
        self.event = event


class Table(Generic[S, E, A]):
    """An immutable table of transitions. ``final`` states have no way out."""

    def __init__(self, transitions: Mapping[tuple[S, E], tuple[S, A]], final: Iterable[S] = ()) -> None:
        self._transitions = dict(transitions)
        self._final = frozenset(final)
        leaving = {state for state, _ in self._transitions} & self._final
        if leaving:
            raise ValueError(f"final states with a way out: {sorted(map(str, leaving))}")

    def step(self, state: S, event: E) -> tuple[S, A]:
        """Next state and action; raises :class:`NoTransition`."""
        try:
            return self._transitions[state, event]
        except KeyError:
            raise NoTransition(state, event) from None

    def missing(self, states: Iterable[S], events: Iterable[E]) -> tuple[tuple[S, E], ...]:
        """Pairs of states that are not final and events that the table says nothing about."""
        wanted = tuple(events)
        return tuple(
            (state, event)
            for state in states
            if state not in self._final
            for event in wanted
            if (state, event) not in self._transitions
        )

    def reachable(self, start: S) -> frozenset[S]:
        """All states that some sequence of events leads to."""
        found = {start}
        todo = [start]
        while todo:
            state = todo.pop()
            for (source, _), (target, _) in self._transitions.items():
                if source == state and target not in found:
                    found.add(target)
                    todo.append(target)
        return frozenset(found)
