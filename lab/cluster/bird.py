"""BIRD 2 as the routing daemon of a top-of-rack switch: its configuration, command line and sessions.

Pure. Source: BIRD 2.0 User's Guide, 3 and 6. What the switch is to the hosts behind it:

- It leads to each host's own addresses by static routes, and announces them. Hosts have them before they speak BGP.
- It takes any prefix from a node but those of its own network: hosts' addresses, its links, a default route.
- It overrides the nodes' autonomous system. All nodes have one number, so a node would find its own in the path of
  every route of another node and drop it as a loop (RFC 4271, 9.1.2). The switch puts its own number in place of it, as
  `as-override` of other vendors does. The nodes then need no `numAllowedLocalASNumbers`.
- It marks each route with the node that it came from (site of origin, RFC 4364, 7) and never sends it there, since a
  path without the node's number keeps no loop from being made.
- It prefers every other path to one that is about to go (GRACEFUL_SHUTDOWN, RFC 8326).
- It spreads flows over all equal paths (`merge paths`), restarts gracefully (RFC 4724), and detects a lost neighbor
  by BFD where that one speaks it (`sessions` says what follows). Without BFD the session goes on.

Each session carries both families, whichever it runs over. Routes stay in the kernel when the daemon ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

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
    LabError,
    Port,
    Switch,
    Topology,
)

BFD_MILLISECONDS, BFD_MULTIPLIER = 50, 3
_SESSION = "graceful restart on; hold time 9; connect delay time 1; connect retry time 5; error wait time 1, 5;"
_BFD = {Bfd.OFF: "off", Bfd.ON: "on", Bfd.GRACEFUL: "graceful"}
RECOVERY_SECONDS = 10
"""How long a daemon that was started again waits for its neighbors before it takes away what the kernel still has."""
MOST_PATHS = 64
GRACEFUL_SHUTDOWN = "(65535, 0)"
_FILE = "bird.conf"
Network = IPv4Network | IPv6Network


def files(topology: Topology, switch: Switch, offered: Sessions) -> dict[str, str]:
    """Configuration files by name. Raises `LabError` for a password that BIRD cannot be given."""
    other = topology.other_switch(switch)
    lines = [
        f"# {switch.name}, AS {switch.asn}",
        "log stderr all;",
        f"router id {switch.address4};",
        f"graceful restart wait {RECOVERY_SECONDS};",
        "protocol device { scan time 5; }",
        "protocol bfd {",
        f'  interface "p-*", "{INTER_SWITCH_LINK}" {{',
        f"    interval {BFD_MILLISECONDS} ms; multiplier {BFD_MULTIPLIER};",
        "  };",
        "}",
        *_kernel(4),
        *_kernel(6),
        *_statics(switch, other, 4),
        *_statics(switch, other, 6),
        *_other_switch(switch, other),
    ]
    for port in switch.ports:
        if port.asn:
            lines += _node(switch, port, offered)
    return {_FILE: "\n".join([*lines, ""])}


def processes(of: NodePaths, *, recover: bool) -> dict[str, list[str]]:
    """Command line of each process by its name. ``recover``: keep what the kernel has until the neighbors have said all
    that they know (RFC 4724, 4.1).
    """
    argv = ["bird", "-f", "-c", str(of.state / _FILE), "-s", str(socket(of, "bird")), *(["-R"] if recover else [])]
    return {"bird": argv}


def question(of: NodePaths) -> list[str]:
    """The command that shows the sessions."""
    return ["birdc", "-r", "-s", str(socket(of, "bird")), "show", "protocols"]


def sessions(shown: str) -> dict[str, bool]:
    """Sessions by name, and whether each is established, from what the command of `question` prints."""
    rows = (line.split() for line in shown.splitlines())
    return {row[0]: row[-1] == "Established" for row in rows if len(row) > 3 and row[1] == "BGP"}


def socket(of: NodePaths, _: str) -> Path:
    """Where a process listens for questions, once it is up."""
    return of.run / "bird.ctl"


def _quoted(text: str) -> str:
    """A string of BIRD's grammar, which has no escapes."""
    if '"' in text or not text.isprintable() or not text.isascii():
        raise LabError('password: use printable ASCII without "')
    return f'"{text}"'


