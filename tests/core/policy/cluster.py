"""The product on one side, the oracle on the other: a world put through both, and where they disagree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from random import Random

from proto.identity import Reserved
from proto.objects import KubernetesObject
from services.policy.core.graph import Graph, Held
from tests.core.policy.kernel_model import Kernel
from tests.core.policy.oracle import Oracle, TrafficPeer, peer_at
from tests.core.policy.worlds import PORTS, World

Address = IPv4Address | IPv6Address
Probe = tuple[Address, Address, int, int]


def keyed(world: World) -> dict[str, KubernetesObject]:
    """The world's objects by keys as ``objects`` has them (any unique text will do)."""
    objects: dict[str, KubernetesObject] = {f"namespace.{n.name}": n for n in world.namespaces}
    objects |= {f"node.{n.name}": n for n in world.nodes}
    objects |= {f"pod.{p.node}.{p.namespace}.{p.name}": p for p in world.pods}
    objects |= {f"policy.{p.namespace}.{p.name}": p for p in world.policies}
    return objects


def feed(graph: Graph, objects: dict[str, KubernetesObject]) -> Graph:
    """Feed all, and let nodes compute identities with the relevant keys that the policies need."""
    for key, value in objects.items():
        graph.put(key, value)
    return settled(graph)


def settled(graph: Graph) -> Graph:
    graph.run()
    graph.hold(Held(relevants=frozenset({graph.relevant})))
    graph.run()
    return graph


def kernel_of(graph: Graph, world: World) -> Kernel:
    compiled = graph.compiled.values()
    records = [one.record for one in compiled if one.record is not None]
    prefixes = {namespace: partition.prefixes for namespace, partition in graph.partitions.items()}
    kernel = Kernel.filled((one.policy for one in compiled), records, prefixes)
    for node in world.nodes:
        kernel.ipcache.update(dict.fromkeys(node.addresses, Reserved.HOST))
        kernel.node_of.update(dict.fromkeys(node.addresses, node.name))
    for pod in world.pods:
        found = graph.roster.identity_of(pod, graph.relevant)
        if found is not None:
            kernel.ipcache.update(dict.fromkeys(pod.addresses, found))
            kernel.node_of.update(dict.fromkeys(pod.addresses, pod.node))
    return kernel


def peers_of(world: World) -> dict[Address, TrafficPeer]:
    return {address: peer_at(address, world.pods, world.nodes) for address in world.addresses}


def probes(world: World, seed: int, most: int) -> Iterator[Probe]:
    """Pairs of addresses of one family, ports on the edges of ranges, every protocol; ICMP has no port."""
    chance = Random(seed)
    by_version = {v: [a for a in world.addresses if a.version == v] for v in (4, 6)}
    for _ in range(most):
        addresses = by_version[chance.choice((4, 6))]
        protocol = chance.choice((6, 6, 17, 132, 1))
        port = 0 if protocol == 1 else chance.choice((*PORTS, chance.randrange(65536)))
        yield chance.choice(addresses), chance.choice(addresses), protocol, port


def disagreements(product: World, truth: World, asked: Iterable[Probe]) -> list[tuple[Probe, bool]]:
    """Probes that the compiled lines of ``product`` and the oracle's reading of ``truth`` answer differently."""
    kernel = kernel_of(feed(Graph(), keyed(product)), product)
    oracle = Oracle(truth.policies, truth.namespaces)
    where = peers_of(truth)
    wrong = []
    for probe in asked:
        source, destination, protocol, port = probe
        if source == destination:
            continue
        expected = oracle.allows(where[source], where[destination], protocol, port)
        if kernel.allows(source, destination, protocol, port) != expected:
            wrong.append((probe, expected))
    return wrong
