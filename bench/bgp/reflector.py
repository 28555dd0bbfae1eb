"""A route reflector with hundreds of clients, all of which send at once: are hold timers kept, and what holds the loop.

    python -m bench.bgp.reflector [--clients 500] [--routes 200] [--hold 9] [--rest 20] [--output json]

This project's speaker reflects (RFC 4456) what each client sends to all others, 50 million routes with the usual
numbers. The clients are one process, each a connection of its own over loopback in a namespace; each sends a KEEPALIVE
every third of the hold time and takes a session for lost when nothing has come for the whole of it.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from bench.bgp.airmesh import Asked, Said
from bench.bgp.ground import SPEAKER as NAMESPACE
from bench.bgp.ground import links, namespaces, path
from bench.bgp.measured import usage
from bench.bgp.speakers import FOLDER, Program, Running
from bench.bgp.tables import SPEAKER
from bench.first.figures import table
from linux.netns import inside, open_netns
from services.routing.core.bgp.codec.messages import HEADER, MessageKind, encode_open, keepalive
from services.routing.core.bgp.codec.updates import Unwritable, UpdateWriter
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.values import Agreed, Attributes, Family, Origin, Segment, SegmentKind

REFLECTOR = "127.1.0.1"
PORT = 179
PATIENCE = 600.0
"""Seconds in which all sessions have to come up, and again in which all routes have to arrive."""
PREFIX_OCTETS = 4
"""Of each prefix: all have 24 bits."""


def address(number: int) -> str:
    """A client's."""
    return f"127.2.{number // 250}.{number % 250 + 1}"


def routes_of(number: int, count: int) -> bytes:
    """What a client sends: prefixes by a next hop of its own on a link of the reflector, and End-of-RIB."""
    writer = UpdateWriter(Agreed(families=frozenset({Family.IPV4}), four_octets=True, external=False))
    first, _ = links(Family.IPV4)
    attributes = Attributes(
        origin=Origin.IGP,
        as_path=(Segment(SegmentKind.SEQUENCE, (70_000 + number, 3000 + number % 7)),),
        next_hop=first.speaker + 1 + number % 200,
        local_pref=100,
    )
    prefixes = [bytes((24,)) + ((20 << 16) + number * count + at).to_bytes(3) for at in range(count)]
    written = writer.write(Family.IPV4, attributes, prefixes)
    if isinstance(written, Unwritable):
        raise SystemExit(f"a client's routes cannot be written: {written.reason}")
    return b"".join((*written, writer.end_of_rib(Family.IPV4)))


class Client:
    """One client's connection."""

    def __init__(self, number: int, hold: int) -> None:
        self.number = number
        self.established = False
        self.lost = ""
        """How the session ended; empty: it is up."""
        self.count = 0
        """Prefixes that came."""
        self.longest = 0.0
        """Seconds in which nothing came, at most."""
        self._hold = hold
        self._rest = b""
        self._heard = self._said = time.monotonic()
        settings = SessionSettings(
            address=IPv4Address(REFLECTOR),
            local_asn=SPEAKER,
            peer_asn=SPEAKER,
            router_id=IPv4Address(f"172.29.{number // 250}.{number % 250 + 1}"),
            hold_seconds=hold,
            families=frozenset({Family.IPV4}),
            extended_messages=False,
            restart_seconds=0,
        )
        self.socket = socket.socket()
        self.socket.bind((address(number), 0))
        self.socket.settimeout(PATIENCE)
        self.socket.connect((REFLECTOR, PORT))
        self.socket.sendall(encode_open(negotiation.opening(settings, negotiation.offered(settings))) + keepalive())

    def read(self) -> None:
        """Take what has come."""
        try:
            octets = self.socket.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost = str(error)
            return
        if not octets:
            self.lost = self.lost or "the reflector has closed the connection"
            return
        now = time.monotonic()
        self.longest, self._heard = max(self.longest, now - self._heard), now
        self._take(self._rest + octets)

    def _take(self, octets: bytes) -> None:
        at, stop = 0, len(octets)
        while at + HEADER <= stop and at + (size := octets[at + 16] << 8 | octets[at + 17]) <= stop:
            kind = octets[at + 18]
            if kind == MessageKind.UPDATE:
                withdrawn = octets[at + 19] << 8 | octets[at + 20]
                lengths = at + 21 + withdrawn
                attributes = octets[lengths] << 8 | octets[lengths + 1]
                self.count += (size - 23 - withdrawn - attributes) // PREFIX_OCTETS
                self.count -= withdrawn // PREFIX_OCTETS
            elif kind == MessageKind.KEEPALIVE:
                self.established = True
            elif kind == MessageKind.NOTIFICATION:
                self.lost = f"NOTIFICATION {octets[at + 19]}/{octets[at + 20]}"
            at += size
        self._rest = octets[at:]

    def tick(self) -> None:
        """Say that it is there, and find that the reflector is not."""
        now = time.monotonic()
        if now - self._heard > self._hold:
            self.lost = self.lost or f"nothing came for {now - self._heard:.1f} s"
        if now - self._said >= self._hold / 3:
            self.send(keepalive())

    def send(self, octets: bytes) -> None:
        """Send it."""
        try:
            self.socket.sendall(octets)
            self._said = time.monotonic()
        except OSError as error:
            self.lost = self.lost or str(error)


