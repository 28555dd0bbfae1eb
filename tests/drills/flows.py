"""Traffic that keeps count of itself at both ends, and knocks where nobody may enter. Standard library only.

Run inside a pod's network namespace (`nsenter --net`), commanded over stdin: each line of input is answered with one
JSON line, what was seen since the last; the end of input ends the program, so it never outlives its drill.

    flows.py serve PORT FRIEND…          echoes TCP and UDP on both families; FRIEND: addresses that may come
    flows.py send PORT TCP UDP TARGET…   TCP and UDP flows, shared out over the targets, ten messages a second each
    flows.py knock PORT TARGET…          a TCP SYN and a datagram to each target every 20 ms; an answer is a breach
    flows.py stream PORT RATE TARGET…    numbered datagrams, RATE a second, shared out over the targets; none comes back
    flows.py sink PORT                   counts what comes of streams, and the longest silence of each

Every message is (flow, number). A flow is broken when its connection ends or its numbers do not follow each other;
datagrams that did not come back within two seconds are lost. Whoever is no FRIEND and is heard at all is a breach too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
import time
from typing import Any

MESSAGE = struct.Struct("!IQ")
EVERY = 0.1
KNOCK_EVERY = 0.02
KNOCK = 0xFFFF
LATE = 2.0
ROOM = 8 << 20
"""Bytes a socket may queue while this program does not get a processor: what is lost must be lost by the network."""
_RCVBUFFORCE = 33  # SO_RCVBUFFORCE of asm-generic/socket.h
Address = tuple[Any, ...]


def plain(address: str) -> str:
    """An address as people write it: a mapped one as IPv4."""
    return address.removeprefix("::ffff:")


class Server:
    """Counts at the receiving end."""

    def __init__(self, friends: set[str]) -> None:
        self.friends = friends
        self.next: dict[tuple[bool, str, int, int], int] = {}
        """(Whether a stream, address, port, flow) → the number that is due: TCP and UDP have ports of their own."""
        self.broken: list[str] = []
        self.breaches: list[str] = []
        self.heard = self.skipped = 0

    def welcome(self, peer: Address, what: str) -> bool:
        if plain(peer[0]) in self.friends:
            return True
        self.breaches.append(f"{what} from {plain(peer[0])} at {time.time():.3f}")
        return False

    def take(self, peer: Address, message: bytes, *, stream: bool) -> None:
        flow, number = MESSAGE.unpack(message)
        key = (stream, plain(peer[0]), peer[1], flow)
        expected = self.next.get(key, 0)
        self.heard += 1
        if flow == KNOCK:
            return
        if number < expected or (stream and number != expected):
            self.broken.append(f"flow {flow} from {key[1]}: {number} came where {expected} was due")
        self.skipped += max(0, number - expected)
        self.next[key] = number + 1

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            while self.welcome(peer, "TCP"):
                message = await reader.readexactly(MESSAGE.size)
                self.take(peer, message, stream=True)
                writer.write(message)
        except (OSError, asyncio.IncompleteReadError) as end:
            if any(key[:3] == (True, plain(peer[0]), peer[1]) for key in self.next):  # a knock says nothing and goes
                self.broken.append(f"TCP from {plain(peer[0])} ended: {end!r}")
        finally:
            writer.close()

    def report(self) -> dict[str, Any]:
        said = {"heard": self.heard, "skipped": self.skipped, "broken": self.broken, "breaches": self.breaches}
        self.heard, self.skipped, self.broken, self.breaches = 0, 0, [], []
        return said


class Echo(asyncio.DatagramProtocol):
    """The server's datagrams."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, message: bytes, peer: Address) -> None:
        if self.server.welcome(peer, "UDP") and len(message) == MESSAGE.size:
            self.server.take(peer, message, stream=False)
            self.transport.sendto(message, peer)


