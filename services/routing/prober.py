"""Sends packets of measurement by the ways that the plan names, answers those of other nodes, and keeps the evidence.

What waits for a way, or would be changed by it, is measured each second, all else every ten. The largest packet is
sought at once, looked for again every half minute, and sought from the top every two minutes. However many pairs there
are, at most :data:`MOST_SENT` packets are sent in a tick, in turns.

Answers only nodes of the mesh, on every interface and address that another node may measure. Evidence belongs to a way:
another interface or address begins with none.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from chassis.telemetry.log import Log
from proto.net import Address
from services.routing.core.evidence import SMALL, TRIES, Evidence, Way
from services.routing.core.pairs import Target
from services.routing.kernel import Kernel, KernelFault
from services.routing.probes import answer, question, read_probe, receive

TICK = 0.1
SOON, LATER = 1.0, 10.0
"""Seconds between two small packets."""
LARGE, SEEKING, FROM_TOP = 30.0, 0.3, 120.0
"""Seconds between two large packets, once the largest is known and before; and until it is sought from the top."""
ANSWERED_WITHIN = 2.0
"""Seconds after which an answer is none."""
MOST_SENT = 200
WAYS_EACH_SECOND = 300
"""Where there are more ways, each is measured less often."""
NOW = 0.6
"""Seconds between two packets that are sent since somebody asks now."""
MOST_NOW = 1000
"""Ways that are asked at once for that."""
MOST_HEARD = 256
"""Packets that are read from one socket before others have their turn."""


class End(NamedTuple):
    """An interface and an address of this node that packets of measurement come to and go from."""

    link: int
    local: Address


@dataclass(slots=True)
class _Sending:
    target: Target
    small_at: float = 0.0
    large_at: float = 0.0
    top_at: float = 0.0
    unanswered: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By number: size, and when it was sent."""


