"""Two ends of BFD sessions in namespaces: this node's process with its agent's side, and a switch that runs BIRD.

What the link between them carries is captured at the switch, each packet with the time that the kernel gave it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest

from chassis.telemetry.log import Log
from linux.netns import command, inside, open_netns
from proto.net import Address
from services.routing.bfd.client import Bfd
from services.routing.bfd.messages import LOCK
from services.routing.core.bfd.packet import PORT, ControlPacket, read_packet
from services.routing.core.bfd.session import Failure, Settings
from services.routing.core.bfd.sessions import Key
from tests.netns.routing.conftest import Netns

T = TypeVar("T")
OWN = {4: ip_address("172.30.0.11"), 6: ip_address("fd00:172:30::11")}
PEER = {4: ip_address("172.30.0.12"), 6: ip_address("fd00:172:30::12")}
KEYS = {family: Key(OWN[family], PEER[family], "fab0") for family in (4, 6)}
FAST = Settings()
WAIT = 60.0
FIRST = ("chrt", "--rr", "1")
"""Runs a switch before others: what it sends late on a busy machine would be this node's failure."""


def need(program: str, package: str) -> str:
    """The program's path; a test that cannot have it says what it lacks."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/frr")
    if found is None:
        pytest.skip(f"this machine lacks the program {program}: apt-get install {package}")
    return found


async def until(done: Callable[[], object], what: str) -> None:
    """Waits for something to be true."""
    async with asyncio.timeout(WAIT):
        while not done():
            await asyncio.sleep(0.01)
    assert done(), what


@dataclass
class Agent:
    """The agent's side, and what it was called with."""

    netns: Netns
    folder: Path
    linger: float = 20.0
    independent: bool | None = None
    calls: list[tuple[str, Key, Failure | None]] = field(default_factory=list)
    bfd: Bfd = field(init=False)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """An agent without memory."""
        self.bfd = Bfd(
            self.folder,
            Log("routing", "error"),
            up=lambda key: self.calls.append(("up", key, None)),
            down=lambda key, failure: self.calls.append(("down", key, failure)),
            namespace=self.netns.path,
            linger_seconds=self.linger,
            independent=self.independent,
        )

    def start(self, wanted: Mapping[Key, Settings]) -> None:
        self.bfd.sessions(wanted)
        self.task = asyncio.create_task(self.bfd.run())

    async def kill(self) -> None:
        """What becomes of the agent's side when the agent is killed: its connection ends, without a word."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.task = None

    async def up(self, *keys: Key) -> None:
        def is_up() -> bool:
            return all(key in self.bfd.statuses and self.bfd.statuses[key].state.name == "UP" for key in keys)

        await until(is_up, f"{keys} are up")

    @property
    def pid(self) -> int:
        """Of the process; 0: there is none."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / LOCK).read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return pid if b"services.routing.bfd" in words and str(self.folder).encode() in words else 0
        return 0

    def end(self) -> None:
        """The process, however it is."""
        if pid := self.pid:
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            while self.pid and time.monotonic() - began < WAIT:
                time.sleep(0.01)


class Bird:
    """BIRD 2 in a namespace, with BFD alone."""

    def __init__(self, netns: Netns, folder: Path) -> None:
        self.netns = netns
        self.program, self.client = need("bird", "bird2"), need("birdc", "bird2")
        folder.mkdir(exist_ok=True)
        self.file, self.socket = folder / "bird.conf", folder / "bird.ctl"
        self.running: subprocess.Popen[bytes] | None = None

    def write(self, *, interval_ms: int = 50, multiplier: int = 3, more: str = "") -> None:
        neighbours = "\n".join(f'  neighbor {OWN[f]} dev "fab0" local {PEER[f]};' for f in (4, 6))
        self.file.write_text(
            f"""router id 172.30.0.12;
protocol device {{ scan time 1; }}
protocol bfd switch {{
  interface "fab0" {{ interval {interval_ms} ms; multiplier {multiplier}; idle tx interval 100 ms; {more} }};
{neighbours}
}}
"""
        )

    def start(self) -> None:
        words = command(str(self.netns.path), *FIRST, self.program, "-f", "-c", str(self.file), "-s", str(self.socket))
        self.running = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.wait(timeout=WAIT)
        self.running = None

    def ask(self, words: str) -> str:
        done = subprocess.run(
            [self.client, "-s", str(self.socket), *words.split()],
            check=False,
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        return done.stdout

    def sessions(self) -> dict[Address, list[str]]:
        """``show bfd sessions``: by neighbour, the columns Interface, State, Since, Interval, Timeout."""
        rows = [line.split() for line in self.ask("show bfd sessions").splitlines()]
        return {ip_address(row[0]): row[1:] for row in rows if len(row) == 6 and row[1] == "fab0"}

    def state(self, family: int) -> str:
        """Of the session with this node."""
        return self.sessions().get(OWN[family], ["", "none"])[1]


@dataclass(frozen=True)
class Seen:
    """One control packet on the link."""

    at: float
    source: Address
    port: int
    hops: int
    packet: ControlPacket


def in_netns(netns: Netns, work: Callable[[], T]) -> T:
    """Done by this thread in a namespace."""
    descriptor = open_netns(str(netns.path))
    try:
        with inside(descriptor):
            return work()
    finally:
        os.close(descriptor)


def send_from(netns: Netns, source: Address, to: Address, payload: bytes, *, hops: int) -> None:
    """One datagram to the port of BFD."""

    def sent() -> None:
        with socket.socket(socket.AF_INET if to.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as opened:
            if to.version == 4:
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
            else:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
            opened.bind((str(source), 0))
            opened.sendto(payload, (str(to), PORT))

    in_netns(netns, sent)


class Wire:
    """The control packets that one end of the link sends and receives."""

    def __init__(self, netns: Netns, interface: str = "fab0") -> None:
        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            made.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
            made.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
            made.bind((interface, 3))
            made.setblocking(False)
            return made

        self._socket = in_netns(netns, opened)
        self.seen: list[Seen] = []

    def read(self) -> list[Seen]:
        """All since the capture began."""
        with suppress(BlockingIOError):
            while True:
                frame, ancillary, _, _ = self._socket.recvmsg(2048, 64)
                seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
                if (one := seen(frame, seconds + nanoseconds / 1e9)) is not None:
                    self.seen.append(one)
        return self.seen

    def sent_by(self, address: Address) -> list[Seen]:
        """Those of one sender."""
        return [one for one in self.read() if one.source == address]

    def close(self) -> None:
        self._socket.close()


def seen(frame: bytes, at: float) -> Seen | None:
    """What a frame is, when it is a control packet."""
    packet = frame[14:]
    if packet[0] >> 4 == 4:
        start, protocol, hops, source = 20, packet[9], packet[8], ip_address(packet[12:16])
    else:
        start, protocol, hops, source = 40, packet[6], packet[7], ip_address(packet[8:24])
    ports = struct.unpack_from("!HH", packet, start) if protocol == 17 else (0, 0)
    if ports[1] != PORT:
        return None
    control = read_packet(packet[start + 8 :])
    assert isinstance(control, ControlPacket), control
    return Seen(at, source, ports[0], hops, control)
