"""A thread that sends the KEEPALIVEs of BGP sessions while the event loop is late.

A peer ends a session when nothing has come for the hold time, 9 s with settings that notice failures soon. A loop that
shares its thread with all other work of an agent can be held for longer than that. The loop sends KEEPALIVEs itself as
long as it is on time. This thread sends one, by the connection's outbox, only where nothing was sent for longer than
the loop ever waits. It reads nothing and decides nothing: a peer that is silent ends its session by the loop's timers,
after all that has come was read. Another process would stand what holds Python's lock for seconds, too, but each
connection's unsent octets would have to be handed to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from services.routing.bgp.outbox import Outbox
from services.routing.core.bgp.codec.messages import keepalive

LATE = 1.1
"""Times a third of the hold time that may pass without a message."""
AGAIN = 0.5
"""Seconds until a peer that takes no octets is tried again."""


class Keepalives:
    """``watch`` sessions, ``forget`` them; the thread begins with the first and ends with ``close``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._periods: dict[Outbox, float] = {}
        """Seconds that may pass, for each session."""
        self._reports: dict[Outbox, Callable[[], None]] = {}
        self._tried: dict[Outbox, float] = {}
        self._thread: threading.Thread | None = None
        self._ended = False

    def watch(self, outbox: Outbox, hold_seconds: int, report: Callable[[], None]) -> None:
        """Keep a session up; a hold time of 0 needs no KEEPALIVEs. ``report`` is called in the thread after each one
        for which the loop was late.
        """
        if not hold_seconds:
            return
        with self._changed:
            self._periods[outbox] = hold_seconds / 3 * LATE
            self._reports[outbox] = report
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bgp-keepalives", daemon=True)
                self._thread.start()
            self._changed.notify()

    def forget(self, outbox: Outbox) -> None:
        """The session has ended."""
        with self._changed:
            for known in (self._periods, self._reports, self._tried):
                known.pop(outbox, None)

    def close(self) -> None:
        """End the thread; waits for it."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (due := self._due()) is not None:
            for outbox, before, report in due:
                with suppress(OSError):  # the loop learns of it by itself
                    if outbox.send_keepalive(keepalive(), before):
                        report()

    def _due(self) -> list[tuple[Outbox, float, Callable[[], None]]] | None:
        """Wait until a session needs a KEEPALIVE: its outbox, since when nothing was sent, and whom to tell. None: it
        is the end.
        """
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                at = {one: self._next(one, period) for one, period in self._periods.items()}
                due = [one for one, next_at in at.items() if next_at <= now]
                self._tried |= dict.fromkeys(due, now)
                if due:
                    return [(one, now - self._periods[one], self._reports[one]) for one in due]
                self._changed.wait(min(at.values(), default=now + 60) - now)
        return None

    def _next(self, outbox: Outbox, period: float) -> float:
        """When a KEEPALIVE has to be sent, as far as is known now."""
        return max(outbox.sent_at + period, self._tried.get(outbox, 0.0) + AGAIN)
