"""The speakers that are measured, each as a process in the namespace, with what makes it do the same as the others.

Each has two external peers, takes the sender's routes by the import policy of ``airmesh.policy`` and passes them on.
None writes the kernel's table, but for this project's speaker where that is asked for. ExaBGP has no tables and no
policy: a program behind its API (``exabgp_relay``) passes on what policy leaves, as its manual advises.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.bgp.airmesh import Asked
from bench.bgp.ground import SPEAKER as NAMESPACE
from bench.bgp.ground import Link, links, path
from bench.bgp.tables import PREFERRED, RECEIVER, REFUSED, SENDER, SPEAKER
from linux.netns import command
from services.routing.core.bgp.values import Family

ROUTER_ID = "172.28.255.2"
FOLDER = Path(__file__).parent
AIRMESH, KERNEL, BIRD, FRR, GOBGP, EXABGP = "airmesh", "airmesh+kernel", "BIRD", "FRR", "GoBGP", "ExaBGP"
SPEAKERS = (AIRMESH, BIRD, FRR, GOBGP, EXABGP)
COMMUNITY = f"{PREFERRED >> 16}:{PREFERRED & 0xFFFF}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How a speaker is started."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    version: tuple[str, ...]
    """What prints its version."""


def _peers(family: Family) -> tuple[tuple[Link, int], tuple[Link, int]]:
    sender, receiver = links(family)
    return (sender, SENDER), (receiver, RECEIVER)


def airmesh(family: Family, folder: Path, *, kernel: bool = False) -> Program:
    """This project's."""
    peers = {str(link.peer): (asn, str(link.speaker)) for link, asn in _peers(family)}
    asked = Asked(
        asn=SPEAKER,
        router_id=ROUTER_ID,
        family=family.name,
        uplinks=tuple(link.device for link, _ in _peers(family)),
        peers=peers,
        kernel=kernel,
    )
    argv = (sys.executable, "-m", "bench.bgp.airmesh", msgspec.json.encode(asked).decode())
    return Program(argv=argv, environment={"PYTHONPATH": str(FOLDER.parent.parent)}, version=(sys.executable, "-V"))


def bird(family: Family, folder: Path) -> Program:
    """BIRD 2."""
    channel = "ipv4" if family is Family.IPV4 else "ipv6"
    sessions = "".join(
        f"""
        protocol bgp peer{asn} {{
          local {link.speaker} as {SPEAKER}; neighbor {link.peer} as {asn};
          connect delay time 1; connect retry time 1; error wait time 1, 1;
          {channel} {{ import {"filter taken" if asn == SENDER else "none"}; export all; next hop self; }};
        }}"""
        for link, asn in _peers(family)
    )
    (folder / "bird.conf").write_text(
        f"""
        log "{folder / "bird.log"}" {{ warning, error, fatal }};
        router id {ROUTER_ID};
        protocol device {{}}
        filter taken {{
          if net ~ [ {REFUSED[family]}+ ] then reject;
          if ({COMMUNITY.replace(":", ", ")}) ~ bgp_community then bgp_local_pref = 200;
          accept;
        }}
        {sessions}
        """
    )
    argv = ("bird", "-f", "-c", str(folder / "bird.conf"), "-s", str(folder / "bird.ctl"))
    return Program(argv=argv, environment={}, version=("bird", "--version"))


def frr(family: Family, folder: Path) -> Program:
    """FRR's bgpd alone, without zebra."""
    folder.chmod(0o777)
    kind, listed = ("ipv4", "ip") if family is Family.IPV4 else ("ipv6", "ipv6")
    neighbors = [
        line
        for link, asn in _peers(family)
        for line in (
            f"neighbor {link.peer} remote-as {asn}",
            f"neighbor {link.peer} timers connect 1",
            f"neighbor {link.peer} advertisement-interval 0",
        )
    ]
    active = [
        line
        for link, asn in _peers(family)
        for line in (
            f"neighbor {link.peer} activate",
            f"neighbor {link.peer} route-map {'taken in' if asn == SENDER else 'all out'}",
            f"neighbor {link.peer} next-hop-self",
        )
    ]
    lines = [
        f"log file {folder / 'frr.log'} errors",
        f"{listed} prefix-list refused seq 5 permit {REFUSED[family]} le {family.bits}",
        f"bgp community-list standard preferred permit {COMMUNITY}",
        "route-map taken deny 10",
        f"match {listed} address prefix-list refused",
        "route-map taken permit 20",
        "match community preferred",
        "set local-preference 200",
        "route-map taken permit 30",
        "route-map all permit 10",
        f"router bgp {SPEAKER}",
        f"bgp router-id {ROUTER_ID}",
        "no bgp network import-check",
        "no bgp default ipv4-unicast",
        *neighbors,
        f"address-family {kind} unicast",
        *active,
        "exit-address-family",
    ]
    (folder / "bgpd.conf").write_text("\n".join(lines) + "\n")
    words = ("-f", str(folder / "bgpd.conf"), "-i", str(folder / "bgpd.pid"), "-S", "-n", "-Z")
    argv = ("/usr/lib/frr/bgpd", *words, "--vty_socket", str(folder), "-A", "127.0.0.1", "-u", "root", "-g", "root")
    return Program(argv=argv, environment={}, version=("/usr/lib/frr/bgpd", "--version"))