class Prober:
    """``follow`` what is to be measured; ``run`` for ever."""

    def __init__(self, kernel: Kernel, port: int, changed: Callable[[], None], log: Log) -> None:
        """``changed`` is called when what is known of a way has changed what it is good for."""
        self._kernel = kernel
        self._port = port
        self._changed = changed
        self._log = log
        self._sockets: dict[End, socket.socket] = {}
        self._ways: dict[Way, _Sending] = {}
        self._peers: frozenset[Address] = frozenset()
        self._by_end: dict[tuple[End, Address], Way] = {}
        self._asked_now: dict[tuple[Way, int], asyncio.Event] = {}
        """By way and number of a packet of :meth:`silent`: what to set when it is answered."""
        self._busy = asyncio.Event()
        self.evidence: dict[Way, Evidence] = {}
        """What is known of each way that is measured."""

    async def follow(
        self, targets: Mapping[Way, Target], ends: Mapping[End, tuple[str, int]], peers: Iterable[Address]
    ) -> None:
        """``ends``: where to listen, with the interface's name and the hop limit of what is sent there (0: the usual);
        ``peers``: addresses of the other nodes.
        """
        self._peers = frozenset(peers)
        for end in self._sockets.keys() - ends.keys():
            self._shut(end)
        for end in ends.keys() - self._sockets.keys():
            device, hops = ends[end]
            try:
                opened = await self._kernel.open_probe(device, end.local, self._port, hops)
            except KernelFault as error:
                self._log.debug("probe-socket", device=device, error=error)  # an address may be gone: the next pass
                continue
            self._sockets[end] = opened
            asyncio.get_running_loop().add_reader(opened.fileno(), self._hear, end, opened)
        for way in self._ways.keys() - targets.keys():
            del self._ways[way]
            self.evidence.pop(way, None)
        for way, target in targets.items():
            known = self._ways.setdefault(way, _Sending(target, top_at=time.monotonic() + FROM_TOP))
            if target.soon and not known.target.soon:
                known.small_at = 0.0
            known.target = target
            self.evidence[way] = self.evidence.get(way, Evidence()).for_most(target.most)
        self._by_end = {(End(way.link, way.local), way.remote): way for way in self._ways}
        if self._ways:
            self._busy.set()
        else:
            self._busy.clear()

    async def silent(self, ways: Iterable[Way], times: int) -> frozenset[Way]:
        """Of these ways, those by which none of so many small packets is answered now, one sent each :data:`NOW`
        seconds. What is decided by the evidence is not changed by it: packets of a moment are no evidence. What is
        not measured is silent; of more than :data:`MOST_NOW` ways the rest is not asked, and not silent.
        """
        waiting = {way: asyncio.Event() for way in list(ways)[:MOST_NOW]}
        asked = list[tuple[Way, int]]()
        try:
            for _ in range(times):
                for way in [way for way, heard in waiting.items() if not heard.is_set()]:
                    asked.append((way, secrets.randbits(64)))
                    self._asked_now[asked[-1]] = waiting[way]
                    self._ask(*asked[-1], SMALL)
                with suppress(TimeoutError):
                    async with asyncio.timeout(NOW):
                        for heard in waiting.values():
                            await heard.wait()
                        break
        finally:
            for one in asked:
                del self._asked_now[one]
        return frozenset(way for way, heard in waiting.items() if not heard.is_set())

    async def run(self) -> None:
        """Send what is due."""
        while True:
            await self._busy.wait()
            self._tick(time.monotonic())
            await asyncio.sleep(TICK)

    async def close(self) -> None:
        """Shut all sockets."""
        for end in list(self._sockets):
            self._shut(end)

    def _shut(self, end: End) -> None:
        opened = self._sockets.pop(end)
        asyncio.get_running_loop().remove_reader(opened.fileno())
        opened.close()

    def _tick(self, now: float) -> None:
        left = MOST_SENT
        for way, sending in sorted(self._ways.items(), key=lambda one: one[1].small_at):
            for nonce, (size, at) in list(sending.unanswered.items()):
                if now - at >= ANSWERED_WITHIN:
                    del sending.unanswered[nonce]
                    self._learn(way, self.evidence[way].loss(now, size))
            if left > 0:
                left -= self._send_due(way, sending, now)

    def _send_due(self, way: Way, sending: _Sending, now: float) -> int:
        sent = 0
        if now >= sending.small_at:
            rest = SOON if sending.target.soon else LATER
            sending.small_at = now + max(rest, len(self._ways) / WAYS_EACH_SECOND)
            self._send(way, sending, SMALL, now)
            sent += 1
        evidence = self.evidence[way]
        if evidence.answered and now >= sending.large_at and _waiting(sending) < TRIES:
            search = evidence.search
            if search.done and now >= sending.top_at:
                sending.top_at = now + FROM_TOP
                if search.good < search.most:
                    evidence = evidence.again()
                    search = evidence.search
                    self.evidence[way] = evidence
            sending.large_at = now + (LARGE if search.done else SEEKING)
            self._send(way, sending, search.good if search.done else search.size, now)
            sent += 1
        return sent

    def _send(self, way: Way, sending: _Sending, size: int, now: float) -> None:
        if End(way.link, way.local) not in self._sockets:
            return
        nonce = secrets.randbits(64)
        self.evidence[way] = self.evidence[way].tried(int(time.time()), size)
        sending.unanswered[nonce] = size, now
        self._ask(way, nonce, size)

    def _ask(self, way: Way, nonce: int, size: int) -> None:
        """What cannot be sent is not answered."""
        opened = self._sockets.get(End(way.link, way.local))
        if opened is not None:
            with suppress(OSError):
                opened.sendto(question(nonce, size, way.remote.version), (str(way.remote), self._port))

    def _hear(self, end: End, opened: socket.socket) -> None:
        for _ in range(MOST_HEARD):
            try:
                heard = receive(opened)
            except OSError:  # an ICMP error, or the interface is gone
                continue
            if heard is None:
                return
            payload, text = heard
            sender, probe = ip_address(text.partition("%")[0]), read_probe(payload, end.local.version)
            if probe is None or sender not in self._peers:
                continue
            if not probe.is_answer:
                with suppress(OSError):
                    opened.sendto(answer(probe), (str(sender), self._port))
                continue
            self._answered(end, sender, probe.nonce)

    def _answered(self, end: End, sender: Address, nonce: int) -> None:
        way = self._by_end.get((end, sender))
        if way is None:
            return
        if (heard := self._asked_now.get((way, nonce))) is not None:
            heard.set()
        known = self._ways[way].unanswered.pop(nonce, None)
        if known is None:
            return
        now, (size, at) = time.monotonic(), known
        if size > SMALL and not self.evidence[way].search.done:
            self._ways[way].unanswered = {one: of for one, of in self._ways[way].unanswered.items() if of[0] == SMALL}
            self._ways[way].large_at = now
        self._learn(way, self.evidence[way].answer(now, size, int((now - at) * 1e6)))

    def _learn(self, way: Way, after: Evidence) -> None:
        before, self.evidence[way] = self.evidence[way], after
        if (before.verdict, before.mtu) != (after.verdict, after.mtu):
            self._changed()


def _waiting(sending: _Sending) -> int:
    """How many large packets are not answered yet."""
    return sum(size > SMALL for size, _ in sending.unanswered.values())
