"""Two BGP speakers' machines on one clock, with connections between them that fragment, break and fall silent."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from random import Random

from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session.actions import (
    OUTGOING,
    Action,
    Close,
    Connect,
    Established,
    Link,
    Lost,
    Send,
)
from services.routing.core.bgp.session.machine import Machine
from services.routing.core.bgp.session.reasons import Reason

BROKEN = Reason("the connection broke")


def settings(number: int = 1, other: int = 2, /, **more: object) -> SessionSettings:
    """Of the speaker 10.0.0.<number>, AS 65000 + number, towards the other one."""
    usual: dict[str, object] = {
        "address": ip_address(f"10.0.0.{other}"),
        "local_asn": 65000 + number,
        "peer_asn": 65000 + other,
        "router_id": ip_address(f"10.0.0.{number}"),
    }
    return SessionSettings(**(usual | more))  # type: ignore[arg-type]


@dataclass
class Pipe:
    """A TCP connection; the speaker ``maker`` has made it."""

    maker: int
    links: dict[int, Link] = field(default_factory=dict)
    """By speaker, as long as it has it open."""
    arrives: dict[int, float] = field(default_factory=dict)
    """When the last octets to a speaker arrive: nothing overtakes."""
    silent: bool = False


class World:
    """Speakers 0 and 1."""

    def __init__(self, one: SessionSettings, two: SessionSettings, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.machines = [Machine(one, random.random), Machine(two, random.random)]
        self.log: list[list[Action]] = [[], []]
        self.pipes: list[Pipe] = []
        self.reachable = True
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def start(self, speaker: int) -> None:
        self.do(speaker, self.machines[speaker].start(self.now))

    def run(self, until: float) -> None:
        """Let time pass."""
        steps = 0
        while True:
            deadlines = [(at, who) for who, one in enumerate(self.machines) if (at := one.deadline) is not None]
            timer = min(deadlines, default=(until, 0))
            queued = self._queue[0][0] if self._queue else until
            if min(timer[0], queued) >= until:
                break
            steps += 1
            assert steps < 100_000, "the machines come to no rest"
            if queued <= timer[0]:
                at, _, act = heapq.heappop(self._queue)
                self.now = max(self.now, at)
                act()
            else:
                self.now = max(self.now, timer[0])
                self.do(timer[1], self.machines[timer[1]].tick(self.now))
        self.now = until

    def do(self, speaker: int, actions: list[Action]) -> None:
        for action in actions:
            self.log[speaker].append(action)
            match action:
                case Connect():
                    self._connect(speaker)
                case Send(link, octets):
                    self._send(speaker, link, octets)
                case Close(link):
                    self._close(speaker, link)
                case _:
                    pass

    def up(self) -> bool:
        """Both hold the session by one connection, and there is no other."""
        held = [one.session.link if one.session else None for one in self.machines]
        opened = [pipe for pipe in self.pipes if pipe.links]
        return None not in held and len(opened) == 1 and opened[0].links == dict(enumerate(held))

    def sessions(self, speaker: int) -> list[type[Action]]:
        return [type(one) for one in self.log[speaker] if isinstance(one, Established | Lost)]

    def cut(self, *, silent: bool) -> None:
        """All connections break; ``silent``: nobody learns of it."""
        for pipe in self.pipes:
            if silent:
                pipe.silent = True
                continue
            for speaker in list(pipe.links):
                self._fail(pipe, speaker)

    def _later(self, act: Callable[[], None], at: float | None = None) -> None:
        when = self.now + self.random.uniform(0.001, 0.3) if at is None else at
        heapq.heappush(self._queue, (when, next(self._numbers), act))

    def _connect(self, speaker: int) -> None:
        pipe = Pipe(speaker, {speaker: OUTGOING})
        self.pipes.append(pipe)
        if self.reachable:
            self._later(lambda: self._made(pipe))
        elif self.random.random() < 0.5:
            self._later(lambda: self._fail(pipe, speaker))

    def _made(self, pipe: Pipe) -> None:
        maker, other = pipe.maker, 1 - pipe.maker
        if maker not in pipe.links:
            return
        self.do(maker, self.machines[maker].connected(self.now))
        link, actions = self.machines[other].accept(self.now)
        if link is None:
            self._later(lambda: self._fail(pipe, maker))
        else:
            pipe.links[other] = link
        self.do(other, actions)

    def _pipe(self, speaker: int, link: Link) -> Pipe:
        return next(pipe for pipe in reversed(self.pipes) if pipe.links.get(speaker) == link)

    def _send(self, speaker: int, link: Link, octets: bytes) -> None:
        pipe, other = self._pipe(speaker, link), 1 - speaker
        at = max(self.now, pipe.arrives.get(other, 0.0))
        while octets:
            size = self.random.randint(1, len(octets))
            part, octets = octets[:size], octets[size:]
            at += self.random.uniform(0.0, 0.05)
            self._later(lambda part=part: self._arrive(pipe, other, part), at)  # type: ignore[misc]
        pipe.arrives[other] = at
        self.machines[speaker].sent(self.now, link)

    def _arrive(self, pipe: Pipe, speaker: int, octets: bytes) -> None:
        if speaker in pipe.links and not pipe.silent:
            self.do(speaker, self.machines[speaker].received(self.now, pipe.links[speaker], octets))

    def _close(self, speaker: int, link: Link) -> None:
        pipe, other = self._pipe(speaker, link), 1 - speaker
        del pipe.links[speaker]
        if not pipe.silent:
            self._later(lambda: self._fail(pipe, other), max(self.now, pipe.arrives.get(other, 0.0)) + 0.01)

    def _fail(self, pipe: Pipe, speaker: int) -> None:
        link = pipe.links.get(speaker)
        if link is not None:
            self.do(speaker, self.machines[speaker].failed(self.now, link, BROKEN))
            pipe.links.pop(speaker, None)
