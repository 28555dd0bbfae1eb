"""Checks of one agent: what it looks at when the mesh is asked what is wrong, and the answer made of what they find.

A part of a service adds a check with the codes that it looks for (``proto.findings``); the runtime answers
``proto.subjects.FINDINGS`` for every service. Checks run side by side, each within :data:`DEADLINE`. One that fails or
is late is named as unchecked with its reason, and takes nothing from the others. The standing check
(``chassis.runtime.standing``) makes them again and again; one that would knock at others' doors has no part in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis.faults import Fault
from proto.findings import (
    MAX_AFFINITIES,
    MAX_FINDINGS,
    AffinityClients,
    DoctorRequest,
    Finding,
    Findings,
    Unchecked,
)

if TYPE_CHECKING:
    from chassis.telemetry.log import Log

DEADLINE = 5.0
"""Seconds of one check."""

Check = Callable[[DoctorRequest], Awaitable[Iterable[Finding | AffinityClients]]]
"""Takes what is asked; what it yields that is no finding is joined by whoever asked. Raises :class:`NotChecked` when it
cannot look."""


class NotChecked(Fault):
    """A check cannot be made now; says why."""


@dataclass(frozen=True, slots=True)
class _Added:
    codes: tuple[str, ...]
    check: Check
    standing: bool


class Checks:
    """``add`` what is looked at; ``answer`` a request."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._checks: list[_Added] = []

    def add(self, codes: tuple[str, ...], check: Check, *, standing: bool = True) -> None:
        """``codes``: every code that the check can find. ``standing`` False: it is made only when somebody asks, since
        it sends to whoever is no agent, or takes what nobody should take all the time.
        """
        self._checks.append(_Added(codes, check, standing))

    @property
    def standing_codes(self) -> tuple[str, ...]:
        """Every code that the standing check looks for."""
        return tuple(code for one in self._checks if one.standing for code in one.codes)

    async def answer(self, asked: DoctorRequest) -> Findings:
        """What all checks find now, the lowest precedence first."""
        return await self._answer(asked, self._checks)

    async def look(self) -> Findings:
        """The same of everything that the standing check looks at."""
        return await self._answer(DoctorRequest(), [one for one in self._checks if one.standing])

    async def _answer(self, asked: DoctorRequest, checks: Sequence[_Added]) -> Findings:
        at_ms = time.time_ns() // 1_000_000
        outcomes = await asyncio.gather(*(self._outcome(one.codes, one.check, asked) for one in checks))
        yielded = [one for outcome in outcomes if not isinstance(outcome, Unchecked) for one in outcome]
        found = [one for one in yielded if isinstance(one, Finding)]
        found.sort(key=lambda one: (one.precedence, one.code, one.about))
        pairs = zip(checks, outcomes, strict=True)
        return Findings(
            at_ms=at_ms,
            findings=tuple(found[:MAX_FINDINGS]),
            checked=tuple(code for one, outcome in pairs if not isinstance(outcome, Unchecked) for code in one.codes),
            unchecked=tuple(outcome for outcome in outcomes if isinstance(outcome, Unchecked)),
            left_out=max(0, len(found) - MAX_FINDINGS),
            affinities=tuple(one for one in yielded if isinstance(one, AffinityClients))[:MAX_AFFINITIES],
        )

    async def _outcome(
        self, codes: tuple[str, ...], check: Check, asked: DoctorRequest
    ) -> list[Finding | AffinityClients] | Unchecked:
        named = ", ".join(codes)
        try:
            async with asyncio.timeout(DEADLINE):
                return list(await check(asked))
        except TimeoutError:
            return Unchecked(check=named, why=f"not done within {DEADLINE:.0f} s")
        except (Fault, OSError) as error:
            return Unchecked(check=named, why=str(error) or type(error).__name__)
        except Exception as error:
            self._log.error("check-failed", check=named, error=error, bug=True)
            return Unchecked(check=named, why="the check itself failed; the agent's log says why")
