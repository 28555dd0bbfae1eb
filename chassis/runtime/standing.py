"""The standing check of an agent: its checks again and again at a slow period, told when findings come and go.

``kit.standing`` decides what has come and what is gone. It is told as an event (``proto.events.FindingEvent``), of
which ``cluster`` makes a condition of the object, as a gauge for each code, in the log, and as a fault of the object
that it is about, which ``cluster`` writes there. Owns when to look: each ``every`` seconds, by chance a quarter sooner
or later so that agents do not look at once, and :data:`CONFIRM` seconds after a look that has found something new or
missed something. What lasts is answered from memory (``DoctorRequest.standing``), and dates what a person's own
question finds.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterable
from functools import cache
from typing import Literal

import msgspec
from prometheus_client import Gauge

from chassis.bus.client import Bus
from chassis.runtime.checks import Checks
from chassis.telemetry.log import Log
from kit.changes import Changed, changed, just_before
from kit.once import Once
from kit.standing import Key, Standing, key_of
from proto.codec import decode_segment
from proto.events import FindingEvent, ObjectFault
from proto.findings import MAX_FINDINGS, DoctorRequest, Finding, Findings, Unchecked, object_of, reason_of, remedy_of
from proto.objects import KINDS
from proto.subjects import FINDING, OBJECTS, event_subject, object_fault_subject

CONFIRM = 10.0
"""Seconds until the look that confirms another."""
AGAIN = 600.0
"""Seconds after which a finding that lasts is told again: an event may be lost, and Kubernetes forgets its own."""
LATE = 1.25
"""Share of the period that a look may be late, and as much early."""
AT_ONCE = 20
"""Findings told on objects in one look: ``cluster`` takes a bounded number of each speaker."""

_FINDINGS = Gauge("airmesh_findings", "Findings of the standing check that last", ["code"])
_UNCHECKED = Gauge("airmesh_findings_unchecked", "1 while the standing check cannot look for it", ["code"])
_GROUPS = {kind.type.__name__: "" if kind.group == "core" else kind.group for kind in KINDS}


class StandingCheck:
    """``run`` for ever; ``answer`` what is asked."""

    def __init__(self, *, checks: Checks, bus: Bus, service: str, instance: str, every: float, log: Log) -> None:
        self._checks = checks
        self._bus = bus
        self._service = service
        self._instance = instance
        self._every = every
        self._log = log
        self._node = decode_segment(bus.node) if bus.node else ""
        self._standing = Standing()
        self._once: Once[Key] = Once(every=CONFIRM, again=AGAIN, most=MAX_FINDINGS)
        self._on_objects: Once[Key] = Once(every=CONFIRM, again=AGAIN, most=MAX_FINDINGS)
        self._last = Findings(at_ms=0, unchecked=(Unchecked(check="the standing check", why=self._not_yet),))
        self._sequences: dict[str, int] = {}
        """Of each mirror of objects, at the look before."""

    @property
    def _not_yet(self) -> str:
        if not self._every:
            return "it is off: set AIRMESH_CHECKS_EVERY to seconds"
        return f"this agent has just begun, and looks each {self._every:.0f} s"

    async def run(self) -> None:
        """Look for as long as the agent runs."""
        if not self._every:
            await asyncio.Event().wait()
        while True:
            wait = self._every if self._standing.settled else min(CONFIRM, self._every)
            await asyncio.sleep(wait * random.uniform(2 - LATE, LATE))  # noqa: S311 - spreads agents
            await self.look()

    async def answer(self, asked: DoctorRequest) -> Findings:
        """What lasts, where only that is asked for; else what all checks find now, dated by what is known here."""
        if asked.standing:
            return msgspec.structs.replace(
                self._last, at_ms=time.time_ns() // 1_000_000, findings=self._standing.lasting
            )
        found = await self._checks.answer(asked)
        return msgspec.structs.replace(found, findings=tuple(map(self._standing.dated, found.findings)))

    async def look(self) -> None:
        """One look; what has changed by it is reported."""
        sequences = {view.name: view.sequence for view in self._bus.views if view.bucket == OBJECTS}
        found = await self._checks.look()
        now, checked = int(time.time()), frozenset(found.checked)
        changes = cache(lambda: tuple(self._changes()))
        news = self._standing.look(
            found.findings,
            now,
            unknown=lambda one: one.code not in checked or found.left_out > 0,
            change=lambda one: just_before(one, changes()),
        )
        self._last, self._sequences = found, sequences
        self._count(found)
        for one in news.came:
            self._log.warning("finding-came", code=one.code, about=one.about, cause=one.cause, change=one.change)
        for one in news.gone:
            self._log.info("finding-gone", code=one.code, about=one.about)
            self._publish("gone", one, now)
        self._report_lasting({key_of(one) for one in news.came}, now)

    def _changes(self) -> Iterable[Changed]:
        """What mirrors of objects have seen since the look before; nothing at the first."""
        for view in self._bus.views:
            if view.bucket == OBJECTS and view.name in self._sequences:
                for key, value, revision in view.changed_after(self._sequences[view.name]):
                    if (one := changed(key, value, revision)) is not None:
                        yield one

    def _count(self, found: Findings) -> None:
        codes = [one.code for one in self._standing.lasting]
        for code in self._checks.standing_codes:
            _FINDINGS.labels(code).set(codes.count(code))
            _UNCHECKED.labels(code).set(code not in found.checked)

    def _report_lasting(self, came: set[Key], now: int) -> None:
        lasting = {key_of(one): one for one in self._standing.lasting}
        clock = time.monotonic()
        for key in self._once.take(lasting, clock):
            self._publish("came" if key in came else "lasts", lasting[key], now)
        for key in self._on_objects.due(lasting, clock)[:AT_ONCE]:
            if self._on_objects.reported(key, clock) and (fault := self._fault(lasting[key])) is not None:
                self._bus.publish(object_fault_subject(self._service, self._bus.node), fault)

    def _publish(self, state: Literal["came", "lasts", "gone"], finding: Finding, now: int) -> None:
        event = FindingEvent(
            service=self._service,
            node=self._node,
            state=state,
            at=now,
            finding=finding,
            instance=self._instance,
            again=math.ceil(AGAIN + self._every * LATE),
        )
        self._bus.publish(event_subject(self._service, FINDING), event)

    def _fault(self, finding: Finding) -> ObjectFault | None:
        """The same as a fault of the object that it is about; None where that is none of the mirror."""
        kind, namespace, name = object_of(finding)
        if kind not in _GROUPS:
            return None
        return ObjectFault(
            service=self._service,
            node=self._node,
            group=_GROUPS[kind],
            kind=kind,
            namespace=namespace,
            name=name,
            reason=reason_of(finding.code),
            fault=finding.cause,
            remedy=remedy_of(finding),
        )
