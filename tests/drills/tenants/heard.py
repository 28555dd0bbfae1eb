"""What the mesh told its consumers while a drill ran: events and drops, by when they came."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.labkit import Lab

STAMP = Path(__file__).with_name("stamp.py")
MOST = 50_000
"""Lines kept of each stream; the oldest go."""


@dataclass(frozen=True, slots=True)
class Received:
    """One line of `airmesh events` or `airmesh flows`."""

    at: float
    """By the wall clock, when it was printed."""
    text: str

    def __str__(self) -> str:
        return f"{time.strftime('%H:%M:%S', time.gmtime(self.at))}.{int(self.at * 1000) % 1000:03} {self.text[:600]}"


@dataclass(slots=True)
class Stream:
    """What one command printed, as :mod:`tests.drills.tenants.stamp` keeps it in a file."""

    file: Path
    lines: deque[Received] = field(default_factory=lambda: deque(maxlen=MOST))
    first: dict[str, Received] = field(default_factory=dict)
    """The first line of each kind (:func:`_flow`): it may have left ``lines``."""
    read: int = 0
    """Octets of the file."""

    def now(self) -> deque[Received]:
        """The lines up to this moment."""
        with self.file.open("rb") as written:
            written.seek(self.read)
            whole = written.read().rpartition(b"\n")[0]
        for line in whole.decode().split("\n") if whole else ():
            at, _, text = line.partition(" ")
            received = Received(float(at), text)
            self.lines.append(received)
            if len(self.first) < MOST:
                self.first.setdefault(_flow(text), received)
        self.read += len(whole) + (1 if whole else 0)
        return self.lines


@dataclass(slots=True)
class Heard:
    """Both streams, which go on while they are asked. Made by :func:`listening`."""

    events: Stream
    drops: Stream

    def naming(self, *words: str, since: float, drops: bool = False) -> Received | None:
        """The first line since then that has all the words."""
        lines = [*self.events.now(), *((*self.drops.now(), *self.drops.first.values()) if drops else ())]
        found = (one for one in lines if one.at >= since and all(word in one.text for word in words))
        return min(found, key=lambda one: one.at, default=None)

    def near(self, at: float, before: float = 5.0, after: float = 1.0) -> str:
        """The events of that moment, and the drops in short."""
        lines = [str(one) for one in self.events.now() if at - before <= one.at <= at + after]
        dropped: dict[str, int] = {}
        for one in self.drops.now():
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
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUNBUFFERED": "1",
        **lab.observer,
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        heard = Heard(Stream(folder / "events"), Stream(folder / "drops"))
        followers = [
            stack.enter_context(_following(stream.file, words, environment))
            for stream, words in (
                (heard.events, ("events", "--follow")),
                (heard.drops, ("flows", "--follow", "--dropped")),
            )
        ]
        time.sleep(1.5)  # both are connected, or have said why not
        assert all(follower.poll() is None for follower in followers), "airmesh events or flows ended at once"
        yield heard


@contextmanager
def _following(file: Path, words: tuple[str, ...], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "cli", *words, "--output", "json"]
    stamp = [sys.executable, "-I", str(STAMP)]
    with (
        file.open("wb") as written,
        subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as follower,
        subprocess.Popen(stamp, stdin=follower.stdout, stdout=written),
    ):
        try:
            yield follower
        finally:
            follower.terminate()
            follower.wait(10)
