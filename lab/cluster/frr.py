"""FRR as the routing daemons of a top-of-rack switch: their configuration, command lines and sessions.

Pure. Source: FRR 8.4's User Guide (zebra, staticd, bfdd, bgpd). The switch does what `bird` says of it, by the means of
another vendor: `as-override`, a site of origin by route maps, graceful shutdown that bgpd honours of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lab.cluster.bird import BFD_MILLISECONDS, BFD_MULTIPLIER, MOST_PATHS, RECOVERY_SECONDS
from lab.cluster.sessions import Bfd, Sessions
from lab.paths import NodePaths
from lab.topology import (
    FABRIC4,
    FABRIC6,
    INTER_SWITCH_LINK,
    OUTSIDE,
    OUTSIDE4,
    OUTSIDE6,
    TOR_LINKS4,
    TOR_LINKS6,
    Address,
    LabError,
    Network,
    Port,
    Switch,
    Topology,
)

DAEMONS = ("zebra", "staticd", "bfdd", "bgpd")
FOLDER = Path("/usr/lib/frr")
_LOG = "log stdout\n"


def files(topology: Topology, switch: Switch, offered: Sessions) -> dict[str, str]:
    """Configuration files by name, one a daemon. Raises `LabError` for a password that FRR cannot be given."""
    other = topology.other_switch(switch)
    lines = {
        "zebra": iter(()),
        "staticd": _statics(switch, other),
        "bfdd": iter(
            (
                "bfd",
                " profile fabric",
                f"  receive-interval {BFD_MILLISECONDS}",
                f"  transmit-interval {BFD_MILLISECONDS}",
                f"  detect-multiplier {BFD_MULTIPLIER}",
            )
        ),
        "bgpd": _bgp(switch, other, offered),
    }
    return {f"{name}.conf": _LOG + "".join(f"{line}\n" for line in lines[name]) for name in DAEMONS}


def processes(of: NodePaths, *, recover: bool) -> dict[str, list[str]]:
    """Command line of each process by its name, in the order of their start: the others need zebra to be up.

    ``recover``: keep what the kernel has until the neighbors have said all that they know (RFC 4724, 4.1).
    """
    more = {"zebra": ["-r"], "bfdd": ["--bfdctl", str(of.run / "bfdd.sock")]}
    if recover:
        more["zebra"] += ["-K", str(RECOVERY_SECONDS)]
    return {
        name: [
            *(str(FOLDER / name), "-f", str(of.state / f"{name}.conf"), "-i", str(of.run / f"{name}.pid")),
            *("-z", str(of.run / "zserv.api"), "--vty_socket", str(of.run), "-P", "0"),
            *("-u", "root", "-g", "frrvty"),  # Debian's FRR runs as whoever is of this group, and as nobody else
            *more.get(name, ()),
        ]
        for name in DAEMONS
    }


def socket(of: NodePaths, process: str) -> Path:
    """Where a process listens for questions, once it is up."""
    return of.run / f"{process}.vty"


def question(of: NodePaths) -> list[str]:
    """The command that shows the sessions."""
    return ["vtysh", "--vty_socket", str(of.run), "-d", "bgpd", "-c", "show bgp summary json"]


def sessions(shown: str) -> dict[str, bool]:
    """Sessions by name, and whether each is established, from what the command of `question` prints."""
    families = [one for one in json.loads(shown).values() if isinstance(one, dict) and "peers" in one]
    peers = [peer for family in families for peer in family["peers"].values()]
    return {peer["desc"]: peer["state"] == "Established" for peer in peers}


def _statics(switch: Switch, other: Switch) -> Iterator[str]:
    """What is behind the ports, announced to all (tag 1), and the other switch's links, which are not."""
    for version, word, outside in ((4, "ip", OUTSIDE4), (6, "ipv6", OUTSIDE6)):
        for port in switch.ports:
            yield f"{word} route {port.own(version)} {port.remote(version)} {port.name} tag 1"
        networks: tuple[Network, ...] = outside
        out = switch.port(OUTSIDE)
        for network in networks:
            yield f"{word} route {network} {out.remote(version)} {out.name} tag 1"
        via = other.link4 if version == 4 else other.link6
        for port in other.ports:
            remote = port.remote(version)
            yield f"{word} route {remote}/{remote.max_prefixlen} {via} {INTER_SWITCH_LINK}"