def gobgp(family: Family, folder: Path) -> Program:
    """GoBGP, Debian's."""
    name = "ipv4-unicast" if family is Family.IPV4 else "ipv6-unicast"
    neighbors = "".join(
        f"""
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{link.peer}"
    peer-as = {asn}
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{name}"
"""
        for link, asn in _peers(family)
    )
    (folder / "gobgp.toml").write_text(
        f"""
[global.config]
  as = {SPEAKER}
  router-id = "{ROUTER_ID}"
[global.apply-policy.config]
  import-policy-list = ["taken"]
  default-import-policy = "accept-route"
{neighbors}
[[defined-sets.prefix-sets]]
  prefix-set-name = "refused"
  [[defined-sets.prefix-sets.prefix-list]]
    ip-prefix = "{REFUSED[family]}"
    masklength-range = "{REFUSED[family].prefixlen}..{family.bits}"
[[defined-sets.bgp-defined-sets.community-sets]]
  community-set-name = "preferred"
  community-list = ["{COMMUNITY}"]
[[policy-definitions]]
  name = "taken"
  [[policy-definitions.statements]]
    name = "refuse"
    [policy-definitions.statements.conditions.match-prefix-set]
      prefix-set = "refused"
    [policy-definitions.statements.actions]
      route-disposition = "reject-route"
  [[policy-definitions.statements]]
    name = "prefer"
    [policy-definitions.statements.conditions.bgp-conditions.match-community-set]
      community-set = "preferred"
    [policy-definitions.statements.actions]
      route-disposition = "accept-route"
      [policy-definitions.statements.actions.bgp-actions]
        set-local-pref = 200
"""
    )
    words = ("-f", str(folder / "gobgp.toml"), "-l", "error", "--api-hosts", "127.0.0.1:50051")
    return Program(argv=("gobgpd", *words), environment={}, version=("gobgpd", "--version"))


def exabgp(family: Family, folder: Path) -> Program:
    """ExaBGP, Debian's, with a program that passes routes on."""
    (_, _), (receiver, _) = _peers(family)
    name = "ipv4" if family is Family.IPV4 else "ipv6"
    neighbors = "".join(
        f"""
        neighbor {link.peer} {{
          router-id {ROUTER_ID}; local-address {link.speaker}; local-as {SPEAKER}; peer-as {asn};
          family {{ {name} unicast; }}
          api {{ processes [ relay ]; {"receive { parsed; update; }" if asn == SENDER else ""} }}
        }}"""
        for link, asn in _peers(family)
    )
    relay = f"{sys.executable} {FOLDER / 'exabgp_relay.py'} {receiver.peer} {SPEAKER} {REFUSED[family]}"
    (folder / "exabgp.conf").write_text(f"process relay {{ run {relay}; encoder json; }}\n{neighbors}\n")
    environment = {
        "exabgp.api.cli": "false",
        "exabgp.api.ack": "false",
        "exabgp.daemon.user": "root",
        "exabgp.log.destination": "stderr",
        "exabgp.log.level": "ERR",
    }
    argv = ("exabgp", str(folder / "exabgp.conf"))
    return Program(argv=argv, environment=environment, version=("exabgp", "--version"))


MAKERS: Mapping[str, Callable[[Family, Path], Program]] = {
    AIRMESH: airmesh,
    KERNEL: lambda family, folder: airmesh(family, folder, kernel=True),
    BIRD: bird,
    FRR: frr,
    GOBGP: gobgp,
    EXABGP: exabgp,
}


class Running:
    """A speaker's process; gone when the `with` ends."""

    def __init__(self, name: str, program: Program, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._program = program

    def __enter__(self) -> Running:
        if shutil.which(self._program.argv[0]) is None:
            raise SystemExit(f"{self.name} is not installed: install the packages of bench/apt.txt")
        with self.output.open("wb") as out, self.errors.open("wb") as errors:
            self._child = subprocess.Popen(
                command(path(NAMESPACE), *self._program.argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=os.environ | dict(self._program.environment),
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    @property
    def output(self) -> Path:
        """What it writes to its standard output."""
        return self._folder / "output"

    @property
    def errors(self) -> Path:
        """What it writes to its standard error."""
        return self._folder / "errors"

    def death(self) -> str:
        """Why it does not run; empty: it does."""
        if self._child.poll() is None:
            return ""
        return f"{self.name} has ended ({self._child.returncode}): {self.errors.read_text()[-1500:]}"