class Clients:
    """All of them, in one thread."""

    def __init__(self, count: int, hold: int) -> None:
        self.all: list[Client] = []
        self._selector = selectors.DefaultSelector()
        descriptor = open_netns(path(NAMESPACE))
        for number in range(count):
            with inside(descriptor):
                client = Client(number, hold)
            self.all.append(client)
            self._selector.register(client.socket, selectors.EVENT_READ, client)
            self.poll(0)

    def poll(self, seconds: float = 0.2) -> None:
        """One round of reading, and of timers."""
        for key, _ in self._selector.select(seconds):
            client: Client = key.data
            client.read()
        for client in self.all:
            if not client.lost:
                client.tick()
            elif client.socket.fileno() >= 0:
                self._selector.unregister(client.socket)
                client.socket.close()

    def close(self) -> None:
        """End without a word."""
        for client in self.all:
            with suppress(OSError):
                client.socket.close()
        self._selector.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of it."""

    clients: int
    routes: int
    """Of each client."""
    hold_seconds: int
    seconds: float | None
    """From the first route that was sent until every client had all of the others'; None: it never had."""
    cpu_seconds: float
    """Of the reflector meanwhile."""
    pss_mib: float
    """By which it has grown."""
    lost: int
    """Sessions that were lost, as the reflector and the clients count them."""
    reasons: tuple[str, ...]
    longest_silence: float
    """Seconds in which a client heard nothing."""
    held_seconds: float
    """The longest hold of the reflector's loop, on the clock."""
    held_cpu: float
    """The longest hold in CPU time."""
    held_by: str
    """What held it longest on the clock."""


def reflector(clients: int, hold: int) -> Program:
    """This project's speaker as a route reflector."""
    asked = Asked(
        asn=SPEAKER,
        router_id="172.28.255.2",
        family="IPV4",
        uplinks=("up0",),
        addresses={4: REFLECTOR},
        peers={address(number): (SPEAKER, REFLECTOR) for number in range(clients)},
        hold_seconds=hold,
        clients=True,
        listens=True,
    )
    argv = (sys.executable, "-m", "bench.bgp.airmesh", msgspec.json.encode(asked).decode())
    return Program(argv=argv, environment={"PYTHONPATH": str(FOLDER.parent.parent)}, version=(sys.executable, "-V"))


def said(running: Running) -> list[Said]:
    """What the reflector has said until now."""
    lines = running.output.read_text().splitlines()
    return [msgspec.json.decode(line, type=Said) for line in lines if line.endswith("}")]


def measure(clients: int, routes: int, hold: int, rest: float) -> Outcome:
    """All clients send at once; then all stay for `rest` seconds."""
    with ExitStack() as stack:
        stack.enter_context(namespaces())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airmesh-bench-bgp-")))
        running = stack.enter_context(Running("airmesh", reflector(clients, hold), folder))
        deadline = time.monotonic() + PATIENCE
        while not said(running) and not running.death():
            time.sleep(0.1)
        fleet = Clients(clients, hold)
        stack.callback(fleet.close)
        while not all(one.established or one.lost for one in fleet.all) and time.monotonic() < deadline:
            fleet.poll()
        before, began = usage(running.pid), time.monotonic()
        for one in fleet.all:
            one.send(routes_of(one.number, routes))
            fleet.poll(0)
        wanted, ended = (clients - 1) * routes, None
        while ended is None and time.monotonic() < began + PATIENCE and not running.death():
            fleet.poll()
            if all(one.count == wanted for one in fleet.all):
                ended = time.monotonic()
            elif all(one.lost for one in fleet.all):
                break
        after = usage(running.pid)
        while time.monotonic() < (ended or began) + rest:
            fleet.poll()
        reported = said(running)
        reasons = tuple(sorted({one.lost for one in fleet.all if one.lost}))
        return Outcome(
            clients=clients,
            routes=routes,
            hold_seconds=hold,
            seconds=ended - began if ended is not None else None,
            cpu_seconds=after.cpu_seconds - before.cpu_seconds,
            pss_mib=(after.pss_kib - before.pss_kib) / 1024,
            lost=max(reported[-1].lost, sum(bool(one.lost) for one in fleet.all)),
            reasons=reasons,
            longest_silence=max(one.longest for one in fleet.all),
            held_seconds=max(one.held_seconds for one in reported),
            held_cpu=max(one.held_cpu for one in reported),
            held_by=max(reported, key=lambda one: one.held_seconds).held_by,
        )


def report(outcome: Outcome) -> str:
    """For people."""
    took = f"{outcome.seconds:.1f} s" if outcome.seconds is not None else "never"
    rows = [
        ("every client has all routes of the others after", took),
        ("CPU of the reflector meanwhile", f"{outcome.cpu_seconds:.1f} s"),
        ("memory more", f"{outcome.pss_mib:.0f} MiB"),
        (f"sessions lost, of {outcome.clients} with a hold time of {outcome.hold_seconds} s", str(outcome.lost)),
        ("longest time in which a client heard nothing", f"{outcome.longest_silence:.2f} s"),
        ("longest hold of the loop, on the clock", f"{outcome.held_seconds * 1000:.0f} ms, {outcome.held_by}"),
        ("longest hold of the loop, of a CPU", f"{outcome.held_cpu * 1000:.0f} ms"),
    ]
    return "\n\n".join((table((f"{outcome.clients} clients of {outcome.routes} routes", ""), rows), *outcome.reasons))


def main(words: Sequence[str]) -> int:
    """Print what was measured; 1 where a session was lost, or a route."""
    parser = argparse.ArgumentParser(prog="python -m bench.bgp.reflector", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--routes", type=int, default=200)
    parser.add_argument("--hold", type=int, default=9)
    parser.add_argument("--rest", type=float, default=20.0, help="seconds that all stay afterwards")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    asked = parser.parse_args(words)
    outcome = measure(asked.clients, asked.routes, asked.hold, asked.rest)
    print(json.dumps(asdict(outcome)) if asked.output == "json" else report(outcome))
    return 0 if outcome.seconds is not None and not outcome.lost else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
