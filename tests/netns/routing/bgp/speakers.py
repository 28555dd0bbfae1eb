"""This project's speaker in a namespace of its own, beside a real BIRD, FRR or ExaBGP in another, joined by a link."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from linux.netns import command, enter
from services.routing.bgp.speaker import Speaker
from services.routing.core.bgp.codec.messages import RouteRefresh
from services.routing.core.bgp.codec.updates import UpdateWriter
from services.routing.core.bgp.dissector import Passed
from services.routing.core.bgp.peers import Peer, SessionSettings
from services.routing.core.bgp.session.actions import DeferSelection, Established, Lost
from services.routing.core.bgp.session.restart import DropStale, LongLived
from services.routing.core.bgp.values import (
    Attributes,
    Family,
    Origin,
    Segment,
    SegmentKind,
    Update,
    network_of,
    prefix_of,
)

OURS, THEIRS = "172.31.0.2", "172.31.0.1"
OURS6, THEIRS6 = "fd00:172:31::2", "fd00:172:31::1"
FRR = Path("/usr/lib/frr")
PATIENCE = 40.0
"""Seconds: the machine may be busy."""
Result = TypeVar("Result")


def ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"ip {words}: {done.stderr}"


@dataclass
class Pair:
    """Two namespaces with one link: ours is ``.2``, theirs ``.1``; a second address each, ``.12`` and ``.11``."""

    ours: str
    theirs: str

    def run(self, *program: str) -> str:
        """A program beside the other speaker."""
        words = command(f"/run/netns/{self.theirs}", *program)
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr


@contextmanager
def two_namespaces() -> Iterator[Pair]:
    tag = uuid4().hex[:6]
    pair = Pair(f"am-b{tag}-o", f"am-b{tag}-t")
    made: list[str] = []
    try:
        for name in (pair.ours, pair.theirs):
            ip(f"netns add {name}")
            made.append(name)
            ip(f"-n {name} link set lo up")
        ip(f"-n {pair.ours} link add up0 type veth peer name up0 netns {pair.theirs}")
        for name, v4, v6 in ((pair.ours, OURS, OURS6), (pair.theirs, THEIRS, THEIRS6)):
            ip(f"-n {name} link set up0 up")
            ip(f"-n {name} addr add {v4}/24 dev up0")
            ip(f"-n {name} addr add {v6}/64 dev up0 nodad")
        yield pair
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


@dataclass
class Report:
    """What a speaker's owner was told, in order."""

    speaker: Speaker | None = None
    events: list[tuple[str, Any]] = field(default_factory=list)
    routes: dict[str, set[str]] = field(default_factory=dict)
    on_established: Callable[[str, Established], None] | None = None

    def established(self, name: str, session: Established) -> None:
        self.events.append((name, session))
        self.routes.setdefault(name, set())
        if self.on_established is not None:
            self.on_established(name, session)

    def lost(self, name: str, lost: Lost) -> None:
        self.events.append((name, lost))
        if not lost.kept:
            self.routes.get(name, set()).clear()

    def received(self, name: str, message: Update | RouteRefresh) -> None:
        self.events.append((name, message))
        if isinstance(message, Update):
            known = self.routes.setdefault(name, set())
            for gone in message.unreachable:
                known -= {str(network_of(gone.family, prefix)) for prefix in gone.prefixes}
            for come in message.reachable:
                known |= {str(network_of(come.family, prefix)) for prefix in come.prefixes}

    def tables(self, name: str, step: DropStale | LongLived | DeferSelection) -> None:
        self.events.append((name, step))

    def writable(self, name: str) -> None:
        self.events.append((name, "writable"))

    def passed(self, passed: Passed) -> None:
        self.events.append((passed.peer, passed))

    def changed(self, name: str) -> None:
        pass

    def of(self, kind: type[Result]) -> list[Result]:
        """What was told of a kind: Established, Lost, …"""
        return [event for _, event in self.events if isinstance(event, kind)]

    def ends(self) -> set[Family]:
        """Families whose End-of-RIB has come."""
        return {one.end_of_rib for one in self.of(Update) if one.end_of_rib is not None}


