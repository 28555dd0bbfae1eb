"""The top-of-rack switches of a fabric while the lab runs: their routing daemons, their faults, and what they say.

Owns the processes `<daemon>-<switch>` of the lab's supervisor, their configuration files, and the nftables table
`inet lab_ports` in a switch's namespace. The kernel and the supervisor are the memory: what is shown is read from them.

A switch fails in four ways. Its daemon is killed: sessions are lost, and what the kernel has is forwarded on. A port
goes down: both ends see that there is no carrier. A port loses every packet, and nobody sees it but by BFD. Or all of
it, as without power: every port and the daemon at once. Each is mended by its reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path

from lab.cluster import bird, frr, ledger, namespaces
from lab.cluster.launch import Launcher, connect
from lab.cluster.record import Record, read_record, require
from lab.cluster.sessions import Sessions
from lab.paths import NodePaths, Paths
from lab.topology import INTER_SWITCH_LINK, Fabric, LabError, Network, Switch, SwitchDaemon, Topology
from linux.netns import command

TABLE = "lab_ports"
_START_SECONDS, _END_SECONDS = 20.0, 5.0
_UNUSED = frozenset({"dead", "linkdown"})
"""Flags of a next hop that no packet takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """What a routing daemon needs of its own."""

    files: Callable[[Topology, Switch, Sessions], Mapping[str, str]]
    processes: Callable[..., Mapping[str, list[str]]]
    socket: Callable[[NodePaths, str], Path]
    question: Callable[[NodePaths], list[str]]
    sessions: Callable[[str], Mapping[str, bool]]
    program: str
    package: str


VENDORS = {
    SwitchDaemon.BIRD: Vendor(
        files=bird.files,
        processes=bird.processes,
        socket=bird.socket,
        question=bird.question,
        sessions=bird.sessions,
        program="bird",
        package="bird2",
    ),
    SwitchDaemon.FRR: Vendor(
        files=frr.files,
        processes=frr.processes,
        socket=frr.socket,
        question=frr.question,
        sessions=frr.sessions,
        program=str(frr.FOLDER / "bgpd"),
        package="frr",
    ),
}


def check_program(daemon: SwitchDaemon) -> None:
    """Raises `LabError` where the daemon is not installed."""
    vendor = VENDORS[daemon]
    if not shutil.which(vendor.program):
        raise LabError(f"switch {daemon}: {vendor.program} is not here: apt-get install {vendor.package}")


async def start(
    launcher: Launcher,
    topology: Topology,
    switch: Switch,
    daemon: SwitchDaemon,
    offered: Sessions | None,
    *,
    recover: bool = False,
) -> None:
    """Start a switch's daemon and wait until it leads to its hosts. Raises `LabError`.

    ``offered``: None where the files that are there stay. ``recover``: it restarts gracefully, after it was killed.
    """
    of, vendor = launcher.where.node(switch.name), VENDORS[daemon]
    for folder in (of.state, of.run):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if offered is not None:
        for name, text in vendor.files(topology, switch, offered).items():
            ledger.write(of.state / name, text.encode())
    control = switch.port(topology.control.name)
    netns, last = str(namespaces.NETNS / switch.namespace), ""
    for name, argv in vendor.processes(of, recover=recover).items():
        last, socket = f"{name}-{switch.name}", vendor.socket(of, name)
        socket.unlink(missing_ok=True)  # of one that was killed
        await launcher.start(last, command(netns, *argv))
        await launcher.until(last, partial(asyncio.to_thread, socket.exists), seconds=_START_SECONDS, process=last)

    async def leads() -> bool:
        shown = [
            await asyncio.to_thread(_ip, switch, f"-{version}", "route", "show", str(control.own(version)))
            for version in (4, 6)
        ]
        return all(shown)

    await launcher.until(f"routes of switch {switch.name}", leads, seconds=_START_SECONDS, process=last)


async def start_all(launcher: Launcher, topology: Topology, daemon: SwitchDaemon, offered: Sessions) -> None:
    """Start all switches of a fabric. Raises `LabError`."""
    await asyncio.gather(*(start(launcher, topology, switch, daemon, offered) for switch in topology.switches))


def _ip(switch: Switch, *arguments: str) -> str:
    return namespaces.run(["ip", "-n", switch.namespace, *arguments]).strip()


def _process_names(where: Paths, switch: Switch, daemon: SwitchDaemon) -> list[str]:
    return [f"{name}-{switch.name}" for name in VENDORS[daemon].processes(where.node(switch.name), recover=False)]


def _of(where: Paths, name: str) -> tuple[Record, Topology, Switch]:
    record = require(where, Fabric.TOR)
    topology = record.topology
    return record, topology, topology.switch(name)


async def kill(where: Paths, name: str) -> None:
    """Kill a switch's daemon (SIGKILL): its sessions are lost, its kernel forwards on. Raises `LabError`."""
    record, _, switch = _of(where, name)
    launcher, names = await connect(where), _process_names(where, switch, record.switch)

    async def running() -> list[int]:
        return [state.pid for name, state in (await launcher.states()).items() if name in names and state.running]

    async def ended() -> bool:
        return not await running()

    try:
        for pid in await running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await launcher.until(f"end of switch {name}", ended, seconds=_END_SECONDS)
    finally:
        launcher.close()


async def restart(where: Paths, name: str, offered: Sessions | None = None) -> None:
    """Start a switch's daemon that has ended again; one that runs stays. Raises `LabError`.

    ``offered``: what it offers from now on; the same as before unless given.
    """
    record, topology, switch = _of(where, name)
    launcher = await connect(where)
    try:
        states = await launcher.states()
        names = _process_names(where, switch, record.switch)
        if not all(one in states and states[one].running for one in names):
            await start(launcher, topology, switch, record.switch, offered, recover=True)
    finally:
        launcher.close()


