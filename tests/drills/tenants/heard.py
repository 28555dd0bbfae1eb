"""What the mesh told its consumers while a drill ran: events and drops, by when they came."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.labkit import Lab

MOST = 50_000
"""Lines kept of each stream; the oldest go."""


@dataclass(frozen=True, slots=True)
class Received:
    """One line of `airmesh events` or `airmesh flows`."""

    at: float
    """By the wall clock, when it was read here."""
    text: str

    def __str__(self) -> str:
        return f"{time.strftime('%H:%M:%S', time.gmtime(self.at))}.{int(self.at * 1000) % 1000:03} {self.text[:600]}"


@dataclass(slots=True)
class Heard:
    """Both streams, which go on while they are asked. Made by :func:`listening`."""

    events: deque[Received] = field(default_factory=lambda: deque(maxlen=MOST))
    drops: deque[Received] = field(default_factory=lambda: deque(maxlen=MOST))
    first: dict[str, Received] = field(default_factory=dict)
    """The first drop of each kind (:func:`_flow`): it may have left ``drops``."""

    def naming(self, *words: str, since: float, drops: bool = False) -> Received | None:
        """The first line since then that has all the words."""
        lines = [*self.events.copy(), *((*self.first.copy().values(), *self.drops.copy()) if drops else ())]
        found = (one for one in lines if one.at >= since and all(word in one.text for word in words))
        return min(found, key=lambda one: one.at, default=None)

    def near(self, at: float, before: float = 5.0, after: float = 1.0) -> str:
        """The events of that moment, and the drops in short."""
        lines = [str(one) for one in self.events.copy() if at - before <= one.at <= at + after]
        dropped: dict[str, int] = {}
        for one in self.drops.copy():
            if at - before <= one.at <= at + after:
                flow = _flow(one.text)
                dropped[flow] = dropped.get(flow, 0) + 1
        most = sorted(dropped.items(), key=lambda pair: -pair[1])[:20]
        return "\n".join([*lines[-40:], *(f"{count} × dropped {flow}" for flow, count in most)]) or "nothing was told"


def _flow(text: str) -> str:
    try:
        flow: dict[str, Any] = json.loads(text)
    except ValueError:
        return text[:120]
    flow = flow.get("flow", flow.get("event", flow))
    source, destination = (flow.get(f"{end}_name") or flow.get(end) for end in ("source", "destination"))
    return f"{flow.get('reason')} {flow.get('direction')} on {flow.get('node')}: {source} → {destination}"


@contextmanager
def listening(lab: Lab) -> Iterator[Heard]:
    """Follow both streams until the end."""
    heard = Heard()
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUNBUFFERED": "1",
        **lab.observer,
    }
    followers = []
    for into, words in ((heard.events, ("events", "--follow")), (heard.drops, ("flows", "--follow", "--dropped"))):
        first = heard.first if into is heard.drops else {}
        argv = [sys.executable, "-m", "cli", *words, "--output", "json"]
        follower = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
        threading.Thread(target=_read, args=(follower, into, first), daemon=True).start()
        followers.append(follower)
    try:
        time.sleep(1.5)  # both are connected, or have said why not
        assert all(follower.poll() is None for follower in followers), "airmesh events or flows ended at once"
        yield heard
    finally:
        for follower in followers:
            follower.terminate()
            follower.wait(10)


def _read(follower: subprocess.Popen[str], into: deque[Received], first: dict[str, Received]) -> None:
    assert follower.stdout is not None
    for line in follower.stdout:
        received = Received(time.time(), line.rstrip())
        into.append(received)
        if len(first) < MOST:
            first.setdefault(_flow(received.text), received)
