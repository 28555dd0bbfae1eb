"""`airmesh policy`: the verdict for a flow from A to B, and whether every node enforces the compiled policy.

The verdict is `policy`'s own (the code that compiles also explains). "Enforced everywhere" is a comparison of numbers:
the frontier of every shard against each node's acknowledgement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

import msgspec

from cli.faults import Usage
from cli.reports.agents import behind, published
from cli.reports.table import Cell, Table, Tone, bad, dim, good
from cli.reports.text import PROTOCOLS, identity, protocol
from proto.policy import Ack, Frontier
from proto.requests import ExplainRequest, Explanation

QUESTIONS_AT_ONCE = 1_000
"""Questions in one request of a matrix: well below the contract's 4,096, so that the answer fits one message."""
_NUMBERS = {name: number for number, name in PROTOCOLS.items() if name in ("tcp", "udp", "sctp")}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh policy explain`."""

    source: str
    destination: str
    port: int
    protocol: str
    allowed: bool
    egress_allowed: bool
    ingress_allowed: bool
    reasons: tuple[str, ...]
    source_identity: str
    destination_identity: str
    revision: str


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh policy matrix`, in the order of the questions."""

    verdicts: tuple[Verdict, ...]


class ShardState(msgspec.Struct, frozen=True, kw_only=True):
    """How far one shard of `policy` has compiled."""

    shard: int
    revision: str


class NodePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How far one node enforces."""

    node: str
    acknowledged: str
    behind: int | None
    """Sequences it lags; None: another epoch, or nothing published."""
    enforced: bool
    pods: int


class PolicyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh policy status`."""

    published: str
    """Revision that every shard has reached; empty before all have."""
    enforced_everywhere: bool
    shards: tuple[ShardState, ...]
    nodes: tuple[NodePolicy, ...]


def end(name: str, what: str) -> str:
    """`namespace/pod` or an address, as `policy` takes them; raises :class:`Usage`."""
    namespace, slash, pod = name.partition("/")
    if slash and namespace and pod and "/" not in pod:
        return name
    try:
        return str(ip_address(name.strip("[]")))
    except ValueError as error:
        raise Usage(
            f"{what} {name!r} is neither a pod nor an address", "write NAMESPACE/POD or an IP address"
        ) from error


def question(source: str, target: str) -> ExplainRequest:
    """`A` and `B:PORT[/PROTOCOL]` as a question; IPv6 addresses in brackets. Raises :class:`Usage`."""
    host, colon, rest = target.rpartition(":")
    port, _, proto = rest.partition("/")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise Usage(
            f"target {target!r} names no port from 1 to 65535", "write B:PORT or B:PORT/udp, e.g. prod/db-0:5432"
        )
    number = _NUMBERS.get((proto or "tcp").lower())
    if number is None:
        raise Usage(f"target {target!r}: protocol {proto!r} has no ports here", "use tcp, udp or sctp")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise Usage(
            f"target {target!r}: where the address ends is unclear", "put an IPv6 address in brackets: [fd00::1]:80"
        )
    return ExplainRequest(
        source=end(source, "source"), destination=end(host, "target"), port=int(port), protocol=number
    )


def verdict(asked: ExplainRequest, answer: Explanation) -> Verdict:
    """Question and answer together."""
    return Verdict(
        source=asked.source,
        destination=asked.destination,
        port=asked.port,
        protocol=protocol(asked.protocol),
        allowed=answer.allowed,
        egress_allowed=answer.egress_allowed,
        ingress_allowed=answer.ingress_allowed,
        reasons=answer.reasons,
        source_identity=identity(answer.source_identity),
        destination_identity=identity(answer.destination_identity),
        revision=answer.revision,
    )


def verdict_tables(report: Verdict) -> tuple[Table, ...]:
    """The verdict of either side, then the reasons in order."""
    target = f"{report.destination} {report.protocol} {report.port}"
    sides = Table(
        title=f"{report.source} → {target}",
        columns=("verdict", "leaves the source", "enters the target", "source is", "target is", "revision"),
        rows=(
            (
                _answer(report.allowed, "allowed", "denied"),
                _answer(report.egress_allowed, "yes", "no"),
                _answer(report.ingress_allowed, "yes", "no"),
                dim(report.source_identity),
                dim(report.destination_identity),
                dim(report.revision),
            ),
        ),
    )
    reasons = Table(
        title="Because",
        columns=("", "reason"),
        rows=tuple((dim(str(number)), reason) for number, reason in enumerate(report.reasons, 1)),
        empty="no reason was given",
    )
    return sides, reasons


def matrix_tables(report: Matrix) -> tuple[Table, ...]:
    """One row a question."""
    return (
        Table(
            title="What policy says",
            columns=("from", "to", "port", "verdict"),
            rows=tuple(
                (
                    line.source,
                    line.destination,
                    f"{line.port}/{line.protocol}",
                    _answer(line.allowed, "allowed", "denied"),
                )
                for line in report.verdicts
            ),
        ),
    )


def policy_status(frontiers: Iterable[Frontier], acks: Mapping[str, Ack]) -> PolicyStatus:
    """The report, from what was read."""
    listed = sorted(frontiers, key=lambda frontier: frontier.shard)
    reached = published(listed)
    nodes = tuple(
        NodePolicy(
            node=name,
            acknowledged=ack.rules.text,
            behind=behind(reached, ack),
            enforced=reached is not None and ack.rules.covers(reached),
            pods=ack.pods,
        )
        for name, ack in sorted(acks.items())
    )
    return PolicyStatus(
        published=reached.text if reached else "",
        enforced_everywhere=bool(nodes) and all(node.enforced for node in nodes),
        shards=tuple(ShardState(shard=one.shard, revision=one.revision.text) for one in listed),
        nodes=nodes,
    )


def status_tables(report: PolicyStatus) -> tuple[Table, ...]:
    """Shards, then nodes."""
    shards = Table(
        title="Published",
        columns=("shard", "all rules written up to"),
        rows=tuple((str(one.shard), one.revision) for one in report.shards),
        empty="nothing yet: policy is not in sync",
    )
    nodes = Table(
        title="Enforced",
        columns=("node", "pods", "kernel holds", "state"),
        rows=tuple((Cell(one.node, Tone.STRONG), str(one.pods), one.acknowledged, _state(one)) for one in report.nodes),
        note="everywhere" if report.enforced_everywhere else "not everywhere yet",
        empty="no node has acknowledged anything",
    )
    return shards, nodes


def _answer(yes: bool, good_text: str, bad_text: str) -> Cell:
    return good(good_text) if yes else bad(bad_text)


def _state(node: NodePolicy) -> Cell:
    if node.enforced:
        return good("enforced")
    return Cell("another epoch" if node.behind is None else f"{node.behind} behind", Tone.WARN)