def cut(where: Paths, name: str, hosts: Iterable[str] = ()) -> None:
    """Take a switch's ports to these hosts down, or all its links where none is given. Raises `LabError`."""
    _set_links(where, name, hosts, "down")


def mend(where: Paths, name: str, hosts: Iterable[str] = ()) -> None:
    """Bring a switch's ports to these hosts up again, or all its links, and lose none of their packets any more. Raises
    `LabError`.
    """
    _set_links(where, name, hosts, "up")
    _, _, switch = _of(where, name)
    _set_lost(switch, lost(switch) - set(_links(switch, hosts)))


def lose(where: Paths, name: str, hosts: Iterable[str] = ()) -> None:
    """Drop every packet at a switch's ports to these hosts, or at all its links, which stay up. Raises `LabError`."""
    _, _, switch = _of(where, name)
    _set_lost(switch, lost(switch) | set(_links(switch, hosts)))


def _links(switch: Switch, hosts: Iterable[str]) -> list[str]:
    wanted = [switch.port(host).name for host in hosts]
    return wanted or [*(port.name for port in switch.ports), INTER_SWITCH_LINK]


def _set_links(where: Paths, name: str, hosts: Iterable[str], state: str) -> None:
    _, _, switch = _of(where, name)
    namespaces.batch((f"link set {link} {state}" for link in _links(switch, hosts)), switch.namespace)


def ruleset(links: Iterable[str]) -> str:
    """Input for `nft -f -` that makes these the only links whose packets are dropped."""
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for hook, matches in (("input", ("iifname",)), ("forward", ("iifname", "oifname")), ("output", ("oifname",))):
        lines.append(f"  chain {hook} {{ type filter hook {hook} priority filter; policy accept;")
        lines += [f'    {match} "{link}" drop comment "{link}"' for link in sorted(links) for match in matches]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def lost_links(listed: str) -> set[str]:
    """Links whose packets are dropped, from the text of `nft --json list ruleset`."""
    rules = (one.get("rule", {}) for one in json.loads(listed)["nftables"])
    return {rule["comment"] for rule in rules if rule.get("table") == TABLE}


def lost(switch: Switch) -> set[str]:
    """Links of a switch at which every packet is lost."""
    return lost_links(_nft(switch, "--json", "list", "ruleset"))


def _set_lost(switch: Switch, links: Iterable[str]) -> None:
    _nft(switch, "-f", "-", stdin=ruleset(links))


def _nft(switch: Switch, *arguments: str, stdin: str = "") -> str:
    return namespaces.run(command(str(namespaces.NETNS / switch.namespace), "nft", *arguments), stdin)


def sessions(where: Paths, name: str) -> Mapping[str, bool]:
    """A switch's sessions by name (`n1_v4`, `tor_b`) and whether each is established; none when its daemon does not
    run. Raises `LabError`.
    """
    record, _, switch = _of(where, name)
    vendor = VENDORS[record.switch]
    try:
        shown = namespaces.run(vendor.question(where.node(switch.name)))
    except LabError:
        return {}
    return vendor.sessions(shown)


def down_links(switch: Switch) -> set[str]:
    """Links of a switch without carrier."""
    links = json.loads(_ip(switch, "-json", "link"))
    return {one["ifname"] for one in links if one["ifname"] in _links(switch, ()) and one["operstate"] != "UP"}


def links_by_destination(namespace: str) -> dict[Network, frozenset[str]]:
    """Destinations of the main table of routes, both families, and the links in use by which each is reached; routes of
    the kernel's own and default routes left out.
    """
    found: dict[Network, frozenset[str]] = {}
    for family in ("-4", "-6"):
        for route in json.loads(namespaces.run(["ip", family, "-json", "-n", namespace, "route"])):
            if route["dst"] == "default" or route.get("protocol") == "kernel":
                continue
            hops = (hop for hop in route.get("nexthops", [route]) if not _UNUSED & set(hop.get("flags", ())))
            destination = ip_network(route["dst"])
            found[destination] = found.get(destination, frozenset()) | {hop["dev"] for hop in hops if "dev" in hop}
    return found


def joined(topology: Topology) -> bool:
    """Whether each node has announced something of both families to every switch, and leads to what every other one
    has announced by all of them.
    """
    announced: dict[str, set[Network]] = {}
    for switch in topology.switches:
        routes = links_by_destination(switch.namespace)
        for port in (one for one in switch.ports if one.asn):
            own = {port.own(version) for version in (4, 6)}
            theirs = {one for one, links in routes.items() if links == {port.name}} - own
            if {one.version for one in theirs} != {4, 6} or announced.setdefault(port.host, theirs) != theirs:
                return False
    return all(
        known.get(prefix) == frozenset(node.fabric_links)
        for node in topology.nodes
        for known in (links_by_destination(node.namespace),)
        for host, prefixes in announced.items()
        if host != node.name
        for prefix in prefixes
    )


def summary(where: Paths) -> str:
    """One line: each switch, its sessions and faults. Raises `LabError`."""
    record = read_record(where)
    parts = []
    for switch in record.topology.switches if record else ():
        seen = sessions(where, switch.name)
        up = sum(seen.values())
        said = [f"{up} of {len(seen)} sessions up" if seen else "its daemon does not run"]
        said += [f"{link} is down" for link in sorted(down_links(switch))]
        said += [f"{link} loses all" for link in sorted(lost(switch))]
        parts.append(f"{switch.name} (AS {switch.asn}): {', '.join(said)}")
    return " | ".join(parts)
