"""Captures of BGP messages: who wants which peer's, and the messages that wait to be asked for, bounded.

A capture is a queue for whoever asks: it begins with the first question and ends :data:`proto.bgp_capture.LEASE`
seconds after the last one. A message waits as octets and is read when it is told, so one that finds no room costs next
to nothing. Where more come than are asked for, the newer ones are left out and counted. Time is an argument, in
seconds of any clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from proto.bgp import is_named
from proto.bgp_capture import LEASE, MAX_CAPTURES, MAX_MESSAGES, CapturedMessage, CapturedPrefixes
from services.routing.core.bgp.dissector import Passed, dissect

MOST_WAITING = 1000
"""Messages that wait for one capture."""
MOST_WAITING_OCTETS = 1 << 20
ANSWERED_OCTETS = 1 << 17
"""Octets of messages that are read for one answer: some milliseconds of work."""
ANSWERED_TEXT = 1 << 18
"""Characters of one answer, about: a message of the bus has at most a megabyte."""
LONGEST_NAME = 64
"""Characters of a capture's name."""


@dataclass(slots=True)
class Capture:
    """One capture."""

    peer: str
    until: float
    """When it ends unless it is asked for again."""
    waiting: deque[tuple[Passed, int]] = field(default_factory=deque)
    """Messages, each with the number of those before it that were left out."""
    octets: int = 0
    """Of those that wait."""
    answered: int = 0
    """Messages that were answered."""
    missed: int = 0
    """Left out since the last one that waits."""

    def put(self, passed: Passed) -> None:
        """Let a message wait, if there is room."""
        if len(self.waiting) >= MOST_WAITING or self.octets + len(passed.body) > MOST_WAITING_OCTETS:
            self.missed += 1
            return
        self.waiting.append((passed, self.missed))
        self.octets += len(passed.body)
        self.missed = 0

    def take(self) -> tuple[tuple[CapturedMessage, ...], int]:
        """The next messages, and how many were left out after them; those that find no room in an answer wait on."""
        found: list[CapturedMessage] = []
        octets, room = ANSWERED_OCTETS, ANSWERED_TEXT
        while self.waiting and len(found) < MAX_MESSAGES and octets > 0 and room > 0:
            passed, missed = self.waiting.popleft()
            self.answered += 1
            found.append(dissect(passed, self.answered, missed))
            self.octets -= len(passed.body)
            octets -= len(passed.body)
            room -= _size(found[-1])
        if self.waiting:
            return tuple(found), 0
        missed, self.missed = self.missed, 0
        return tuple(found), missed


class Captures:
    """All of one agent."""

    def __init__(self) -> None:
        self._captures: dict[str, Capture] = {}

    def __len__(self) -> int:
        """Those that go on, as of the last call with a time."""
        return len(self._captures)

    def ask(self, now: float, name: str, peer: str) -> Capture | None:
        """The capture of this name, which goes on from now on; None: there are as many others as there may be."""
        self.expire(now)
        name = name[:LONGEST_NAME]
        found = self._captures.get(name)
        if found is None:
            if len(self._captures) >= MAX_CAPTURES:
                return None
            found = self._captures[name] = Capture(peer, now + LEASE)
        found.until = now + LEASE
        return found

    def put(self, now: float, passed: Passed) -> None:
        """A message of a session, for every capture that wants it."""
        self.expire(now)
        for capture in self._captures.values():
            if is_named(passed.peer, capture.peer):
                capture.put(passed)

    def expire(self, now: float) -> None:
        """Captures end that nobody has asked for."""
        for name in [name for name, one in self._captures.items() if one.until <= now]:
            del self._captures[name]

    def want(self, peer: str) -> bool:
        """Some capture is of this peer."""
        return any(is_named(peer, capture.peer) for capture in self._captures.values())


def _size(message: CapturedMessage) -> int:
    parts = (*message.withdrawn, *message.reachable)
    texts = [fault.reason for fault in message.faults]
    texts += [value for part in parts for _, value in part.attributes]
    texts += message.open.capabilities if message.open is not None else ()
    return 256 + sum(map(_size_of_prefixes, parts)) + sum(48 + len(one) for one in texts)


def _size_of_prefixes(part: CapturedPrefixes) -> int:
    return 64 + 48 * len(part.prefixes)
