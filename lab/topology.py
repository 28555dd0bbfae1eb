"""The plan of a lab's network: which namespaces, interfaces and addresses there are, and the `ip` commands that
make them.

Owns the names and numbers of a lab's wiring. Pure: the same (name, nodes) gives the same plan; `namespaces.py`
carries it out. Promises that two labs with different names share nothing (every name of a namespace starts with
`am-<lab>-`, and a lab's name has no hyphen, so that no name is another's prefix) while all labs use the same
addresses inside. Refuses names and sizes that the kernel or Kubernetes would refuse later, with less clear words.

    am-<lab>-fab   bridge `fabric` 172.30.0.1/24 fd00:172:30::1/64   bridge `mgmt` (layer 2 only)
    am-<lab>-cp    fab0 172.30.0.2    fd00:172:30::2     mgmt0 172.31.0.2
    am-<lab>-nI    fab0 172.30.0.10+I fd00:172:30::10+I  mgmt0 172.31.0.10+I   (the last group in decimal digits)

Kernel quirks: an interface's name has at most 15 bytes; a fresh IPv6 address is tentative for a second unless `nodad`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

FABRIC4 = IPv4Network("172.30.0.0/24")
FABRIC6 = IPv6Network("fd00:172:30::/64")
MANAGEMENT4 = IPv4Network("172.31.0.0/24")
GATEWAY4 = IPv4Address("172.30.0.1")
GATEWAY6 = IPv6Address("fd00:172:30::1")
SERVICES4 = IPv4Network("10.96.0.0/16")
SERVICES6 = IPv6Network("fd00:10:96::/112")
CLUSTER_DNS = IPv4Address("10.96.0.10")
API_SERVICE4 = IPv4Address("10.96.0.1")
API_SERVICE6 = IPv6Address("fd00:10:96::1")
FABRIC_LINK = "fab0"
MANAGEMENT_LINK = "mgmt0"
FABRIC_BRIDGE = "fabric"
MANAGEMENT_BRIDGE = "mgmt"
MAXIMUM_NODES = 60
ZONES = 3
_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")


class LabError(Exception):
    """Something a person has to mend; the text names the field or thing and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace with one leg in the fabric and one in the management network: a node or the control plane."""

    name: str
    namespace: str
    fabric4: IPv4Address
    fabric6: IPv6Address
    management4: IPv4Address
    zone: str = ""
    """Of a node: what topology.kubernetes.io/zone says of it."""

    @property
    def netns(self) -> str:
        """The path that `nsenter --net=` takes."""
        return f"/run/netns/{self.namespace}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The whole network of one lab. `nodes` are in order, n1 first."""

    lab: str
    fabric_namespace: str
    control: Host
    nodes: tuple[Host, ...]

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Every namespace that has two legs: the control plane first, then the nodes."""
        return (self.control, *self.nodes)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace, the fabric's first."""
        return (self.fabric_namespace, *(host.namespace for host in self.hosts))


def check_name(lab: str) -> str:
    """The name back, or `LabError`: it becomes part of namespaces' and folders' names."""
    if not _NAME.fullmatch(lab):
        raise LabError(f"lab name {lab!r}: use 1 to 12 of a-z and 0-9, a letter first (no hyphen: it separates names)")
    return lab


def prefix(lab: str) -> str:
    """What the name of every namespace of the lab starts with."""
    return f"am-{lab}-"


def _host(lab: str, name: str, number: int, zone: str = "") -> Host:
    # The last group of the IPv6 address shows the IPv4 host's decimal digits (…::11 for .11): read, not computed with.
    return Host(
        name=name,
        namespace=prefix(lab) + name,
        fabric4=FABRIC4.network_address + number,
        fabric6=IPv6Address(f"fd00:172:30::{number}"),
        management4=MANAGEMENT4.network_address + number,
        zone=zone,
    )


