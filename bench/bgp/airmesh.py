"""This project's speaker as a process: sessions, tables and outbox as an agent has them, without objects or a bus.

    python -m bench.bgp.airmesh SETTINGS

It runs in the network namespace that it is started in, on the event loop and with the garbage collection of every
service. Learnt routes go nowhere, or into the kernel of the namespace. SETTINGS is a JSON object (:class:`Asked`). Each
second it writes what it has done to its standard output, one JSON object a line (:class:`Said`).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from ipaddress import ip_address

import msgspec
import uvloop

from bench.bgp.tables import PREFERRED, REFUSED
from chassis.runtime import garbage
from chassis.telemetry.log import Log
from chassis.telemetry.loop_holds import LoopHolds
from proto.net import Address
from services.routing.bgp.router import Reports, Router, Routes
from services.routing.core.bgp.next_hops import ways_of
from services.routing.core.bgp.peers import Action, FilterRule, Peer, SessionSettings, TableSettings
from services.routing.core.bgp.resources import Speaker as Identity
from services.routing.core.bgp.values import Family, Prefix
from services.routing.core.learnt import Hop
from services.routing.kernel import Kernel, KernelFault
from services.routing.learnt import LearntRoutes


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What to be."""

    asn: int
    router_id: str
    family: str
    uplinks: tuple[str, ...]
    addresses: dict[int, str] = {}
    """This node's own, by family (4, 6)."""
    peers: dict[str, tuple[int, str]]
    """AS number and this side's address, by the peer's address."""
    kernel: bool = False
    """Write what is learnt into the kernel's table."""
    hold_seconds: int = 90
    clients: bool = False
    """Peers are clients of this route reflector."""
    listens: bool = False
    """Peers connect."""
    port: int = 179


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What has been done."""

    established: int
    """Sessions that are up."""
    lost: int
    """Sessions that were up and are not any more, all together."""
    held_seconds: float
    """The longest hold of the loop in the last minute, on the clock."""
    held_cpu: float
    """The longest hold in CPU time."""
    held_by: str
    """What held it longest on the clock."""
    written: int
    """Routes that are in the kernel."""
    written_seconds: float
    """Time in which routes were written, on the clock."""
    written_cpu: float
    """CPU time of the process in that time, all of its threads."""


class Nowhere:
    """Learnt routes that no kernel takes."""

    def replace(self, family: Family, prefixes: Iterable[Prefix], hops: Iterable[Hop]) -> None:
        """Taken, and that is all."""

    def complete(self, family: Family) -> None:
        """Nothing else is there."""


def policy(family: Family) -> tuple[FilterRule, ...]:
    """The import policy that every speaker has: a range is refused, a community is preferred."""
    refused = FilterRule(action=Action.REJECT, family=family, network=REFUSED[family])
    preferred = FilterRule(action=Action.ACCEPT, family=family, communities=(PREFERRED,), set_local_pref=200)
    return refused, preferred


def peers_of(asked: Asked) -> list[Peer]:
    """The peers that are asked for."""
    family, router_id = Family[asked.family], ip_address(asked.router_id)
    return [
        Peer(
            name=f"bench/{address}",
            session=SessionSettings(
                address=ip_address(address),
                local=ip_address(local),
                port=asked.port,
                passive=asked.listens,
                local_asn=asked.asn,
                peer_asn=asn,
                router_id=router_id,  # type: ignore[arg-type]
                families=frozenset({family}),
                hold_seconds=asked.hold_seconds,
                connect_retry_seconds=1,
            ),
            tables=TableSettings(
                imports=policy(family),
                client=asked.clients,
                cluster_id=router_id if asked.clients else None,  # type: ignore[arg-type]
            ),
        )
        for address, (asn, local) in asked.peers.items()
    ]


class Agent:
    """A router that works whenever it is poked, as its loop does, and then writes what was learnt."""

    def __init__(self, asked: Asked, kernel: Kernel, log: Log) -> None:
        self._woken = asyncio.Event()
        self._learnt = LearntRoutes(kernel) if asked.kernel else None
        self._written = 0
        self._faulty = False
        """The kernel did not take what was written the last time."""
        self._written_seconds = self._written_cpu = 0.0
        self._holds = LoopHolds(log)
        self._holds.watch(asyncio.get_running_loop())
        routes: Routes = self._learnt or Nowhere()
        reports = Reports(changed=lambda *_: None, limited=lambda _: None, unwritable=lambda *_: None)
        self.router = Router(routes, reports, self._woken.set)

    async def run(self) -> None:
        """Work whenever there is something to do."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self.router.work()
            if self._learnt is not None:
                try:
                    await self._write(self._learnt)
                except KernelFault as fault:
                    self._faulty = True  # as an agent's loop does: again, and all is compared
                    self._woken.set()
                    print(f"written again: {fault}", file=sys.stderr, flush=True)

    async def _write(self, learnt: LearntRoutes) -> None:
        began, cpu = time.monotonic(), time.process_time()
        done = await learnt.apply(full=self._faulty)
        self._faulty = False
        if done.written:
            self._written += done.written - done.refused
            self._written_seconds += time.monotonic() - began
            self._written_cpu += time.process_time() - cpu

    def say(self) -> Said:
        """What has been done until now."""
        states = self.router.speaker.states()
        up = sum(state.agreed is not None for state in states.values())
        held = self._holds.longest()
        return Said(
            established=up,
            lost=sum(state.established_count for state in states.values()) - up,
            held_seconds=round(held.seconds, 4),
            held_cpu=round(held.cpu, 4),
            held_by=held.by,
            written=self._written,
            written_seconds=round(self._written_seconds, 4),
            written_cpu=round(self._written_cpu, 4),
        )


async def serve(asked: Asked) -> None:
    """Be the speaker until the process is ended."""
    kernel = Kernel(asked.uplinks)
    await kernel.forward()
    agent = Agent(asked, kernel, Log("bench", "warning"))
    addresses = {version: ip_address(text) for version, text in asked.addresses.items()}
    agent.router.find_ways(ways_of(await kernel.snapshot()))
    identity = Identity(asn=asked.asn, router_id=ip_address(asked.router_id), listen_port=asked.port)  # type: ignore[arg-type]
    peers = peers_of(asked)
    next_hops: dict[str, dict[int, Address]] = {
        peer.name: {peer.session.local.version: peer.session.local} for peer in peers if peer.session.local is not None
    }
    agent.router.follow(identity, peers, addresses, next_hops=next_hops)
    working = asyncio.create_task(agent.run())
    while not working.done():
        print(json.dumps(asdict(agent.say())), flush=True)
        await asyncio.sleep(1)
    await working


def main() -> None:
    """Run until ended."""
    asked = msgspec.json.decode(sys.argv[1], type=Asked)
    garbage.freeze_survivors()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(asked))


if __name__ == "__main__":
    main()
