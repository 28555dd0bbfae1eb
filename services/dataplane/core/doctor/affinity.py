"""Clients of Services with session affinity, by the backend that they keep, as one node's maps have them.

Pure: entries of the maps in, ``proto.findings.AffinityClients`` out. It finds nothing: what is chance on one node is a
fault only of all nodes together, so ``airmesh doctor`` joins what they say. A client counts while its entry is
younger than the affinity lasts and its backend serves; a flow from outside, while it may be idle for as long as it is.
Times are nanoseconds of the monotonic clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proto.findings import MAX_CLIENTS, AffinityClients
from proto.net import Address, host_port
from services.dataplane.core.datapath import nat_layout as nat
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.doctor.endpoints import Target

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One port of a Service with affinity, and what the node's tables have for it."""

    service: str
    """``namespace/name``."""
    port: int
    protocol: int
    family: int
    seconds: int
    backends: tuple[Target, ...]
    """In the order of their addresses."""


def clients(
    asked: Mapping[int, Asked],
    sockets: Iterable[tuple[lb.AffinityKey, lb.Affinity]],
    outside: Iterable[tuple[nat.ClientKey, lb.Affinity]],
    flows: Iterable[tuple[nat.NatKey, nat.Nat]],
    now: int,
) -> tuple[AffinityClients, ...]:
    """``asked``: by the number of the set of backends; the others: entries of ``am_affinity``, ``am_clients`` and
    ``am_nat``.
    """
    at = {number: {target: index for index, target in enumerate(one.backends)} for number, one in asked.items()}

    def kept(number: int, entry: lb.Affinity) -> int | None:
        if number not in asked or now - entry.last > asked[number].seconds * SECOND:
            return None
        return at[number].get((entry.address, entry.port))

    pods = Counter(
        (key.service, index)
        for key, entry in sockets
        if key.kind == lb.AffinityKind.NAMESPACE and (index := kept(key.service, entry)) is not None
    )
    others: dict[int, list[tuple[Address, int]]] = {number: [] for number in asked}
    for key, entry in outside:
        if (index := kept(key.service, entry)) is not None:
            others[key.service].append((key.address, index))
    sources: dict[int, Counter[Address]] = {number: Counter() for number in asked}
    for flow, becomes in flows:
        alive = now - becomes.last_seen <= becomes.period * SECOND
        if becomes.service in asked and not becomes.is_back and alive:
            sources[becomes.service][flow.source] += 1
    return tuple(
        _report(one, [pods[number, index] for index in range(len(one.backends))], others[number], sources[number])
        for number, one in asked.items()
    )


def _report(
    asked: Asked, pods: list[int], outside: list[tuple[Address, int]], sources: Counter[Address]
) -> AffinityClients:
    busiest, most = max(sources.items(), key=lambda one: (one[1], str(one[0])), default=("", 0))
    return AffinityClients(
        service=asked.service,
        port=asked.port,
        protocol=asked.protocol,
        family=asked.family,
        seconds=asked.seconds,
        backends=tuple(host_port(*target) for target in asked.backends),
        pods=tuple(pods),
        outside=tuple((str(address), index) for address, index in sorted(outside, key=str)[:MAX_CLIENTS]),
        flows=sources.total(),
        busiest=str(busiest),
        busiest_flows=most,
    )