def _bgp(switch: Switch, other: Switch, offered: Sessions) -> Iterator[str]:
    nodes = [port for port in switch.ports if port.asn]
    yield f"router bgp {switch.asn}"
    yield f" bgp router-id {switch.address4}"
    yield " no bgp ebgp-requires-policy"
    yield " no bgp default ipv4-unicast"
    yield " bgp graceful-restart"
    yield " bgp graceful-restart preserve-fw-state"
    yield f" bgp graceful-restart select-defer-time {RECOVERY_SECONDS}"
    yield " bgp bestpath as-path multipath-relax"
    yield " timers bgp 3 9"
    yield from _neighbor(other.link4, other.asn, other.name.replace("-", "_"), INTER_SWITCH_LINK)
    yield f" neighbor {other.link4} bfd profile fabric"
    for port in nodes:
        for version in (4, 6):
            remote = port.remote(version)
            yield from _neighbor(remote, port.asn, f"{port.host}_v{version}", port.name)
            if version == 6:
                yield f" neighbor {remote} capability extended-nexthop"
            if offered.bfd is not Bfd.OFF:
                yield f" neighbor {remote} bfd profile fabric"
            if offered.bfd is Bfd.GRACEFUL:
                yield f" neighbor {remote} bfd check-control-plane-failure"
            if password := offered.passwords.get(port.host):
                yield f" neighbor {remote} password {_word(password)}"
    for version in (4, 6):
        yield f" address-family ipv{version} unicast"
        yield f"  maximum-paths {MOST_PATHS}"
        yield "  redistribute static route-map servers"
        yield f"  neighbor {other.link4} activate"
        for port in nodes:
            for remote in (port.remote4, port.remote6):
                yield f"  neighbor {remote} activate"
                yield f"  neighbor {remote} as-override"
                yield f"  neighbor {remote} route-map from-{port.host}-{version} in"
                yield f"  neighbor {remote} route-map to-{port.host}-{version} out"
        yield " exit-address-family"
    yield "route-map servers permit 10"
    yield " match tag 1"
    for port in nodes:
        yield from _policy(port)


def _neighbor(address: Address, asn: int, name: str, link: str) -> Iterator[str]:
    """``link``: without it bgpd takes the link by the switch's own address, which is on all ports."""
    yield f" neighbor {address} remote-as {asn}"
    yield f" neighbor {address} description {name}"
    yield f" neighbor {address} update-source {link}"
    yield f" neighbor {address} timers connect 1"


def _word(text: str) -> str:
    """A word of FRR's grammar, which has no quotes."""
    if not text.isprintable() or not text.isascii() or " " in text:
        raise LabError("password: use printable ASCII without spaces")
    return text


def _policy(port: Port) -> Iterator[str]:
    """What is taken from a node, marked with its site, and what is sent to it."""
    site = f"{port.asn}:{port.site}"
    yield f"bgp extcommunity-list standard site-{port.host} permit soo {site}"
    for version, word, network, links, everything in (
        (4, "ip", FABRIC4, TOR_LINKS4, "0.0.0.0/0"),
        (6, "ipv6", FABRIC6, TOR_LINKS6, "::/0"),
    ):
        own, bits = port.own(version), 32 if version == 4 else 128
        yield f"{word} prefix-list from-{port.host} seq 5 permit {own}"
        yield f"{word} prefix-list from-{port.host} seq 10 deny {everything}"
        yield f"{word} prefix-list from-{port.host} seq 15 deny {network} le {bits}"
        yield f"{word} prefix-list from-{port.host} seq 20 deny {links} le {bits}"
        yield f"{word} prefix-list from-{port.host} seq 25 permit {everything} le {bits}"
        yield f"{word} prefix-list own-{port.host} seq 5 permit {own}"
        yield f"route-map from-{port.host}-{version} permit 10"
        yield f" match {word} address prefix-list from-{port.host}"
        yield f" set extcommunity soo {site}"
        yield f"route-map to-{port.host}-{version} deny 10"
        yield f" match {word} address prefix-list own-{port.host}"
        yield f"route-map to-{port.host}-{version} deny 20"
        yield f" match extcommunity site-{port.host}"
        yield f"route-map to-{port.host}-{version} permit 30"
