"""The plan of a lab's network: which namespaces, interfaces and addresses there are, and the `ip` commands that
make them.

Owns the names and numbers of a lab's wiring. Pure: the same (name, nodes) gives the same plan; `namespaces.py`
carries it out. Promises that two labs with different names share nothing (every name of a namespace starts with
`am-<lab>-`, and a lab's name has no hyphen, so that no name is another's prefix) while all labs use the same
addresses inside. Refuses names and sizes that the kernel or Kubernetes would refuse later, with less clear words.

    am-<lab>-fab   bridge `fabric` 172.30.0.1/24 fd00:172:30::1/64   bridge `mgmt` (layer 2 only)
    am-<lab>-cp    fab0 172.30.0.2    fd00:172:30::2     mgmt0 172.31.0.2
    am-<lab>-nI    fab0 172.30.0.10+I fd00:172:30::10+I  mgmt0 172.31.0.10+I   (the last group in decimal digits)

A routed fabric has a second segment, and between the two a router that knows no address of a pod:

    am-<lab>-fab   bridge `fabric2` 172.30.1.1/24 fd00:172:30:1::1/64
    am-<lab>-rtr   seg0 172.30.0.254 fd00:172:30::254    seg1 172.30.1.254 fd00:172:30:1::254
    am-<lab>-nI    of the second half: fab0 172.30.1.10+I fd00:172:30:1::10+I

A fabric of top-of-rack switches has no layer-2 network but the management one. Each host has a cable to each of two
switches, an address of its own on `lo`, and an address on each cable; a switch has one address on all its ports. All
links are point-to-point (`ip address add … peer …`), so every host finds the switches at the same two addresses. The
hosts' ends have networks of their own, apart from the management network that a switch's address lies in.

    am-<lab>-tor-a AS 65001   p-nI 172.31.0.1 fd00:172:31::1      isl0 172.31.4.1 fd00:172:31:4::1
    am-<lab>-tor-b AS 65002   p-nI 172.31.1.1 fd00:172:31:1::1    isl0 172.31.4.2 fd00:172:31:4::2
    am-<lab>-nI    AS 64512   lo   172.30.0.10+I fd00:172:30::10+I
                              fab0 172.31.2.10+I fd00:172:31:2::10+I    fab1 172.31.3.10+I fd00:172:31:3::10+I
    am-<lab>-fab   as a host: lo   172.30.0.1

Kernel quirks: an interface's name has at most 15 bytes; a fresh IPv6 address is tentative for a second unless `nodad`.
A link that comes up loses the IPv6 route to the peer of an address that it had before; so it comes up first. A next hop
on a link without carrier yet is refused unless `onlink`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

FABRIC4 = IPv4Network("172.30.0.0/24")
FABRIC6 = IPv6Network("fd00:172:30::/64")
SEGMENTS4 = IPv4Network("172.30.0.0/23")
SEGMENTS6 = IPv6Network("fd00:172:30::/63")
"""Of both segments."""
MANAGEMENT4 = IPv4Network("172.31.0.0/24")
GATEWAY4 = IPv4Address("172.30.0.1")
GATEWAY6 = IPv6Address("fd00:172:30::1")
SERVICES4 = IPv4Network("10.96.0.0/16")
SERVICES6 = IPv6Network("fd00:10:96::/112")
CLUSTER_DNS = IPv4Address("10.96.0.10")
API_SERVICE4 = IPv4Address("10.96.0.1")
API_SERVICE6 = IPv6Address("fd00:10:96::1")
TOR_LINKS4 = IPv4Network("172.31.0.0/21")
TOR_LINKS6 = IPv6Network("fd00:172:31::/61")
"""Of all links of switches."""
NODE_ASN = 64512
"""Autonomous system of all nodes that are behind switches."""
TOR_NAMES = ("tor-a", "tor-b")
FIRST_TOR_ASN = 65001
FABRIC_LINK = "fab0"
MANAGEMENT_LINK = "mgmt0"
FABRIC_BRIDGE = "fabric"
SECOND_BRIDGE = "fabric2"
MANAGEMENT_BRIDGE = "mgmt"
TOR_UPLINKS = (FABRIC_LINK, "fab1")
"""A host's, one a switch."""
INTER_SWITCH_LINK = "isl0"
OUTSIDE = "out"
"""Name of the outside host, where it is behind switches."""
ROUTER_LINKS = ("seg0", "seg1")
"""The router's, one a segment."""
FABRIC_MTU = 1500
"""Of every link of the fabric; the way between the segments may be narrower."""
LEAST_FABRIC_MTU = 1280
"""What every link takes that carries IPv6 (RFC 8200, 5)."""
OUTSIDE4 = (IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.0/24"))
OUTSIDE6 = (IPv6Network("2001:db8::/32"),)
"""What the router knows to be behind the outside host: networks for documentation (see `conformance/cloud.py`)."""
MAXIMUM_NODES = 60
ZONES = 3
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")


class LabError(Exception):
    """Something a person has to mend; the text names the field or thing and the remedy."""


class Fabric(StrEnum):
    """How the nodes' network is laid out."""

    FLAT = "flat"
    """One layer-2 network."""
    ROUTED = "routed"
    """Two, with a router between them: host-gw cannot serve every pair of nodes."""
    TOR = "tor"
    """None: each node has a link to each of two top-of-rack switches that speak BGP."""


class SwitchDaemon(StrEnum):
    """What a top-of-rack switch runs."""

    BIRD = "bird"
    FRR = "frr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One layer-2 network of the fabric, on which the outside host has the first address."""

    bridge: str
    network4: IPv4Network
    network6: IPv6Network
    gateway4: IPv4Address
    gateway6: IPv6Address
    """Where its hosts send what is not on it: to the outside host, or to the router."""
    router_link: str = ""
    """The router's interface on it; empty where there is no router."""

    @property
    def outside4(self) -> IPv4Address:
        """The outside host's address."""
        return self.network4.network_address + 1

    @property
    def outside6(self) -> IPv6Address:
        """The outside host's address."""
        return self.network6.network_address + 1


FLAT = Segment(bridge=FABRIC_BRIDGE, network4=FABRIC4, network6=FABRIC6, gateway4=GATEWAY4, gateway6=GATEWAY6)
ROUTED = tuple(
    Segment(
        bridge=bridge,
        network4=IPv4Network(f"172.30.{number}.0/24"),
        network6=network6,
        gateway4=IPv4Address(f"172.30.{number}.254"),
        gateway6=IPv6Address(f"{network6.network_address}254"),
        router_link=link,
    )
    for number, (bridge, network6, link) in enumerate(
        zip((FABRIC_BRIDGE, SECOND_BRIDGE), SEGMENTS6.subnets(new_prefix=64), ROUTER_LINKS, strict=True)
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A switch's port and the host behind it: a node, the control plane or the outside host."""

    host: str
    namespace: str
    """The host's."""
    link: str
    """The host's interface."""
    local4: IPv4Address
    local6: IPv6Address
    """The switch's address on it."""
    remote4: IPv4Address
    remote6: IPv6Address
    """The host's address on it."""
    own4: IPv4Address
    own6: IPv6Address
    """The host's own address, which all its ports lead to."""
    site: int
    """A number that the host alone has, for its site of origin (RFC 4364, 7)."""
    asn: int = 0
    """The host's autonomous system; 0: it speaks no BGP."""

    @property
    def name(self) -> str:
        """The switch's interface."""
        return f"p-{self.host}"

    def local(self, version: int) -> Address:
        """The switch's address of a family."""
        return self.local4 if version == 4 else self.local6

    def remote(self, version: int) -> Address:
        """The host's address of a family, on the link."""
        return self.remote4 if version == 4 else self.remote6

    def own(self, version: int) -> Network:
        """The host's own address of a family, as the destination of a route."""
        return IPv4Network(self.own4) if version == 4 else IPv6Network(self.own6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A top-of-rack switch: a router with a port for each host and a link to the other switch."""

    name: str
    namespace: str
    asn: int
    ports: tuple[Port, ...]
    link4: IPv4Address
    link6: IPv6Address
    """Its address on the link to the other switch."""

    @property
    def address4(self) -> IPv4Address:
        """The one that hosts know it by."""
        return self.ports[0].local4

    def port(self, host: str) -> Port:
        """The port of a host. Raises `LabError`."""
        for port in self.ports:
            if port.host == host:
                return port
        raise LabError(f"host {host!r}: switch {self.name} has ports for {', '.join(one.host for one in self.ports)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace with one leg in the fabric and one in the management network: a node or the control plane."""

    name: str
    namespace: str
    fabric4: IPv4Address
    fabric6: IPv6Address
    management4: IPv4Address
    segment: Segment = FLAT
    zone: str = ""
    """Of a node: what topology.kubernetes.io/zone says of it."""
    uplinks: tuple[Port, ...] = ()
    """Its ports, one a switch; where there are any, it is on no segment."""

    @property
    def netns(self) -> str:
        """The path that `nsenter --net=` takes."""
        return f"/run/netns/{self.namespace}"

    @property
    def fabric_links(self) -> tuple[str, ...]:
        """Its interfaces on the fabric."""
        return tuple(port.link for port in self.uplinks) or (FABRIC_LINK,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The whole network of one lab. `nodes` are in order, n1 first."""

    lab: str
    fabric_namespace: str
    control: Host
    nodes: tuple[Host, ...]
    segments: tuple[Segment, ...] = (FLAT,)
    switches: tuple[Switch, ...] = ()
    router_namespace: str = ""
    """Empty where the fabric has no router."""
    mtu: int = FABRIC_MTU
    """The largest packet, in bytes, that the way between the segments takes."""

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Every namespace that has two legs: the control plane first, then the nodes."""
        return (self.control, *self.nodes)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace, the fabric's first."""
        router = [self.router_namespace] if self.router_namespace else []
        switches = [switch.namespace for switch in self.switches]
        return (self.fabric_namespace, *router, *switches, *(host.namespace for host in self.hosts))

    @property
    def outside_uplinks(self) -> tuple[Port, ...]:
        """The outside host's ports, one a switch."""
        return tuple(switch.port(OUTSIDE) for switch in self.switches)

    def switch(self, name: str) -> Switch:
        """A switch by its name. Raises `LabError`."""
        for switch in self.switches:
            if switch.name == name:
                return switch
        raise LabError(f"switch {name!r}: this fabric has {', '.join(one.name for one in self.switches) or 'none'}")

    def other_switch(self, switch: Switch) -> Switch:
        """The one at the other end of its link."""
        return next(one for one in self.switches if one != switch)


def check_name(lab: str) -> str:
    """The name back, or `LabError`: it becomes part of namespaces' and folders' names."""
    if not _NAME.fullmatch(lab):
        raise LabError(f"lab name {lab!r}: use 1 to 12 of a-z and 0-9, a letter first (no hyphen: it separates names)")
    return lab


def prefix(lab: str) -> str:
    """What the name of every namespace of the lab starts with."""
    return f"am-{lab}-"


def _digits(network: IPv6Network, number: int) -> IPv6Address:
    # The last group of the IPv6 address shows the IPv4 host's decimal digits (…::11 for .11): read, not computed with.
    return IPv6Address(f"{network.network_address}{number}")


def _host(lab: str, name: str, number: int, segment: Segment, zone: str = "") -> Host:
    return Host(
        name=name,
        namespace=prefix(lab) + name,
        fabric4=segment.network4.network_address + number,
        fabric6=_digits(segment.network6, number),
        management4=MANAGEMENT4.network_address + number,
        segment=segment,
        zone=zone,
    )


def plan(lab: str, nodes: int, fabric: Fabric = Fabric.FLAT, mtu: int = 0) -> Topology:
    """The network of lab `lab` with `nodes` nodes (1 to 60), dealt out to three zones. Raises `LabError`.

    In a routed fabric the control plane and the first half of the nodes are on the first segment. ``mtu``: of the way
    between the segments; 0: as large as their links'.
    """
    check_name(lab)
    if not 1 <= nodes <= MAXIMUM_NODES:
        raise LabError(f"nodes {nodes}: a lab has 1 to {MAXIMUM_NODES}")
    if fabric is not Fabric.ROUTED and mtu:
        raise LabError(f"fabric MTU {mtu}: a {fabric} fabric has no way between segments; ask for --fabric routed")
    segments = ROUTED if fabric is Fabric.ROUTED else (FLAT,)
    first = max(1, nodes // 2) if len(segments) > 1 else nodes
    made = Topology(
        lab=lab,
        fabric_namespace=prefix(lab) + "fab",
        control=_host(lab, "cp", 2, segments[0]),
        nodes=tuple(
            _host(lab, f"n{i}", 10 + i, segments[0 if i <= first else 1], f"z{(i - 1) % ZONES + 1}")
            for i in range(1, nodes + 1)
        ),
        segments=segments,
        router_namespace=prefix(lab) + "rtr" if len(segments) > 1 else "",
        mtu=check_mtu(mtu or FABRIC_MTU),
    )
    return _behind_switches(made) if fabric is Fabric.TOR else made


def _behind_switches(flat: Topology) -> Topology:
    """The same hosts with the same addresses of their own, each with a port on each switch in place of the segment."""
    switches = tuple(_switch(flat, number) for number in range(len(TOR_NAMES)))

    def cabled(host: Host) -> Host:
        return replace(host, uplinks=tuple(switch.port(host.name) for switch in switches))

    nodes = tuple(map(cabled, flat.nodes))
    return replace(flat, segments=(), switches=switches, control=cabled(flat.control), nodes=nodes)


def _switch(flat: Topology, number: int) -> Switch:
    networks4, networks6 = list(TOR_LINKS4.subnets(new_prefix=24)), list(TOR_LINKS6.subnets(new_prefix=64))
    servers = [(OUTSIDE, flat.fabric_namespace, GATEWAY4, GATEWAY6, 0)]
    servers.append((flat.control.name, flat.control.namespace, flat.control.fabric4, flat.control.fabric6, 0))
    servers += [(node.name, node.namespace, node.fabric4, node.fabric6, NODE_ASN) for node in flat.nodes]

    def port(host: str, namespace: str, own4: IPv4Address, own6: IPv6Address, asn: int) -> Port:
        site = int(own4) - int(FABRIC4.network_address)
        return Port(
            host=host,
            namespace=namespace,
            link=TOR_UPLINKS[number],
            local4=networks4[number].network_address + 1,
            local6=_digits(networks6[number], 1),
            remote4=networks4[2 + number].network_address + site,
            remote6=_digits(networks6[2 + number], site),
            own4=own4,
            own6=own6,
            site=site,
            asn=asn,
        )

    return Switch(
        name=TOR_NAMES[number],
        namespace=prefix(flat.lab) + TOR_NAMES[number],
        asn=FIRST_TOR_ASN + number,
        ports=tuple(port(*server) for server in servers),
        link4=networks4[4].network_address + 1 + number,
        link6=_digits(networks6[4], 1 + number),
    )


def check_mtu(mtu: int) -> int:
    """The MTU of the way between segments back, or `LabError`."""
    if not LEAST_FABRIC_MTU <= mtu <= FABRIC_MTU:
        raise LabError(f"fabric MTU {mtu}: {LEAST_FABRIC_MTU} to {FABRIC_MTU} bytes")
    return mtu


def namespace_commands(topology: Topology) -> Iterator[str]:
    """Lines of `ip -batch` that make the namespaces."""
    return (f"netns add {name}" for name in topology.namespaces)


def fabric_commands(topology: Topology) -> Iterator[str]:
    """Lines of `ip -n <fabric namespace> -batch`: the bridges, and a cable from each to every host and to the router.

    The far end is made in the host's namespace at once, so nothing ever appears in the machine's own.
    """
    yield "link set lo up"
    for bridge in (*(segment.bridge for segment in topology.segments), MANAGEMENT_BRIDGE):
        # Without spanning tree a port forwards from the start; with it the first 30 s would be silent.
        yield f"link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        yield f"link set {bridge} up"
    for segment in topology.segments:
        yield f"addr add {segment.outside4}/{segment.network4.prefixlen} dev {segment.bridge}"
        yield f"addr add {segment.outside6}/{segment.network6.prefixlen} dev {segment.bridge} nodad"
        if segment.router_link:
            port = f"r-{segment.router_link}"
            yield f"link add {port} type veth peer name {segment.router_link} netns {topology.router_namespace}"
            yield f"link set {port} master {segment.bridge} up"
    for host in topology.hosts:
        fabric = () if host.uplinks else ((FABRIC_LINK, host.segment.bridge),)
        for link, bridge in (*fabric, (MANAGEMENT_LINK, MANAGEMENT_BRIDGE)):
            port = f"{link[0]}-{host.name}"
            yield f"link add {port} type veth peer name {link} netns {host.namespace}"
            yield f"link set {port} master {bridge} up"


def host_commands(host: Host) -> Iterator[str]:
    """Lines of `ip -n <host namespace> -batch`: addresses and the default routes a real machine has."""
    segment = host.segment
    yield "link set lo up"
    yield f"addr add {host.management4}/{MANAGEMENT4.prefixlen} dev {MANAGEMENT_LINK}"
    yield f"link set {MANAGEMENT_LINK} up"
    if host.uplinks:
        yield from uplink_commands(host.uplinks)
        return
    yield f"addr add {host.fabric4}/{segment.network4.prefixlen} dev {FABRIC_LINK}"
    yield f"addr add {host.fabric6}/{segment.network6.prefixlen} dev {FABRIC_LINK} nodad"
    yield f"link set {FABRIC_LINK} up"
    yield f"route add default via {segment.gateway4} dev {FABRIC_LINK}"
    yield f"route add default via {segment.gateway6} dev {FABRIC_LINK}"


def uplink_commands(uplinks: Sequence[Port]) -> Iterator[str]:
    """Lines of `ip -n <host namespace> -batch` of a host behind switches: its own addresses, its links, and the default
    routes by all of them, as the provisioning of a rack leaves it before anything on it speaks BGP.

    What the host sends of its own has its own address, which does not depend on a link; sessions with a switch have
    the link's.
    """
    host = uplinks[0]
    yield f"addr add {host.own4} dev lo"
    yield f"addr add {host.own6} dev lo nodad"
    for port in uplinks:
        yield f"link set {port.link} up"
        yield f"addr add {port.remote4} peer {port.local4}/32 dev {port.link}"
        yield f"addr add {port.remote6} peer {port.local6}/128 dev {port.link} nodad"
    for version, everything, source in ((4, "0.0.0.0/0", host.own4), (6, "::/0", host.own6)):
        hops = (f"nexthop via {port.local(version)} dev {port.link} onlink" for port in uplinks)
        yield f"route add {everything} src {source} {' '.join(hops)}"


def switch_commands(topology: Topology, switch: Switch) -> Iterator[str]:
    """Lines of `ip -n <switch's namespace> -batch`: a cable to each host, and one between the switches, laid by the
    first of them. Routes are the matter of what runs on the switch.
    """
    other = topology.other_switch(switch)
    yield "link set lo up"
    for port in switch.ports:
        yield f"link add {port.name} type veth peer name {port.link} netns {port.namespace}"
        yield f"link set {port.name} up"
        yield f"addr add {port.local4} peer {port.remote4}/32 dev {port.name}"
        yield f"addr add {port.local6} peer {port.remote6}/128 dev {port.name} nodad"
    if switch is topology.switches[0]:
        yield f"link add {INTER_SWITCH_LINK} type veth peer name {INTER_SWITCH_LINK} netns {other.namespace}"
    yield f"link set {INTER_SWITCH_LINK} up"
    yield f"addr add {switch.link4} peer {other.link4}/32 dev {INTER_SWITCH_LINK}"
    yield f"addr add {switch.link6} peer {other.link6}/128 dev {INTER_SWITCH_LINK} nodad"


def router_commands(topology: Topology) -> Iterator[str]:
    """Lines of `ip -n <router's namespace> -batch`: a leg on each segment, and no way to any other address.

    What is too large for the way between the segments is answered with ICMP, as by a router on a narrow link: routes
    carry the MTU, not links, since a link would drop what is too large for it in silence.
    """
    yield "link set lo up"
    for segment in topology.segments:
        link = segment.router_link
        yield f"addr add {segment.gateway4}/{segment.network4.prefixlen} dev {link} noprefixroute"
        yield f"addr add {segment.gateway6}/{segment.network6.prefixlen} dev {link} nodad noprefixroute"
        yield f"link set {link} up"
    yield from mtu_commands(topology)
    for network in (*OUTSIDE4, *OUTSIDE6):
        outside = topology.segments[0].outside4 if network.version == 4 else topology.segments[0].outside6
        yield f"route add {network} via {outside} dev {topology.segments[0].router_link}"


def mtu_commands(topology: Topology) -> Iterator[str]:
    """The router's ways to its segments, with the MTU of the plan; what was there is replaced."""
    for segment in topology.segments:
        for network in (segment.network4, segment.network6):
            yield f"route replace {network} dev {segment.router_link} mtu {topology.mtu}"
