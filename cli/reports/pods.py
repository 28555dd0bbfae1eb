"""`airmesh pods`: each pod's addresses, node and security identity.

Of two endpoints that claim one address, the one with the greater (epoch, sequence) is true and the other is left out,
exactly as the nodes' own maps have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cli.reports import text
from cli.reports.table import Cell, Table, Tone, dim
from proto.addresses import Endpoint
from proto.identity import IdentityRecord
from proto.net import Address


class PodRow(msgspec.Struct, frozen=True, kw_only=True):
    """One pod with a network of its own."""

    namespace: str
    pod: str
    node: str
    addresses: tuple[Address, ...]
    identity: str
    """16 hex digits."""
    labels: str
    """Its labels that some policy's selector names; empty when its identity has not been published."""
    kept: bool
    """Its addresses are claims: they stay when it moves."""
    uid: str


class Pods(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh pods`."""

    pods: tuple[PodRow, ...]


def true_endpoints(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """One endpoint an address: the one that counts."""
    by_address: dict[Address, Endpoint] = {}
    for endpoint in endpoints:
        rival = by_address.get(endpoint.address)
        if rival is None or (endpoint.epoch, endpoint.sequence) > (rival.epoch, rival.sequence):
            by_address[endpoint.address] = endpoint
    return tuple(by_address.values())


def pods(endpoints: Iterable[Endpoint], identities: Mapping[int, IdentityRecord], namespace: str = "") -> Pods:
    """Rows by namespace and name; only those of ``namespace`` unless it is empty."""
    by_pod: dict[tuple[str, str, str, str], list[Endpoint]] = {}
    for endpoint in true_endpoints(endpoints):
        if namespace in ("", endpoint.namespace):
            key = (endpoint.namespace, endpoint.pod, endpoint.pod_uid, endpoint.node)
            by_pod.setdefault(key, []).append(endpoint)
    return Pods(pods=tuple(_row(group, identities) for _, group in sorted(by_pod.items())))


def _row(group: list[Endpoint], identities: Mapping[int, IdentityRecord]) -> PodRow:
    first = group[0]
    record = identities.get(first.identity)
    return PodRow(
        namespace=first.namespace,
        pod=first.pod,
        node=first.node,
        addresses=tuple(
            sorted((entry.address for entry in group), key=lambda address: (address.version, address.packed))
        ),
        identity=text.identity(first.identity),
        labels=text.labels(record.pod_labels) if record else "",
        kept=any(entry.claimed for entry in group),
        uid=first.pod_uid,
    )


def tables(report: Pods) -> tuple[Table, ...]:
    """One table."""
    return (
        Table(
            title=f"Pods ({len(report.pods)})",
            columns=("namespace", "pod", "node", "IPv4", "IPv6", "address", "identity", "selected by"),
            rows=tuple(
                (
                    pod.namespace,
                    Cell(pod.pod, Tone.STRONG),
                    pod.node,
                    _family(pod, 4),
                    _family(pod, 6),
                    Cell("kept", Tone.GOOD) if pod.kept else dim("node's"),
                    dim(pod.identity),
                    pod.labels,
                )
                for pod in report.pods
            ),
            empty="no pod of the mesh is running",
        ),
    )


def _family(pod: PodRow, version: int) -> str | Cell:
    return ", ".join(str(address) for address in pod.addresses if address.version == version) or dim("–")
