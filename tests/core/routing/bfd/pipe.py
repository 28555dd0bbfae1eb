"""Two nodes whose BFD sessions are joined by a pipe that may lose, delay and double packets, in time that is counted.

Microseconds. Each direction has a probability of loss; packets take between 0 and ``delay`` and may pass each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from ipaddress import ip_address

from services.routing.core.bfd.packet import HOPS, ControlPacket, State, write_packet
from services.routing.core.bfd.session import Session, Settings
from services.routing.core.bfd.sessions import Key, Outgoing, Sessions

ONE, TWO = ip_address("10.0.0.1"), ip_address("10.0.0.2")
KEYS = (Key(ONE, TWO, "eth0"), Key(TWO, ONE, "eth0"))


@dataclass
class Pipe:
    """Ends 0 and 1; ``loss[i]`` is of what end ``i`` sends."""

    dice: random.Random
    settings: tuple[Settings, Settings] = (Settings(), Settings())
    loss: tuple[float, float] = (0.0, 0.0)
    delay: int = 1_000
    double: float = 0.0
    now: int = 0
    sent: list[tuple[int, int, ControlPacket]] = field(default_factory=list)
    """When, by which end, what."""
    _under_way: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self.ends = [
            Sessions(independent=True, discriminators=lambda: self.dice.getrandbits(32), jitters=self.dice.random)
            for _ in KEYS
        ]
        for end in (0, 1):
            self.configure(end, self.settings[end])

    def configure(self, end: int, settings: Settings) -> None:
        self._send(end, self.ends[end].want({KEYS[end]: settings}, self.now))

    def session(self, end: int) -> Session:
        return self.ends[end].by_key[KEYS[end]]

    @property
    def states(self) -> tuple[State, State]:
        return self.session(0).state, self.session(1).state

    def run(self, microseconds: int) -> None:
        """Lets time pass."""
        stop = self.now + microseconds
        while True:
            moments = [end.next_at for end in self.ends if end.next_at is not None]
            moments += [self._under_way[0][0]] if self._under_way else []
            if not moments or min(moments) > stop:
                break
            self.now = max(self.now, min(moments))
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, end, octets = heappop(self._under_way)
                self._send(end, self.ends[end].receive(KEYS[end], octets, HOPS, self.now))
            for number, end_of in enumerate(self.ends):
                self._send(number, end_of.elapse(self.now))
        self.now = stop

    def _send(self, end: int, packets: list[Outgoing]) -> None:
        for _, packet in packets:
            self.sent.append((self.now, end, packet))
            if self.dice.random() < self.loss[end]:
                continue
            for _ in range(1 + (self.dice.random() < self.double)):
                self._count += 1
                at = self.now + self.dice.randint(0, self.delay)
                heappush(self._under_way, (at, self._count, 1 - end, write_packet(packet)))
