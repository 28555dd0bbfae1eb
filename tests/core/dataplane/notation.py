"""The domain's notation for the tables of these tests."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from proto.addresses import Endpoint
from proto.objects import EndpointPort, EndpointSlice, IPPool, Service, ServicePort, SliceEndpoint
from proto.policy import CompiledPolicy, CompiledRule, Direction, PeerKind, Revision, RuleSource, Verdict

TCP, UDP, SCTP = 6, 17, 132
_PROTOCOL = {"any": 0, "tcp": TCP, "udp": UDP, "sctp": SCTP}


def rule(line: str, *, rank: int = 1000, verdict: str = "allow", number: int = 0) -> CompiledRule:
    """``in 500 tcp/80``, ``out any tcp/8080/13``, ``in cidr:7 any``."""
    direction, peer, what = line.split()
    kind, value = PeerKind.ANY, 0
    if peer.startswith("cidr:"):
        kind, value = PeerKind.CIDR_SET, int(peer[5:])
    elif peer != "any":
        kind, value = PeerKind.IDENTITY, int(peer)
    protocol, *port = what.split("/")
    return CompiledRule(
        direction=Direction.INGRESS if direction == "in" else Direction.EGRESS,
        peer_kind=kind,
        peer=value,
        protocol=_PROTOCOL[protocol],
        port=int(port[0]) if port else 0,
        port_bits=int(port[1]) if len(port) > 1 else 16 if port else 0,
        rank=rank,
        verdict=Verdict.ALLOW if verdict == "allow" else Verdict.DENY,
        rule=number,
    )


def policy(identity: int, *lines: str, isolated: str = "in", sequence: int = 10) -> CompiledPolicy:
    return CompiledPolicy(
        identity=identity,
        revision=Revision(epoch="e1", sequence=sequence),
        ingress_isolated="in" in isolated,
        egress_isolated="out" in isolated,
        rules=tuple(rule(line, number=number) for number, line in enumerate(lines)),
        sources=tuple(RuleSource("NetworkPolicy", "shop", f"p{number}", number) for number in range(len(lines))),
        isolated_by=(RuleSource("NetworkPolicy", "shop", "deny-all", -1),),
    )


def endpoint(where: str, pod: str, *, identity: int = 1000, at: tuple[int, int] = (1, 1)) -> Endpoint:
    """``n1 10.244.0.1``, pod name, identity, (epoch, sequence)."""
    node, address = where.split()
    return Endpoint(
        node=node,
        address=ip_address(address),
        namespace="shop",
        pod=pod,
        pod_uid=f"uid-{pod}",
        identity=identity,
        mac=b"\2\0\0\0\0\1",
        epoch=at[0],
        sequence=at[1],
    )


def service(name: str, *addresses: str, ports: tuple[str, ...] = ("http:80/tcp",), **more: Any) -> Service:
    """Ports as ``http:80/tcp``, with a node port ``http:80+30080/tcp``."""
    parsed = []
    for field, kind in (("external_ips", ip_address), ("load_balancer_ips", ip_address), ("source_ranges", ip_network)):
        if field in more:
            more[field] = tuple(kind(text) for text in more[field].split())
    for port in ports:
        label, rest = port.split(":")
        number, protocol = rest.split("/")
        number, _, node_port = number.partition("+")
        parsed.append(ServicePort(label, _PROTOCOL[protocol], int(number), int(node_port or 0)))
    return Service(
        namespace="shop",
        name=name,
        uid=f"uid-{name}",
        cluster_ips=tuple(ip_address(address) for address in addresses),
        ports=tuple(parsed),
        **more,
    )


def slice_of(name: str, *endpoints: str, port: str = "http:8080/tcp", part: str = "a") -> EndpointSlice:
    """Endpoints as ``10.244.0.1``, with words behind: ``notready``, ``terminating`` (still serving), ``dead``,
    ``@n2``, and hints ``zone=a``, ``node=n1``."""
    label, rest = port.split(":")
    number, protocol = rest.split("/")
    made = []
    for text in endpoints:
        address, *words = text.split()
        node = next((word[1:] for word in words if word.startswith("@")), "n1")
        made.append(
            SliceEndpoint(
                addresses=(ip_address(address),),
                ready=not {"notready", "terminating", "dead"} & set(words),
                serving=not {"notready", "dead"} & set(words),
                terminating=bool({"terminating", "dead"} & set(words)),
                node=node,
                for_zones=tuple(word[5:] for word in words if word.startswith("zone=")),
                for_nodes=tuple(word[5:] for word in words if word.startswith("node=")),
            )
        )
    return EndpointSlice(
        namespace="shop",
        name=f"{name}-{part}",
        service=name,
        endpoints=tuple(made),
        ports=(EndpointPort(name=label, protocol=_PROTOCOL[protocol], port=int(number)),),
    )


def pool(cidr: str, **more: Any) -> IPPool:
    network = ip_network(cidr)
    return IPPool(name=cidr, cidr=network, block_size=26 if network.version == 4 else 122, **more)