class Inside:
    """A loop in a thread of its own, in a namespace, with a speaker."""

    def __init__(self, namespace: str, **more: Any) -> None:
        self.report = Report()
        self._ready = threading.Event()
        self._more = more
        self._namespace = namespace
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def _run(self) -> None:
        enter(f"/run/netns/{self._namespace}")
        self.loop = asyncio.new_event_loop()
        self.loop.call_soon(self._make)
        self.loop.run_forever()
        self.loop.close()

    def _make(self) -> None:
        self.speaker = Speaker(self.report, **self._more)
        self.report.speaker = self.speaker
        self._ready.set()

    def call(self, act: Callable[..., Result], *arguments: Any, **more: Any) -> Result:
        """Call in the loop, and wait for the result."""

        async def called() -> Result:
            return act(*arguments, **more)

        return self.wait(called())

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def until(self, holds: Callable[[Report], object], what: str = "") -> None:
        """Wait until something holds of the report."""
        deadline = time.monotonic() + PATIENCE
        while not holds(self.report):
            states = self.call(self.speaker.states) if time.monotonic() > deadline else None
            assert states is None, f"{what}: {states}; {self.report.events[-8:]}"
            time.sleep(0.02)

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):
                self.call(self.speaker.close)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE)


def peer(name: str = "tor", *, v6: bool = False, **more: Any) -> Peer:
    """The other speaker, AS 65001; this one is AS 64512."""
    usual: dict[str, Any] = {
        "address": ip_address(THEIRS6 if v6 else THEIRS),
        "local_asn": 64512,
        "peer_asn": 65001,
        "router_id": ip_address(OURS),
        "connect_retry_seconds": 2,
    }
    return Peer(name=name, session=SessionSettings(**(usual | more)))


class Bird:
    """BIRD 2 in the other namespace."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        if shutil.which("bird") is None:
            pytest.fail("BIRD is not installed: run make setup (Debian package bird2)")
        self._pair = pair
        self._folder = folder
        self._running: subprocess.Popen[bytes] | None = None

    def configure(self, session: str, *, routes: str = "", channels: str = "", more: str = "") -> None:
        """``session``: what is in the protocol beside the channels; ``routes``: static ones."""
        usual = "ipv4 { import all; export all; }; ipv6 { import all; export all; };"
        (self._folder / "bird.conf").write_text(
            f"""
            log "{self._folder / "bird.log"}" all;
            router id {THEIRS};
            protocol device {{ scan time 1; }}
            protocol static s4 {{ ipv4; {routes or "route 10.1.0.0/24 blackhole; route 10.2.0.0/16 blackhole;"} }}
            protocol static s6 {{ ipv6; route fd00:1::/64 blackhole; }}
            {more}
            protocol bgp node {{
              debug all;
              {session}
              {channels or usual}
            }}
            """
        )
        if self._running is not None:
            self.ctl("configure")

    def start(self, *words: str) -> None:
        program = ["bird", "-f", "-c", str(self._folder / "bird.conf"), "-s", str(self._folder / "bird.ctl"), *words]
        self._running = subprocess.Popen(
            command(f"/run/netns/{self._pair.theirs}", *program), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE
        while "BIRD" not in self.ctl("show status"):
            assert self._running.poll() is None, self._pair.run(*program, "-p")
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def ctl(self, words: str) -> str:
        return self._pair.run("birdc", "-s", str(self._folder / "bird.ctl"), *words.split())

    def until(self, words: str, *texts: str) -> str:
        """Wait until a command of birdc says all these."""
        deadline = time.monotonic() + PATIENCE
        while True:
            said = self.ctl(words)
            if all(text in said for text in texts):
                return said
            assert time.monotonic() < deadline, f"{texts} not in {said}"
            time.sleep(0.1)

    def kill(self, *, gently: bool = False) -> None:
        if self._running is not None:
            self._running.terminate() if gently else self._running.kill()
            self._running.wait(PATIENCE)
            self._running = None

    def log(self) -> str:
        return (self._folder / "bird.log").read_text()


class ExaBgp:
    """ExaBGP in the other namespace; what it hears it writes to a file as JSON."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        if shutil.which("exabgp") is None:
            pytest.fail("ExaBGP is not installed: run make setup (Debian package exabgp)")
        self._pair = pair
        self._folder = folder
        self._running: subprocess.Popen[bytes] | None = None

    def start(self, neighbor: str) -> None:
        heard = self._folder / "heard.json"
        (self._folder / "exabgp.conf").write_text(
            f"""
            process hear {{ run /usr/bin/tee {heard}; encoder json; }}
            neighbor {OURS} {{
              router-id {THEIRS}; local-address {THEIRS}; local-as 65001; peer-as 64512;
              api {{ processes [ hear ]; neighbor-changes; receive {{ parsed; update; }} }}
              {neighbor}
            }}
            """
        )
        program = ["env", "exabgp.api.cli=false", "exabgp.daemon.user=root", "exabgp.log.destination=stderr", "exabgp"]
        self._running = subprocess.Popen(
            command(f"/run/netns/{self._pair.theirs}", *program, str(self._folder / "exabgp.conf")),
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / "exabgp.log").open("wb"),
        )

    def heard(self) -> str:
        """What it has reported, as JSON lines; the last one may not be whole yet."""
        file = self._folder / "heard.json"
        return file.read_text() if file.exists() else ""

    def log(self) -> str:
        return (self._folder / "exabgp.log").read_text()

    def kill(self) -> None:
        if self._running is not None:
            self._running.terminate()
            self._running.wait(PATIENCE)


