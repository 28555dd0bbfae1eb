"""The domain's notation for the tables of these tests."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from proto.addresses import Endpoint
from proto.identity import IdentityRecord
from proto.net import Address
from proto.objects import EndpointPort, EndpointSlice, IPPool, Node, Selector, Service, ServicePort, SliceEndpoint
from proto.policy import (
    CompiledPolicy,
    CompiledRule,
    Direction,
    PortMatch,
    Revision,
    RuleSource,
    SelectorPeer,
    Verdict,
)
from services.dataplane.core.datapath.service_layout import Backend, BackendKey, ServiceKey
from services.dataplane.core.ipcache.entries import Entries, fixed_entries
from services.dataplane.core.loadbalancer.endpoint_choice import Target
from services.dataplane.core.loadbalancer.frontends import BackendsOf, Frontend, Frontends, HostPortPod, Owner, Refusal
from services.dataplane.core.loadbalancer.node_context import NodeContext
from services.dataplane.core.loadbalancer.service_objects import ServiceObjects
from services.dataplane.core.loadbalancer.services import Tables
from services.dataplane.core.monitor.names import Names, nodes_at

TCP, UDP, SCTP = 6, 17, 132
_PROTOCOL = {"any": 0, "tcp": TCP, "udp": UDP, "sctp": SCTP}


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in (pair.split("=") for pair in text.split("+") if pair)))


def _labels(text: str) -> Selector:
    """``app=web+tier=1``; ``*`` selects everything."""
    return Selector(match_labels=_pairs(text)) if text != "*" else Selector()


def selector(text: str) -> SelectorPeer:
    """``shop:app=web`` are pods of one namespace, ``team=a:app=web`` of all namespaces with a label, ``*:*`` all."""
    namespace, _, pods = text.partition(":")
    chosen = None if pods in ("", "*") else _labels(pods)
    if namespace == "*" or "=" in namespace:
        return SelectorPeer(namespace_selector=_labels(namespace), pod_selector=chosen)
    return SelectorPeer(namespace=namespace, pod_selector=chosen)


def port(text: str) -> PortMatch:
    """``any``, ``tcp``, ``tcp/80``, ``tcp/8080/13``."""
    protocol, *rest = text.split("/")
    return PortMatch(
        _PROTOCOL[protocol], int(rest[0]) if rest else 0, int(rest[1]) if len(rest) > 1 else 16 if rest else 0
    )


def policy(identity: int, *lines: str, isolated: str = "in", sequence: int = 10, sources: str = "p") -> CompiledPolicy:
    """Each line ``in shop:app=web,cidr:7 tcp/80,udp/53``, with ``!`` in front a denial, ``@5`` behind its rank."""
    rules: list[CompiledRule] = []
    selectors: list[SelectorPeer] = []
    for number, line in enumerate(lines):
        direction, peers, ports, *precedence = line.removeprefix("!").split()
        named = [selector(one) for one in peers.split(",") if one != "any" and not one.startswith("cidr:")]
        selectors += [one for one in named if one not in selectors]
        rules.append(
            CompiledRule(
                direction=Direction.INGRESS if direction == "in" else Direction.EGRESS,
                precedence=int(precedence[0][1:]) if precedence else 1000,
                verdict=Verdict.DENY if line.startswith("!") else Verdict.ALLOW,
                source=number,
                any_peer="any" in peers.split(","),
                selectors=tuple(selectors.index(one) for one in named),
                cidr_sets=tuple(int(one[5:]) for one in peers.split(",") if one.startswith("cidr:")),
                ports=tuple(port(one) for one in ports.split(",")),
            )
        )
    return CompiledPolicy(
        identity=identity,
        revision=Revision(epoch="e1", sequence=sequence),
        ingress_isolated="in" in isolated,
        egress_isolated="out" in isolated,
        rules=tuple(rules),
        selectors=tuple(selectors),
        sources=tuple(
            RuleSource("NetworkPolicy", "shop", f"{sources}{number}", number) for number in range(len(lines))
        ),
        isolated_by=(RuleSource("NetworkPolicy", "shop", "deny-all", -1),),
    )


def record(identity: int, namespace: str = "shop", labels: str = "", namespace_labels: str = "") -> IdentityRecord:
    """Labels as ``app=web+tier=1``."""
    return IdentityRecord(
        identity=identity,
        digest=f"{identity:032x}",
        namespace=namespace,
        namespace_labels=_pairs(namespace_labels),
        pod_labels=_pairs(labels),
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


def entries_of(
    node: str,
    endpoints: Iterable[Endpoint],
    local: Iterable[Endpoint] = (),
    nodes: Iterable[Node] = (),
    slices: Iterable[EndpointSlice] = (),
    own_addresses: Iterable[Address] = (),
) -> Entries:
    """The ipcache of a node, made from nothing."""
    entries = Entries()
    for number, one in enumerate(endpoints):
        entries.publish(f"{one.node}.{number}", one)
    entries.set_local(local)
    entries.set_fixed(fixed_entries(node, nodes, slices, own_addresses))
    entries.settle()
    return entries


def names_of(
    endpoints: Iterable[Endpoint],
    nodes: Iterable[Node] = (),
    records: Iterable[IdentityRecord] = (),
    pods: Mapping[int, str] | None = None,
    interfaces: Mapping[int, str] | None = None,
) -> Names:
    """Names as a flow event's reader has them; ``pods`` of this node by number."""
    return Names(
        endpoint_at=entries_of("n1", endpoints).endpoint_at,
        namespace_of={record.identity: record.namespace for record in records}.get,
        nodes=nodes_at(nodes),
        by_endpoint=pods or {},
        interfaces=interfaces or {},
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


@dataclass(frozen=True)
class Plan:
    """All that `Frontends` says."""

    frontends: Mapping[ServiceKey, Frontend]
    backends: Mapping[BackendsOf, frozenset[Target]]
    stand_ins: Mapping[BackendsOf, Target]
    refused: list[Refusal]


def objects_of(services: Iterable[Service], slices: Iterable[EndpointSlice]) -> ServiceObjects:
    """Services and slices as they came from the bus."""
    objects = ServiceObjects()
    for kind, listed in (("service", services), ("slice", slices)):
        for one in listed:
            objects.put(f"{kind}.{one.namespace}.{one.name}", one)
    return objects


def plan_in(made: Frontends) -> Plan:
    """What it says now."""
    return Plan(made.frontends, made.backends, made.stand_ins, list(made.refused()))


def frontends_of(
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    pods: Iterable[HostPortPod],
    context: NodeContext,
    without: Container[Owner] = frozenset(),
    closed: Container[Owner] = frozenset(),
) -> Plan:
    """The fronts for these objects, made from nothing."""
    objects, made = objects_of(services, slices), Frontends(context)
    made.move(objects, objects.names(), tuple(pods), without, closed)
    return plan_in(made)


def _entries(tables: Tables, number: int, count: int) -> list[Backend]:
    found = (tables.backends.get(BackendKey(service=number, index=index)) for index in range(count))
    return [entry for entry in found if entry is not None]


def slots_of(tables: Tables) -> dict[ServiceKey, tuple[Target, ...]]:
    """The order in which each front's backends stand."""
    by_number = {
        number: tuple((entry.address, entry.port) for entry in _entries(tables, number, count))
        for number, count in {(one.number, one.backends) for one in tables.services.values()}
    }
    return {key: by_number[one.number] for key, one in tables.services.items()}
