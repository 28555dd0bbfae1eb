"""The admission wait: holds an ADD until the pod's object and its compiled policy have arrived.

Owns the waiting only: whether a pod may start is ``core.endpoint.admission``'s decision, asked again whenever a watch
changes. Promises an answer within the deadline; what was missing is then told to the runtime with code 11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from chassis.telemetry.log import Log
from services.dataplane.core.cni.request import CniError, Code, PodRef
from services.dataplane.core.endpoint.admission import Admitted, NotYet, admit
from services.dataplane.feed import Feed

POLL = 0.25
"""Seconds after which it looks again even when nothing woke it."""


@dataclass(frozen=True, slots=True)
class Entered:
    """The pod may start; ``traceparent`` is that of its object."""

    admitted: Admitted
    traceparent: str


class AdmissionWait:
    """Lets pods in."""

    def __init__(self, feed: Feed, log: Log, seconds: float, enforces: Callable[[], bool] = lambda: True) -> None:
        self._feed = feed
        self._log = log
        self._seconds = seconds
        self._enforces = enforces
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A watch has changed."""
        self._woken.set()
        self._woken = asyncio.Event()

    async def enter(self, wanted: PodRef) -> Entered:
        """Waits for the pod. Raises CniError 11 with what is missing."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        while True:
            woken = self._woken
            outcome = self.look(wanted)
            if isinstance(outcome, Entered):
                return outcome
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise CniError(Code.TRY_AGAIN_LATER, outcome.why)
            try:
                async with asyncio.timeout(min(POLL, left)):
                    await woken.wait()
            except TimeoutError:
                continue

    def look(self, wanted: PodRef) -> Entered | NotYet:
        """The decision now."""
        if not self._enforces():
            return NotYet("this node has not had all rules and identities since its agent started")
        found = self._feed.pod(wanted)
        if found is None:
            return NotYet(f"pod {wanted.namespace}/{wanted.name} has not reached this node's watch yet")
        pod, seen, traceparent = found
        outcome = admit(wanted, pod, seen, self._feed.knowledge(), self._feed.rules, self._feed.frontiers())
        return Entered(outcome, traceparent) if isinstance(outcome, Admitted) else outcome
