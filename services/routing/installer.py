"""The reconciler of kernel routes and tunnels: read, plan, apply, read again. With the bus away, of what was known.

A pass that changes something although nothing was learnt repairs drift (somebody took a route or a device away) and
says so in its event. What the kernel refuses, and every fault of the plan, is told once when it begins, on the object
that asks for it too. A pass that made a device plans again at once: only then has the device a number to be routed by.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from os import strerror
from typing import Any, Protocol

from chassis.bus.causes import Causes
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from kit.once import Once
from proto.events import ModelStep, RoutesChanged
from proto.net import Address, Network
from proto.pairs import PairState
from services.routing.core.doctor.routes import Repair
from services.routing.core.encryption import asked_since, last_known, staying, wish_of, with_families
from services.routing.core.evidence import Evidence, Way
from services.routing.core.faults import Fault
from services.routing.core.fib import (
    AddDevice,
    Addition,
    Device,
    MendDevice,
    Operation,
    Remove,
    RemoveDevice,
    Replace,
    Route,
    Snapshot,
)
from services.routing.core.mesh import Mesh
from services.routing.core.models.contract import Path
from services.routing.core.pairs import Memory, PairKey, Target
from services.routing.core.plan import Plan, plan
from services.routing.core.steps import since_when, states, steps
from services.routing.core.wireguard import WireguardState
from services.routing.kernel import Kernel, Refusal
from services.routing.prober import End

RETRY = 1.0
"""Seconds until a refused operation is tried again, and between passes while something is being laid."""
MOST_REPAIRS = 512
ROUNDS = 3
"""Plans of one pass at most: a device that was made is routed by in the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Whom it tells what."""

    changed: Callable[[RoutesChanged], None]
    faulty: Callable[[Fault], None]
    stepped: Callable[[ModelStep], None]


class Measures(Protocol):
    """What measures the ways to other nodes (:class:`services.routing.prober.Prober`)."""

    evidence: dict[Way, Evidence]

    async def follow(
        self, targets: Mapping[Way, Target], ends: Mapping[End, tuple[str, int]], peers: Iterable[Address]
    ) -> None:
        """Measure these."""


class Installer:
    """``apply`` is the body of the loop ``routes``."""

    def __init__(
        self,
        node: str,
        kernel: Kernel,
        look: Callable[[], Mesh],
        log: Log,
        reports: Reports,
        *,
        measures: Measures,
        telemetry: Telemetry,
        causes: Causes,
    ) -> None:
        """``causes``: of all that ``look`` reads."""
        self._node = node
        self._telemetry = telemetry
        self._causes = causes
        self._kernel = kernel
        self._look = look
        self._log = log
        self._reports = reports
        self._measures = measures
        self._once: Once[Fault] = Once()
        self._steps: Once[ModelStep] = Once()
        self._lasting: dict[Fault, float] = {}
        """Faults that are told only when they last, and since when they are there."""
        self._unneeded: dict[str, float] = {}
        self._devices: Mapping[str, Device] = {}
        """Those that there should have been, by name."""
        self._wireguard = WireguardState()
        self._encrypted_since: dict[int, float] = {}
        self._encrypted: Set[int] = frozenset()
        self._staying: dict[int, float] = {}
        self._since: dict[PairKey, tuple[str, int]] = {}
        self._pairs: Plan = Plan((), (), {})
        self._last: Mapping[tuple[Network, int], Route] = {}
        self._first = True
        self.learnt: Callable[[], Callable[[Network], bool] | None] = lambda: None
        """Gives whether BGP leads to a prefix, or None where this node does not speak it."""
        self.repairs: deque[Repair] = deque(maxlen=MOST_REPAIRS)
        """Routes that were gone, or others, and were set again: the latest."""
        self.snapshot = Snapshot()
        """The kernel as of the last pass."""
        self.faults: tuple[Fault, ...] = ()
        """What stands in the way now."""

    @property
    def desired(self) -> Iterable[Route]:
        """Routes that there should be, as of the last pass."""
        return self._last.values()

    def paths(self) -> Iterable[tuple[str, Path, Evidence | None, int]]:
        """Ways that pairs take or are to take: other node, path, what was measured, and the bytes that would fit."""
        for key, choice in self._pairs.pairs.items():
            for path in choice.candidates:
                if path.model in (choice.model, choice.pending):
                    evidence = self._measures.evidence.get(path.way) if path.way is not None else None
                    target = self._pairs.targets.get(path.way) if path.way is not None else None
                    yield key.peer, path, evidence, target.most if target is not None else path.mtu

    @property
    def received(self) -> tuple[str, ...]:
        """Models by which this node receives packets now."""
        return self._pairs.received or ("host-gw",)

    @property
    def encrypted(self) -> Set[int]:
        """Families whose packets between pods of two nodes must be encrypted."""
        return self._encrypted

    def states(self) -> Iterable[PairState]:
        """How each pair is."""
        return states(self._pairs.pairs, self._measures.evidence, self._since)

    async def apply(self, _dirty: Dirty) -> Done | Again:
        """One pass; raises KernelFault."""
        planned, mesh, refused = await self._round()
        for _ in range(ROUNDS - 1):
            failed = {refusal.operation for refusal in refused}
            made = any(isinstance(one, AddDevice) and one not in failed for one in planned.operations)
            if not await self._follow_wireguard(mesh, planned) and not made:
                break
            planned, mesh, refused = await self._round()
        self._causes.done()
        await self._measures.follow(planned.targets, self._ends(planned), _peers(mesh))
        self._report_faults((*planned.faults, *map(_refusal, refused)))
        waits = any(one.pending for one in planned.pairs.values()) or not all(
            one.receives for one in self.snapshot.devices if one.is_ours
        )
        return Again(RETRY) if refused or waits or self._wireguard.begins or self._staying else Done()

    async def _round(self) -> tuple[Plan, Mesh, tuple[Refusal, ...]]:
        self.snapshot = replace(await self._kernel.snapshot(), wireguard=self._wireguard)
        self._causes.gather()
        mesh, now = last_known(self._look(), self.snapshot), time.monotonic()
        encrypted = mesh.settings.encrypted
        self._staying = staying(encrypted, self._encrypted, self._staying, now)
        self._encrypted = encrypted
        mesh = with_families(mesh, self._staying)
        self._encrypted_since = asked_since(mesh, self._encrypted_since, now)
        memory = Memory(
            now=now,
            evidence=self._measures.evidence,
            unneeded=self._unneeded,
            encrypted_since=self._encrypted_since,
            learnt=self.learnt(),
        )
        planned = plan(mesh, self.snapshot, memory)
        refused = await self._change(planned)
        self._remember(planned, mesh, now)
        return planned, mesh, refused

    async def _follow_wireguard(self, mesh: Mesh, planned: Plan) -> bool:
        """A pass over the devices of WireGuard, after what must not pass without it is prohibited; whether anything
        follows from it.
        """
        removed = {one.name for one in planned.operations if isinstance(one, RemoveDevice)}
        left = tuple(one for one in self.snapshot.devices if one.name not in removed)
        self.snapshot = replace(self.snapshot, devices=left)
        wish = wish_of(mesh, self.snapshot)
        state = await self._kernel.wireguard(wish) if wish is not None else WireguardState()
        changed = state.paths != self._wireguard.paths
        self._wireguard = state
        self.snapshot = replace(self.snapshot, wireguard=state)
        return changed

    async def _change(self, planned: Plan) -> tuple[Refusal, ...]:
        refused: tuple[Refusal, ...] = ()
        if planned.operations:
            named: dict[str, Any] = {"k8s__node__name": self._node} if self._node else {}
            changes = len(planned.operations)
            with self._telemetry.together("routing.install", self._causes.traces, airmesh__changes=changes, **named):
                refused = await self._kernel.apply(planned.operations)
                self._report(planned, refused)
        for step in self._steps.take(steps(self._node, planned.pairs, self._measures.evidence), time.monotonic()):
            self._log.info("model", peer=step.peer, family=step.family, step=step.step, model=step.model, why=step.why)
            self._reports.stepped(step)
        return refused

    def _remember(self, planned: Plan, mesh: Mesh, now: float) -> None:
        """What only this process knows: since when nobody needs a device, and since when a pair takes its model."""
        self._since = since_when(planned.pairs, self._since, int(time.time()), not self._first)
        self._last, self._first, self._pairs = planned.desired, False, planned
        self._devices = planned.devices
        idle = {one.name for one in self.snapshot.devices} - planned.needed if mesh.pools_complete else set()
        self._unneeded = {name: self._unneeded.get(name, now) for name in idle}

    def _ends(self, planned: Plan) -> dict[End, tuple[str, int]]:
        """Where other nodes may measure: all tunnel devices, and the uplinks while there are or may be tunnels."""
        ends = {
            End(one.index, one.tunnel.local): (one.name, 0)
            for one in self.snapshot.devices
            if one.is_ours and one.up and one.tunnel is not None
        }
        if ends or planned.tunnelled:
            for uplink in self.snapshot.uplinks:
                for interface in uplink.addresses if uplink.up else ():
                    if not interface.ip.is_link_local:
                        ends[End(uplink.index, interface.ip)] = (uplink.name, 1)
        return ends

    def _report(self, planned: Plan, refused: tuple[Refusal, ...]) -> None:
        failed = {refusal.operation for refusal in refused}
        done = [operation for operation in planned.operations if operation not in failed]
        if not done:
            return
        added = tuple(str(operation) for operation in done if isinstance(operation, Addition))
        removed = tuple(str(operation) for operation in done if not isinstance(operation, Addition))
        lost = any(isinstance(one, AddDevice) and one.device == self._devices.get(one.device.name) for one in done)
        drift = not self._first and (planned.desired == self._last or lost)
        if drift:
            now = int(time.time())
            self.repairs += [
                Repair(destination=one.route.destination, at=now) for one in done if isinstance(one, Replace)
            ]
        self._log.info("routes-changed", added=list(added), removed=list(removed), drift=drift)
        self._reports.changed(RoutesChanged(self._node, added, removed, drift))

    def _report_faults(self, faults: tuple[Fault, ...]) -> None:
        now = time.monotonic()
        self._lasting = {fault: self._lasting.get(fault, now) for fault in faults if fault.after}
        lasting = tuple(fault for fault in faults if now - self._lasting.get(fault, now) >= fault.after)
        for fault in self._once.take(lasting, now):
            self._log.warning("fault", fault=fault.fault, remedy=fault.remedy)
            self._reports.faulty(fault)
        self.faults = lasting


def _peers(mesh: Mesh) -> Iterable[Address]:
    """Addresses of the other nodes: nobody else is answered."""
    return (address for name, reported in mesh.routes.items() if name != mesh.me for address in reported.underlay)


def _refusal(refusal: Refusal) -> Fault:
    if refusal.why:
        return Fault(refusal.why, refusal.remedy, about=_object_of(refusal.operation))
    verb = "set" if isinstance(refusal.operation, Addition) else "removed"
    what = f"route {refusal.operation}" if isinstance(refusal.operation, Replace | Remove) else str(refusal.operation)
    return Fault(
        f"the kernel refused that {what} is {verb}: {strerror(refusal.number)}",
        "look at `ip route` and `ip link` of this node; it is tried again each second",
    )


def _object_of(operation: Operation) -> tuple[str, str] | None:
    """Who sets tunnel numbers and ports."""
    tunnels = isinstance(operation, AddDevice | MendDevice) and operation.device.tunnel.vni
    return ("FelixConfiguration", "default") if tunnels else None