class Sender:
    """Counts at the sending end."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.waiting: dict[tuple[str, int, int], float] = {}
        self.sent = self.echoed = 0
        self.longest = {"tcp": 0.0, "udp": 0.0}

    def left(self, kind: str, flow: int, number: int) -> bytes:
        self.waiting[kind, flow, number] = time.monotonic()
        self.sent += 1
        return MESSAGE.pack(flow, number)

    def back(self, kind: str, message: bytes) -> None:
        flow, number = MESSAGE.unpack(message)
        left = self.waiting.pop((kind, flow, number), None)
        if left is not None:
            self.echoed += 1
            self.longest[kind] = max(self.longest[kind], time.monotonic() - left)

    async def tcp(self, flow: int, target: str, port: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(target, port)
            send = asyncio.create_task(self._feed(flow, writer))
            try:
                number = 0
                while True:
                    message = await reader.readexactly(MESSAGE.size)
                    if MESSAGE.unpack(message) != (flow, number):
                        self.broken.append(f"TCP {flow}: {MESSAGE.unpack(message)} came where {number} was due")
                    self.back("tcp", message)
                    number += 1
            finally:
                send.cancel()
        except (OSError, asyncio.IncompleteReadError) as end:
            self.broken.append(f"TCP flow {flow} to {target} ended: {end!r}")

    async def _feed(self, flow: int, writer: asyncio.StreamWriter) -> None:
        number = 0
        while True:
            writer.write(self.left("tcp", flow, number))
            number += 1
            await asyncio.sleep(EVERY)

    async def udp(self, flow: int, target: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Heard(self), remote_addr=(target, port))
        number = 0
        while True:
            transport.sendto(self.left("udp", flow, number))
            number += 1
            await asyncio.sleep(EVERY)

    def report(self) -> dict[str, Any]:
        now = time.monotonic()
        late = [key for key, left in self.waiting.items() if now - left > LATE]
        lost = {kind: sum(key[0] == kind for key in late) for kind in ("tcp", "udp")}
        for key in late:
            if key[0] == "udp":  # a stream's bytes are still to come
                del self.waiting[key]
        longest = {kind: round(seconds, 3) for kind, seconds in self.longest.items()}
        said = {"sent": self.sent, "echoed": self.echoed, "lost": lost, "broken": self.broken, "longest": longest}
        self.sent = self.echoed = 0
        self.broken, self.longest = [], {"tcp": 0.0, "udp": 0.0}
        return said


class Heard(asyncio.DatagramProtocol):
    """The sender's datagrams. A refusal is a datagram that does not come back."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender

    def datagram_received(self, message: bytes, _peer: Address) -> None:
        self.sender.back("udp", message)


class Knocker:
    """Tries, every 20 ms, what policy forbids."""

    def __init__(self, port: int, targets: list[str]) -> None:
        self.port, self.targets = port, targets
        self.tries = 0
        self.longest = 0.0
        self.breaches: list[str] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        datagrams = {}
        for target in self.targets:
            family = socket.AF_INET6 if ":" in target else socket.AF_INET
            made = datagrams[target] = socket.socket(family, socket.SOCK_DGRAM)
            made.setblocking(False)
            loop.add_reader(made, self._answered, made, target)
        last = time.monotonic()
        under_way = set()
        while True:
            for target in self.targets:
                self.tries += 2
                with contextlib.suppress(OSError):  # a refusal by the sender's own node is no breach
                    datagrams[target].sendto(MESSAGE.pack(KNOCK, self.tries), (target, self.port))
                task = asyncio.create_task(self._connect(target))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.sleep(KNOCK_EVERY)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now

    def _answered(self, made: socket.socket, target: str) -> None:
        with contextlib.suppress(OSError):
            made.recv(100)
            self.breaches.append(f"{target} answered a datagram at {time.time():.3f}")

    async def _connect(self, target: str) -> None:
        with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as made:
            made.setblocking(False)
            try:
                # one SYN each: the second would come after a second
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(made, (target, self.port)), 0.9)
            except (TimeoutError, PermissionError):
                return
            except ConnectionRefusedError:
                pass
            except OSError:
                return
            self.breaches.append(f"{target} answered a SYN at {time.time():.3f}")

    def report(self) -> dict[str, Any]:
        said = {"tries": self.tries, "breaches": self.breaches, "longest_pause": round(self.longest, 3)}
        self.tries, self.longest, self.breaches = 0, 0.0, []
        return said


