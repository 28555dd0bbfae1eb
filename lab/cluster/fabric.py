"""The router of a routed fabric, while the lab runs: what it does not let through, and the MTU between the segments.

Owns the nftables table `inet lab_fabric` in the router's namespace and the routes there. The kernel is the memory: what
is shown is read from it. A filter is a protocol by its number (`proto:4` is IP in IP) or a port (`udp:4789`); it drops
in silence, as a cloud's network does. Refuses a fabric without a router.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from lab.cluster import namespaces, switches
from lab.cluster.record import read_record, require, write_record
from lab.paths import Paths
from lab.topology import Fabric, LabError, Topology, check_mtu, mtu_commands
from linux.netns import command

TABLE = "lab_fabric"
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True, slots=True, order=True)
class Filter:
    """What the router drops between the segments: a protocol of IP, or one port of TCP or UDP."""

    protocol: int
    port: int = 0
    """Destination; 0: all of the protocol."""

    def __str__(self) -> str:
        names = {number: name for name, number in PROTOCOLS.items()}
        return f"{names[self.protocol]}:{self.port}" if self.port else f"proto:{self.protocol}"


def parse_filter(text: str) -> Filter:
    """`proto:4`, `udp:4789` or `tcp:179`. Raises `LabError`."""
    kind, _, number = text.partition(":")
    value = int(number) if number.isascii() and number.isdigit() else -1
    if kind == "proto" and 0 < value <= 255:
        return Filter(value)
    if kind in PROTOCOLS and 0 < value <= 65535:
        return Filter(PROTOCOLS[kind], value)
    raise LabError(f"filter {text!r}: write proto:4 (a number of IP's protocols), udp:4789 or tcp:179")


def ruleset(filters: Iterable[Filter]) -> str:
    """Input for `nft -f -` that makes these the only filters, whatever there was."""
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{", "  chain forward {"]
    lines.append("    type filter hook forward priority filter; policy accept;")
    names = {number: name for name, number in PROTOCOLS.items()}
    for one in sorted(set(filters)):
        match = f"{names[one.protocol]} dport {one.port}" if one.port else f"meta l4proto {one.protocol}"
        lines.append(f'    {match} counter drop comment "{one}"')
    return "\n".join([*lines, "  }", "}", ""])


def dropped(listed: str) -> dict[str, int]:
    """Filters and how many packets each has dropped, from the text of `nft --json list ruleset`."""
    found = {}
    for one in json.loads(listed)["nftables"]:
        rule = one.get("rule", {})
        if rule.get("table") == TABLE:
            packets = (part["counter"]["packets"] for part in rule["expr"] if isinstance(part.get("counter"), dict))
            found[rule["comment"]] = next(packets, 0)
    return found


def _nft(topology: Topology, *arguments: str, stdin: str = "") -> str:
    return namespaces.run(command(str(namespaces.NETNS / topology.router_namespace), "nft", *arguments), stdin)


def set_filters(where: Paths, filters: Iterable[Filter]) -> None:
    """The router drops exactly these from now on, each counted from nothing. Raises `LabError`."""
    _nft(require(where, Fabric.ROUTED).topology, "-f", "-", stdin=ruleset(filters))


def read_filters(where: Paths) -> dict[str, int]:
    """What the router drops, and how many packets of each it has dropped. Raises `LabError`."""
    return dropped(_nft(require(where, Fabric.ROUTED).topology, "--json", "list", "ruleset"))


def set_mtu(where: Paths, mtu: int) -> None:
    """The way between the segments takes packets of so many bytes from now on. Raises `LabError`.

    What hosts have learnt of a narrower way they remember for ten minutes, as on any network.
    """
    record = require(where, Fabric.ROUTED)
    changed = msgspec.structs.replace(record, fabric_mtu=check_mtu(mtu))
    namespaces.batch(mtu_commands(changed.topology), changed.topology.router_namespace)
    write_record(where, changed)


def summary(where: Paths) -> str:
    """One line: the layout, and what the router does not let through. Raises `LabError` without a lab."""
    record = read_record(where)
    if record is None or record.fabric is Fabric.FLAT:
        return "fabric flat: one layer-2 network"
    if record.fabric is Fabric.TOR:
        return f"fabric tor: {switches.summary(where)}"
    filters = ", ".join(f"{name} ({packets} packets)" for name, packets in read_filters(where).items())
    topology = record.topology
    segments = " | ".join(
        " ".join(host.name for host in topology.hosts if host.segment == segment) for segment in topology.segments
    )
    return f"fabric routed: {segments}; MTU between them {topology.mtu}; the router drops {filters or 'nothing'}"
