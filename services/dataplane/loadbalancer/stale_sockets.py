"""Ends connected UDP sockets whose backend left: a resolver or QUIC client would go on sending to it for ever.

Promises: nothing is ended before the watch of EndpointSlices is complete; only sockets of this node's namespace and its
pods' that the socket programs sent there themselves (``core.loadbalancer.stale_sockets`` says which). All reading
happens on a thread of its own, so no pod waits for it: half a millisecond a namespace, when somebody who served UDP
does so no more or has left the Service tables (which may be later, if its namespace waits for its turn), and every
minute for what went otherwise (a host port, a change while no agent ran). A round takes at
most ``ROUND`` seconds; the next goes on from there. Left alone is a socket that the programs no longer know of
(``am_reverse`` forgets the oldest of those who have no place in ``am_sent``).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import cache

import prometheus_client

from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from linux.sock_diag import CannotEnd, Connected, Ended, end_sockets
from proto.net import Address
from proto.objects import EndpointSlice, Service
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.loadbalancer.stale_sockets import UdpBackends, serving
from services.dataplane.datapath.tables import Tables
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.feed import Feed

PERIOD = 60.0
DEBOUNCE = 0.5
"""Seconds in which changes gather."""
BEHIND = 0.1
"""Seconds until it looks again while the Service tables, which tell what is stale, have not followed the slices."""
ROUND = 5.0
AT_ONCE = 2000
"""Objects that are looked at before others have their turn: some milliseconds."""
SHOWN = 5
"""Backends that the log names."""

_ENDED = prometheus_client.Counter("airmesh_stale_sockets_ended", "UDP sockets ended since their backend had left")


class StaleSockets:
    """``apply`` is what a loop over the objects and :attr:`Balancer.udp_left` runs; ``close`` ends the thread."""

    def __init__(
        self,
        feed: Feed,
        tables: Tables,
        endpoints: LocalEndpoints,
        log: Log,
        *,
        node_cookie: int,
        written: Callable[[], tuple[int, ...]],
    ) -> None:
        """``node_cookie`` is that of the node's own network namespace; ``written``: :attr:`Balancer.seen`."""
        self._feed = feed
        self._tables = tables
        self._local = endpoints
        self._log = log
        self._node_cookie = node_cookie
        self._written = written
        self._thread = NamespaceThread("sockets")
        self._udp = UdpBackends()
        self._due = False
        """Whether sockets are to be looked at as soon as the Service tables have followed."""
        self._resume = 0
        self._able = True
        self.again: Callable[[float], object] = lambda seconds: None
        """Has ``apply`` called after so many seconds."""
        self._deadline = 0.0

    async def apply(self, dirty: Dirty) -> Done | Again:
        """One round, if there may be anything to end. ``again`` is called where a look has to wait for others."""
        feed = self._feed
        if not self._able:
            return Done()
        _, left_tables = dirty.by_cursor
        self._due = await self._follow(dirty) or dirty.full or bool(left_tables) or self._due
        if not self._due:
            return Done()
        if not feed.complete(EndpointSlice):
            return Again(after=1.0)
        if self._written() != feed.version(Service, EndpointSlice):
            self.again(BEHIND)
            return Done()
        self._due = False
        slices = feed.all_of(EndpointSlice)
        cookies = {self._node_cookie, *(one.cookie for one in self._local.up.values())}
        resume, self._deadline = self._resume, time.monotonic() + ROUND

        def end() -> Ended:
            stale = judge(self._tables, serving(slices))
            return end_sockets(cookies, stale, overdue=self._overdue, resume=resume)

        try:
            ended = await self._thread.run(end)
        except CannotEnd as error:
            self._able = False
            self._log.warning("stale-sockets-stay", why=str(error), remedy="clients have to connect again themselves")
            return Done()
        self._report(ended)
        self._resume = ended.resume
        return Again(after=1.0) if ended.resume else Done()

    async def _follow(self, dirty: Dirty) -> bool:
        """Takes in what changed; whether somebody who served UDP does so no more."""
        entries, lost = self._feed.objects.entries, False
        for count, key in enumerate((entries.keys() | self._udp.keys()) if dirty.full else dirty.keys, 1):
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)
            entry = entries.get(key)
            value = entry.value if entry is not None else None
            lost = self._udp.put(key, value if isinstance(value, EndpointSlice) else None) or lost
        return lost

    def _report(self, ended: Ended) -> None:
        if ended.sockets:
            _ENDED.inc(len(ended.sockets))
            worst = Counter(f"{one.peer} port {one.port}" for one in ended.sockets).most_common(SHOWN)
            self._log.info("stale-sockets-ended", count=len(ended.sockets), backends=dict(worst))

    def _overdue(self) -> bool:
        return time.monotonic() > self._deadline

    async def close(self) -> None:
        """Ends the thread; a round that is under way stops at the next namespace."""
        self._deadline = 0.0
        self._thread.close()


def judge(tables: Tables, alive: frozenset[Address]) -> Callable[[Connected], bool]:
    """Whether a socket is to be ended; reads the maps, and ``am_members`` only for the first that may be."""

    @cache
    def members() -> frozenset[tuple[Address, int]]:
        return frozenset((key.address, key.port) for key in tables.members.items())

    def stale(one: Connected) -> bool:
        if one.peer in alive:
            return False
        return tables.asked_for(one.cookie, one.peer, one.port) is not None and (one.peer, one.port) not in members()

    return stale