def _kernel(version: int) -> Iterator[str]:
    # A route over a port that has just come up may be refused, as long as there is no carrier: each scan tries again.
    yield f"protocol kernel kernel{version} {{"
    yield f"  scan time 1; persist; graceful restart on; merge paths on limit {MOST_PATHS};"
    yield f"  ipv{version} {{ import none; export all; }};"
    yield "}"


def _statics(switch: Switch, other: Switch, version: int) -> Iterator[str]:
    """`servers`: what is behind the ports, announced to all. `links`: the other switch's links, which nobody needs but
    who answers a packet that a host has sent with the address of a link.
    """
    yield f"protocol static servers{version} {{"
    yield f"  ipv{version};"
    for port in switch.ports:
        yield f"  route {port.own(version)} via {port.remote(version)};"
    outside: tuple[Network, ...] = OUTSIDE4 if version == 4 else OUTSIDE6
    for network in outside:
        yield f"  route {network} via {switch.port(OUTSIDE).remote(version)};"
    yield "}"
    remotes = [port.remote(version) for port in other.ports]
    gateway = other.link4 if version == 4 else other.link6
    yield f"protocol static links{version} {{"
    yield f"  ipv{version};"
    for remote in remotes:
        yield f"  route {remote}/{remote.max_prefixlen} via {gateway};"
    yield "}"


def _other_switch(switch: Switch, other: Switch) -> Iterator[str]:
    yield f"protocol bgp {other.name.replace('-', '_')} {{"
    yield f"  local {switch.link4} as {switch.asn}; neighbor {other.link4} as {other.asn};"
    yield f'  interface "{INTER_SWITCH_LINK}"; bfd on; {_SESSION}'
    for version in (4, 6):
        yield f'  ipv{version} {{ import all; export where proto != "links{version}"; }};'
    yield "}"


def _node(switch: Switch, port: Port, offered: Sessions) -> Iterator[str]:
    site = f"(ro, {port.asn}, {port.site})"
    for version in (4, 6):
        yield f"filter from_{port.host}_{version} {{"
        network, links = (FABRIC4, TOR_LINKS4) if version == 4 else (FABRIC6, TOR_LINKS6)
        everything = "0.0.0.0/0" if version == 4 else "::/0"
        yield f"  if net ~ [{everything}, {network}+, {links}+] && net != {port.own(version)} then reject;"
        yield f"  bgp_ext_community.add({site});"
        yield f"  if {GRACEFUL_SHUTDOWN} ~ bgp_community then bgp_local_pref = 0;"
        yield "  accept;"
        yield "}"
        yield f"filter to_{port.host}_{version} {{"
        yield f'  if proto = "links{version}" || net = {port.own(version)} then reject;'
        yield f"  if {site} ~ bgp_ext_community then reject;"
        yield f"  if bgp_path ~ [= * {port.asn} * =] then {{"
        yield f"    bgp_path.delete({port.asn}); bgp_path.prepend({switch.asn});"
        yield "  }"
        yield "  accept;"
        yield "}"
    for version in (4, 6):
        yield f"protocol bgp {port.host}_v{version} {{"
        yield f"  local {port.local(version)} as {switch.asn}; neighbor {port.remote(version)} as {port.asn};"
        yield f'  interface "{port.name}"; bfd {_BFD[offered.bfd]}; {_SESSION}'
        if port.host in offered.passwords:
            yield f"  password {_quoted(offered.passwords[port.host])};"
        for family in (4, 6):
            filters = f"import filter from_{port.host}_{family}; export filter to_{port.host}_{family};"
            extended = " extended next hop on;" if (version, family) == (6, 4) else ""
            yield f"  ipv{family} {{ {filters} next hop self;{extended} }};"
        yield "}"
