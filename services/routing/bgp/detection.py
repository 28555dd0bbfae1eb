"""Failure detection of BGP peers (RFC 5882 4.3, 10): a BFD session with each peer that is on a link of this node.

When one fails that was up, packets leave the peer's routers first, by one change of each group of next hops; then the
BGP session ends with Cease "BFD Down" (RFC 9384), and routes follow as the decision process goes on. The routers stay
out of the groups until BFD is up again, or BGP has come up without it: BFD that was never up ends nothing, since a peer
may not speak it (RFC 5882 4.3 without strict mode). ``core.bfd.bgp`` says which failures count.

A link that goes down is the same: BFD is silent on it, and its next hops have left the kernel before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from chassis.telemetry.log import Log
from services.routing.bfd.client import Bfd
from services.routing.bgp.router import Router
from services.routing.core.bfd.bgp import Consequence, consequence, key_of
from services.routing.core.bfd.packet import State
from services.routing.core.bfd.session import Failure, Settings
from services.routing.core.bfd.sessions import Key
from services.routing.core.bfd.status import Status, why_not_up
from services.routing.core.bgp.codec.errors import Cease
from services.routing.core.bgp.next_hops import Links
from services.routing.core.bgp.peers import Peer
from services.routing.core.faults import Fault
from services.routing.core.learnt import Hop
from services.routing.kernel import KernelFault
from services.routing.learnt import LearntRoutes

SETTINGS = Settings(transmit_us=50_000, receive_us=50_000, multiplier=3)
"""A peer is lost after 150 ms, or three times what it asks for."""
LONG_US = 30_000_000
"""How long BFD is not up beside a BGP session before a person is told."""


class Detection:
    """``run`` and ``bfd.run`` for ever; ``follow`` says who the peers are."""

    def __init__(
        self,
        folder: Path,
        log: Log,
        router: Callable[[], Router | None],
        learnt: LearntRoutes,
        *,
        namespace: Path | None = None,
    ) -> None:
        """``folder``: of BFD's process, for this node alone; ``router``: who holds the sessions now."""
        self.bfd = Bfd(folder, log, up=self._up, down=self._down, namespace=namespace)
        self._log = log
        self._router = router
        self._learnt = learnt
        self._names: dict[Key, str] = {}
        """Peers by their BFD session."""
        self._failed: dict[Key, None] = {}
        """Whose BGP session is to end."""
        self._lost: dict[Key, frozenset[Hop]] = {}
        self._woken = asyncio.Event()

    def follow(self, peers: Iterable[Peer], links: Links) -> None:
        """Exactly these are BGP's peers from now on."""
        names: dict[Key, str] = {}
        for peer in peers:
            link = links.link_of(peer.session) if peer.session.bfd else None
            if link is not None and (key := key_of(peer.session, link)) is not None:
                names[key] = peer.name
        self.bfd.sessions(dict.fromkeys(names, SETTINGS))
        for key in self._names.keys() - names.keys():
            self._failed.pop(key, None)
            self._found(key)
        self._names = names

    async def run(self) -> None:
        """Does what follows from failures."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            failed = [key for key in self._failed if key in self._names]
            self._failed.clear()
            if (router := self._router()) is not None:
                await self._end(router, failed)

    def established(self, name: str) -> None:
        """BGP has come up with a peer: its routers are used."""
        for key in [key for key in self._lost if self._names[key] == name]:
            self._found(key)

    def faults(self) -> tuple[Fault, ...]:
        """Why there is no BFD, and with whom it has not been up for long though BGP is."""
        whole = (self.bfd.fault,) if self.bfd.fault is not None and self._names else ()
        single = (why_not_up(status) for status in self.bfd.statuses.values() if self._lacks(status))
        return whole + tuple(fault for fault in single if fault is not None)

    def _lacks(self, status: Status) -> bool:
        router, now = self._router(), time.monotonic_ns() // 1000
        long = status.state is not State.UP and now - status.since >= LONG_US
        return long and router is not None and router.speaker.is_established(self._names[status.key])

    def _up(self, key: Key) -> None:
        self._found(key)

    def _down(self, key: Key, failure: Failure) -> None:
        router, name = self._router(), self._names.get(key)
        if router is None or name is None:
            return
        restarting = router.speaker.is_restarting(name)
        ends = consequence(failure, restarting=restarting) is Consequence.END
        if ends and (restarting or router.speaker.is_established(name)):
            self._failed[key] = None
            self._woken.set()

    async def _end(self, router: Router, failed: Iterable[Key]) -> None:
        """Packets first, sessions then, routes by themselves."""
        names = {key: self._names[key] for key in failed}
        for key, name in names.items():
            self._lost[key] = router.hops_of(name)
        self._learnt.lose(self._all_lost())
        try:
            await self._learnt.leave_lost()
        except KernelFault as fault:
            self._log.warning("bfd-next-hops-kept", error=fault)  # the loop's pass tries again
        for name in names.values():
            router.speaker.reset(name, Cease.BFD_DOWN)

    def _found(self, key: Key) -> None:
        """Packets may take a peer's routers, as routes say."""
        if self._lost.pop(key, None) is not None:
            self._learnt.lose(self._all_lost())

    def _all_lost(self) -> frozenset[Hop]:
        return frozenset().union(*self._lost.values())
