"""Takes one switch after the other out of a fabric under connections that are held, and brings each back.

First the routing daemon of one is killed: what its kernel has is forwarded on (RFC 4724). When its sessions are back,
the other loses all its links at once, as without power. Owns the order of this and its waits, each with a deadline;
what is wrong is `multipath`'s to say. On every way out both switches are as they were.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from lab.cluster import switches
from lab.cluster.capture import Capture
from lab.cluster.packets import Flow
from lab.paths import Paths
from lab.topology import LabError, Switch, Topology
from lab.tour.multipath import FLOWS, Stage, by_switch, go_on, neighbors, targets_of
from lab.tour.probes import Pod, Port
from lab.tour.shell import Hands

_TALK_SECONDS = 300
_SETTLED_SECONDS = 60.0
_HELD_SECONDS = 3.0
"""For which a fault stands at least: a daemon's end is seen by its neighbors within that time, whatever follows."""
_POLL_SECONDS = 0.25
_LOOK_SECONDS, _LOOK_MOST = 1.0, 5.0
"""Of a capture: each connection speaks several times in the first, where it has a processor."""


class Outage:
    """The connections of one pod to one other, and what they do while switches are out."""

    def __init__(self, where: Paths, topology: Topology, ends: tuple[Pod, Pod, Port]) -> None:
        self._where, self._topology = where, topology
        self._source, target, port = ends
        self._targets = {(address, port.number) for address in target.addresses}
        self._names = [switch.name for switch in topology.switches]
        self._heard: Sequence[Mapping[str, Any]] = ()

    async def walk(self, hands: Hands, target: Pod, port: Port) -> list[Stage]:
        """Every stage, the first before anything happens. Raises `LabError` when a fault cannot be made."""
        one, other = reversed(self._topology.switches)
        async with AsyncExitStack() as undo:
            self._heard = await undo.enter_async_context(
                hands.talking(self._source.full_name, targets_of(target, port), FLOWS, _TALK_SECONDS)
            )
            undo.push_async_callback(self._mend, one, other)
            return [
                await self._stage("both switches are up", _nothing, self._whole, used=self._names),
                await self._stage(
                    f"{one.name}: its daemon is killed",
                    partial(switches.kill, self._where, one.name),
                    partial(self._silent, one),
                    used=[other.name],
                ),
                await self._stage(
                    f"{one.name}: its daemon is started again",
                    partial(switches.restart, self._where, one.name),
                    self._whole,
                    used=self._names,
                ),
                await self._stage(
                    f"{other.name}: all its links are cut",
                    partial(asyncio.to_thread, switches.cut, self._where, other.name),
                    partial(self._while_it_lasts, other),
                    used=[one.name],
                    unused=[other.name],
                ),
                await self._stage(
                    f"{other.name}: its links are mended",
                    partial(asyncio.to_thread, switches.mend, self._where, other.name),
                    self._whole,
                    used=self._names,
                ),
            ]

    async def _mend(self, one: Switch, other: Switch) -> None:
        await asyncio.to_thread(switches.mend, self._where, other.name)
        await switches.restart(self._where, one.name)

    async def _stage(
        self,
        what: str,
        happen: Callable[[], Awaitable[None]],
        expected: Callable[[], bool],
        *,
        used: Collection[str],
        unused: Collection[str] = (),
    ) -> Stage:
        first = len(self._heard)
        began, began_ms = time.monotonic(), time.time() * 1000
        await happen()
        seconds = await self._settle(began, began_ms, expected)
        if seconds >= 0:
            await asyncio.sleep(max(0.0, began + _HELD_SECONDS - time.monotonic()))
        seen = await self._look()
        lines = self._heard[first:]
        return Stage(
            what=what,
            flows=FLOWS,
            broken=self._broken,
            longest_ms=max((line["longest_wait_ms"] for line in lines), default=0.0),
            seconds=seconds,
            seen={name: len(flows) for name, flows in seen.items()},
            used=used,
            unused=unused,
        )

    async def _settle(self, began: float, began_ms: float, expected: Callable[[], bool]) -> float:
        """Seconds until routes and sessions were as expected and all connections had an echo; negative: never."""
        while (passed := time.monotonic() - began) < _SETTLED_SECONDS:
            if self._broken:
                break
            if self._heard and go_on(self._heard[-1], began_ms) and await asyncio.to_thread(expected):
                return passed
            await asyncio.sleep(_POLL_SECONDS)
        return -1.0

    @property
    def _broken(self) -> tuple[str, ...]:
        """Why connections have ended so far."""
        return tuple(self._heard[-1]["broken"]) if self._heard else ()

    async def _look(self) -> dict[str, frozenset[Flow]]:
        """Which connections are at which switch now."""
        node = next(one for one in self._topology.nodes if one.name == self._source.node)
        seen: dict[str, frozenset[Flow]] = {}
        with Capture.of_switches(self._topology, [node]) as wire:
            for _ in range(int(_LOOK_MOST / _LOOK_SECONDS)):
                await asyncio.sleep(_LOOK_SECONDS)
                seen = by_switch(wire.seen.copy(), self._source, self._targets, self._names)
                if self._broken or len(frozenset[Flow]().union(*seen.values())) >= FLOWS:
                    break
        return seen

    def _whole(self) -> bool:
        """All nodes have sessions with all switches, and lead to each other by all of them."""
        seen = {name: switches.sessions(self._where, name) for name in self._names}
        every = neighbors(seen, [node.name for node in self._topology.nodes])
        return switches.joined(self._topology) and all(one.over for one in every)

    def _silent(self, switch: Switch) -> bool:
        """The switch speaks no BGP."""
        return not switches.sessions(self._where, switch.name)

    def _while_it_lasts(self, switch: Switch) -> bool:
        """No node leads anywhere by the switch."""
        links = {node.name: switch.port(node.name).link for node in self._topology.nodes}
        return not any(
            links[node.name] in used
            for node in self._topology.nodes
            for used in switches.links_by_destination(node.namespace).values()
        )


async def _nothing() -> None:
    pass


async def outage(hands: Hands, where: Paths, topology: Topology, ends: tuple[Pod, Pod, Port]) -> list[Stage]:
    """Connections of a pod to a port that echoes, while switches are out. Raises `LabError`."""
    if len(topology.switches) < 2:
        raise LabError(f"lab {topology.lab}: without two switches none can be out")
    return await Outage(where, topology, ends).walk(hands, ends[1], ends[2])