class Stream:
    """Sends datagrams at a rate, each target's numbered by itself."""

    def __init__(self, port: int, rate: int, targets: list[str]) -> None:
        self.rate = rate
        self.sent = [0] * len(targets)
        self.refused = 0
        """Of those: what this node's kernel did not take. They are lost, too."""
        self._sockets = []
        for target in targets:
            made = bound(socket.AF_INET6 if ":" in target else socket.AF_INET, "::" if ":" in target else "0.0.0.0", 0)
            made.connect((target, port))
            self._sockets.append(made)

    async def run(self) -> None:
        first, number = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - first) * self.rate)
            while number < due:
                flow = number % len(self._sockets)
                try:
                    self._sockets[flow].send(MESSAGE.pack(flow, self.sent[flow]))
                except OSError:
                    self.refused += 1
                self.sent[flow] += 1
                number += 1
            await asyncio.sleep(0.001)

    def report(self) -> dict[str, Any]:
        """So far, not since the last."""
        return {"sent": self.sent, "refused": self.refused}


class Sink:
    """What comes of streams: of each its count, the number that is due, the longest silence since the last report."""

    def __init__(self, port: int) -> None:
        self.streams: dict[tuple[str, int], list[float]] = {}
        """(Sender's address, flow) → received, due, when last, longest silence."""
        loop = asyncio.get_running_loop()
        for family, local in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            made = bound(family, local, port)
            loop.add_reader(made, self._read, made)

    def _read(self, made: socket.socket) -> None:
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            for _ in range(256):
                message, peer = made.recvfrom(100)
                flow, number = MESSAGE.unpack(message)
                one = self.streams.setdefault((plain(peer[0]), flow), [0, 0, now, 0.0])
                one[0] += 1
                one[1] = max(one[1], number + 1)
                one[3] = max(one[3], now - one[2])
                one[2] = now

    def report(self) -> dict[str, Any]:
        said = [
            {"source": source, "flow": flow, "received": received, "due": due, "silence": round(silence, 4)}
            for (source, flow), (received, due, _, silence) in self.streams.items()
        ]
        for one in self.streams.values():
            one[3] = 0.0
        return {"streams": said}


def bound(family: int, local: str, port: int) -> socket.socket:
    """A socket for datagrams of one family."""
    made = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, ROOM)
    made.bind((local, port))
    return made


async def main(arguments: list[str]) -> None:
    role, port, rest = arguments[0], int(arguments[1]), arguments[2:]
    loop = asyncio.get_running_loop()
    who: Server | Sender | Knocker | Stream | Sink
    tasks = []
    if role == "serve":
        who = server = Server(set(rest))
        listening = await asyncio.start_server(server.stream, ["0.0.0.0", "::"], port, backlog=256)
        tasks.append(asyncio.create_task(listening.serve_forever()))
        for family, local in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            await loop.create_datagram_endpoint(lambda: Echo(server), sock=bound(family, local, port))
    elif role == "send":
        who = sender = Sender()
        streams, datagrams, targets = int(rest[0]), int(rest[1]), rest[2:]
        for flow in range(streams + datagrams):
            run = sender.tcp if flow < streams else sender.udp
            tasks.append(asyncio.create_task(run(flow, targets[flow % len(targets)], port)))
    elif role == "stream":
        who = stream = Stream(port, int(rest[0]), rest[1:])
        tasks.append(asyncio.create_task(stream.run()))
    elif role == "sink":
        who = Sink(port)
    else:
        who = knocker = Knocker(port, rest)
        tasks.append(asyncio.create_task(knocker.run()))
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        ended = [repr(task.exception()) for task in tasks if task.done() and not task.cancelled() and task.exception()]
        print(json.dumps({**who.report(), "faults": ended}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