def plan(lab: str, nodes: int) -> Topology:
    """The network of lab `lab` with `nodes` nodes (1 to 60), dealt out to three zones. Raises `LabError`."""
    check_name(lab)
    if not 1 <= nodes <= MAXIMUM_NODES:
        raise LabError(f"nodes {nodes}: a lab has 1 to {MAXIMUM_NODES}")
    return Topology(
        lab=lab,
        fabric_namespace=prefix(lab) + "fab",
        control=_host(lab, "cp", 2),
        nodes=tuple(_host(lab, f"n{i}", 10 + i, f"z{(i - 1) % ZONES + 1}") for i in range(1, nodes + 1)),
    )


def namespace_commands(topology: Topology) -> Iterator[str]:
    """Lines of `ip -batch` that make the namespaces."""
    return (f"netns add {name}" for name in topology.namespaces)


def fabric_commands(topology: Topology) -> Iterator[str]:
    """Lines of `ip -n <fabric namespace> -batch`: two bridges, and a cable from each to every host.

    The far end is made in the host's namespace at once, so nothing ever appears in the machine's own.
    """
    yield "link set lo up"
    for bridge in (FABRIC_BRIDGE, MANAGEMENT_BRIDGE):
        # Without spanning tree a port forwards from the start; with it the first 30 s would be silent.
        yield f"link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        yield f"link set {bridge} up"
    yield f"addr add {GATEWAY4}/{FABRIC4.prefixlen} dev {FABRIC_BRIDGE}"
    yield f"addr add {GATEWAY6}/{FABRIC6.prefixlen} dev {FABRIC_BRIDGE} nodad"
    for host in topology.hosts:
        for link, bridge in ((FABRIC_LINK, FABRIC_BRIDGE), (MANAGEMENT_LINK, MANAGEMENT_BRIDGE)):
            port = f"{link[0]}-{host.name}"
            yield f"link add {port} type veth peer name {link} netns {host.namespace}"
            yield f"link set {port} master {bridge} up"


def host_commands(host: Host) -> Iterator[str]:
    """Lines of `ip -n <host namespace> -batch`: addresses and the default routes a real machine has."""
    yield "link set lo up"
    yield f"addr add {host.fabric4}/{FABRIC4.prefixlen} dev {FABRIC_LINK}"
    yield f"addr add {host.fabric6}/{FABRIC6.prefixlen} dev {FABRIC_LINK} nodad"
    yield f"addr add {host.management4}/{MANAGEMENT4.prefixlen} dev {MANAGEMENT_LINK}"
    yield f"link set {FABRIC_LINK} up"
    yield f"link set {MANAGEMENT_LINK} up"
    yield f"route add default via {GATEWAY4} dev {FABRIC_LINK}"
    yield f"route add default via {GATEWAY6} dev {FABRIC_LINK}"


def host_sysctls() -> dict[str, str]:
    """Settings under /proc/sys/net of a node or the control plane, to be written before its links exist.

    Forwarding comes first: writing it resets other settings of the same family (ip-sysctl.rst of the kernel).
    Addresses are set by hand, so router advertisements and duplicate detection are off.
    """
    return {
        "ipv4/ip_forward": "1",
        "ipv6/conf/all/forwarding": "1",
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        "ipv6/conf/all/accept_dad": "0",
        "ipv6/conf/default/accept_dad": "0",
        "ipv6/conf/all/accept_ra": "0",
        "ipv6/conf/default/accept_ra": "0",
    }


def fabric_sysctls() -> dict[str, str]:
    """Settings of the fabric's namespace: an outside host, not a router. Where it has several ways to an address (see
    `cloud.py`), each connection takes one of them.
    """
    return {
        "ipv4/fib_multipath_hash_policy": "1",
        "ipv6/fib_multipath_hash_policy": "1",
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        "ipv6/conf/all/accept_dad": "0",
        "ipv6/conf/default/accept_dad": "0",
    }