class Frr:
    """FRR's zebra and bgpd in the other namespace."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        if not (FRR / "bgpd").exists():
            pytest.fail("FRR is not installed: run make setup (Debian package frr)")
        self._pair = pair
        self._folder = folder
        folder.chmod(0o777)
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, neighbor: str, families: str = "", number: int = 65001) -> None:
        """``neighbor``: lines about the neighbor; ``families``: more lines in both address families."""
        activated = f"neighbor {OURS} activate\n{families}"
        (self._folder / "bgpd.conf").write_text(
            "\n".join(
                [
                    f"log file {self._folder / 'frr.log'}",
                    f"router bgp {number}",
                    f"bgp router-id {THEIRS}",
                    "no bgp ebgp-requires-policy",
                    "no bgp network import-check",
                    "bgp log-neighbor-changes",
                    neighbor,
                    "address-family ipv4 unicast",
                    "network 10.1.0.0/24",
                    activated,
                    "exit-address-family",
                    "address-family ipv6 unicast",
                    "network fd00:1::/64",
                    activated,
                    "exit-address-family",
                ]
            )
        )
        words = ["-f", str(self._folder / "bgpd.conf"), "-i", str(self._folder / "bgpd.pid"), "-S", "-n", "-Z"]
        program = [str(FRR / "bgpd"), *words, "--vty_socket", str(self._folder), "-u", "root", "-g", "root"]
        self._running.append(
            subprocess.Popen(
                command(f"/run/netns/{self._pair.theirs}", *program),
                stdout=subprocess.DEVNULL,
                stderr=(self._folder / "bgpd.err").open("wb"),
            )
        )

    def shows(self, words: str) -> str:
        return self._pair.run("vtysh", "--vty_socket", str(self._folder), "-d", "bgpd", "-c", words)

    def until(self, words: str, *texts: str) -> str:
        """Wait until a command of vtysh says all these."""
        deadline = time.monotonic() + PATIENCE
        while True:
            said = self.shows(words)
            if all(text in said for text in texts):
                return said
            assert time.monotonic() < deadline, f"{texts} not in {said}; {(self._folder / 'bgpd.err').read_text()}"
            time.sleep(0.2)

    def kill(self) -> None:
        for one in self._running:
            one.kill()
            one.wait(PATIENCE)


def announce(inside: Inside, *networks: str, asn: int = 64512) -> None:
    """Announce networks, and End-of-RIB, on each session from now on."""

    def established(name: str, session: Established) -> None:
        writer = UpdateWriter(session.agreed)
        messages: list[bytes] = []
        for network in map(ip_network, networks):
            family, prefix = prefix_of(network)
            attributes = Attributes(
                origin=Origin.IGP,
                as_path=(Segment(SegmentKind.SEQUENCE, (asn,)),),
                next_hop=ip_address(OURS if family is Family.IPV4 else OURS6),
            )
            written = writer.write(family, attributes, [prefix])
            assert isinstance(written, list)
            messages += written
        messages += [writer.end_of_rib(family) for family in sorted(session.agreed.families)]
        assert inside.speaker.send(name, messages)

    inside.report.on_established = established


def up(report: Report) -> bool:
    """All routes of the other speaker have come."""
    return report.ends() == set(Family)
