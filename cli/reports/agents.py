"""`airmesh status`: the agents, their health, and the policy revision that each node enforces.

An agent is known by its answer to NATS micro STATS; a node by Kubernetes' Node object, its acknowledgement in `acks`
and its agents. Well means: every service that the mesh needs answers and is ready, `ipam` uses every pool that nobody
disabled, and every node has acknowledged what `policy` has published. Readiness that an agent does not tell counts as
unknown, and unknown is not well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cli.reports.table import Cell, Table, Tone, bad, dim, good
from cli.reports.text import ago, size
from proto.net import Address
from proto.objects import Node
from proto.policy import Ack, Frontier, Revision

ONE_OF_EACH = ("cluster", "ipam", "policy", "dns")
"""Services that a mesh has at least one copy of."""
ON_EACH_NODE = ("routing", "dataplane")


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """One running copy of a service."""

    service: str
    node: str = ""
    """Empty for what runs once for the cluster."""
    instance: str
    version: str
    ready: bool | None = None
    """None: it did not say."""
    why: str = ""
    """What is not ready."""
    notes: str = ""
    """What a person should know though it is ready, e.g. whom a full table keeps out."""
    uptime_seconds: float = 0.0
    rss_bytes: int = 0
    """Resident memory; 0 when not told."""
    longest_hold_ms: float = 0.0
    """Longest time in the last minute that one callback held its event loop; 0 when not told, or below 1 ms."""
    longest_hold_by: str = ""
    """The task or callback that did."""
    requests: int = 0
    errors: int = 0
    mean_ms: float = 0.0
    """Mean time of a request's answer."""


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the cluster."""

    node: str
    addresses: tuple[Address, ...] = ()
    kubernetes_ready: bool = False
    schedulable: bool = True
    mesh_ready: bool = False
    """Its dataplane says: CNI answers, programs attached, watches in sync."""
    acknowledged: str = ""
    """Revision of the rules in its kernel, `<epoch>:<sequence>`; empty when it has never said."""
    behind: int | None = None
    """Sequences between the published frontier and its acknowledgement; None: not comparable."""
    pods: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh status`."""

    well: bool
    problems: tuple[str, ...]
    agents: tuple[Agent, ...]
    nodes: tuple[NodeState, ...]


def published(frontiers: Iterable[Frontier]) -> Revision | None:
    """The revision up to which every shard has written; None before all have, or while their epochs differ."""
    by_shard = {frontier.shard: frontier for frontier in frontiers}
    if not by_shard or len(by_shard) < max(frontier.shards for frontier in by_shard.values()):
        return None
    lowest = min((frontier.revision for frontier in by_shard.values()), key=lambda revision: revision.sequence)
    same = all(frontier.revision.epoch == lowest.epoch for frontier in by_shard.values())
    return lowest if same else None


def behind(frontier: Revision | None, ack: Ack | None) -> int | None:
    """How many sequences a node's kernel lags; 0 when it holds everything, None when that cannot be said."""
    if frontier is None or ack is None or ack.rules.epoch != frontier.epoch:
        return None
    return max(0, frontier.sequence - ack.rules.sequence)


def node_states(nodes: Iterable[Node], acks: Mapping[str, Ack], frontier: Revision | None) -> tuple[NodeState, ...]:
    """States by node name, also of nodes that Kubernetes no longer has but that still acknowledge."""
    known = {node.name: node for node in nodes}
    states = []
    for name in sorted(known.keys() | acks.keys()):
        node, ack = known.get(name), acks.get(name)
        states.append(
            NodeState(
                node=name,
                addresses=node.addresses if node else (),
                kubernetes_ready=bool(node and node.ready),
                schedulable=bool(node and not node.unschedulable),
                mesh_ready=bool(ack and ack.ready),
                acknowledged=ack.rules.text if ack else "",
                behind=behind(frontier, ack),
                pods=ack.pods if ack else 0,
            )
        )
    return tuple(states)


def problems(
    agents: Sequence[Agent],
    nodes: Sequence[NodeState],
    frontier: Revision | None,
    addresses: Sequence[str] | None = (),
    ways: Sequence[str] = (),
) -> tuple[str, ...]:
    """What is not well, a sentence each, the most basic first. ``addresses``: what `ipam` says is wrong, None: nothing
    came; ``ways``: pairs of nodes that have none.
    """
    found = []
    running = {(agent.service, agent.node) for agent in agents}
    services = {agent.service for agent in agents}
    found += [f"no copy of {service} answers" for service in ONE_OF_EACH if service not in services]
    found += [
        f"{service} on {node.node} does not answer"
        for node in nodes
        for service in ON_EACH_NODE
        if (service, node.node) not in running
    ]
    for agent in agents:
        where = f"{agent.service} {agent.instance}"
        if agent.ready is None:
            found.append(f"{where} does not say whether it is ready")
        elif not agent.ready:
            found.append(f"{where} is not ready: {agent.why or 'it does not say why'}")
    if not nodes:
        found.append("no node is known: cluster has not mirrored the Kubernetes API yet")
    if frontier is None:
        found.append("policy has not published a frontier yet: new pods wait")
    for node in nodes:
        if not node.acknowledged:
            found.append(f"node {node.node} has never acknowledged any policy: no pod starts there")
        elif not node.mesh_ready:
            found.append(f"node {node.node}'s dataplane says it is not ready: no new pods there")
        elif frontier is not None and node.behind is None:
            found.append(f"node {node.node} enforces policy of another epoch ({node.acknowledged})")
        if not node.kubernetes_ready:
            found.append(f"Kubernetes says node {node.node} is not Ready")
    if addresses is None and "ipam" in services:
        found.append("ipam does not say which IPPools give addresses")
    found += addresses or ()
    found += ways
    return tuple(found)


def status(
    agents: Iterable[Agent],
    nodes: Iterable[Node],
    acks: Mapping[str, Ack],
    frontiers: Iterable[Frontier],
    addresses: Sequence[str] | None = (),
    ways: Sequence[str] = (),
) -> Status:
    """The report, from what was read; ``addresses`` is what `ipam` says is wrong (None: it did not answer), ``ways``
    what routing does.
    """
    listed = tuple(sorted(agents, key=lambda agent: (_order(agent.service), agent.node, agent.instance)))
    frontier = published(frontiers)
    states = node_states(nodes, acks, frontier)
    wrong = problems(listed, states, frontier, addresses, ways)
    return Status(well=not wrong, problems=wrong, agents=listed, nodes=states)


def _order(service: str) -> tuple[int, str]:
    known = (*ONE_OF_EACH, *ON_EACH_NODE)
    return (known.index(service) if service in known else len(known), service)


def _readiness(agent: Agent) -> Cell:
    if agent.ready is None:
        return Cell("unknown", Tone.WARN)
    return good("ready") if agent.ready else bad("not ready")


def tables(report: Status) -> tuple[Table, ...]:
    """Nodes, agents, and what is wrong."""
    nodes = Table(
        title="Nodes",
        columns=("node", "addresses", "kubernetes", "mesh", "pods", "policy in the kernel"),
        rows=tuple(
            (
                Cell(node.node, Tone.STRONG),
                ", ".join(map(str, node.addresses)),
                (good("Ready") if node.kubernetes_ready else bad("NotReady"))
                if node.schedulable
                else Cell("cordoned", Tone.WARN),
                good("ready") if node.mesh_ready else bad("not ready"),
                str(node.pods),
                _lag(node),
            )
            for node in report.nodes
        ),
    )
    agents = Table(
        title="Agents",
        columns=("service", "node", "instance", "version", "health", "up", "memory", "requests", "mean"),
        rows=tuple(
            (
                Cell(agent.service, Tone.STRONG),
                agent.node or dim("–"),
                dim(agent.instance),
                agent.version,
                _readiness(agent),
                ago(agent.uptime_seconds),
                size(agent.rss_bytes) if agent.rss_bytes else dim("–"),
                str(agent.requests) + (f" ({agent.errors} failed)" if agent.errors else ""),
                f"{agent.mean_ms:.1f} ms" if agent.requests else dim("–"),
            )
            for agent in report.agents
        ),
    )
    wrong = Table(
        title="Not well",
        columns=("what",),
        rows=tuple((bad(problem),) for problem in report.problems),
        empty="nothing: every agent answers, every pool is used, every node enforces the same policy",
    )
    noted = [agent for agent in report.agents if agent.notes]
    notes = Table(
        title="Told",
        columns=("service", "node", "what"),
        rows=tuple((agent.service, agent.node or dim("–"), Cell(agent.notes, Tone.WARN)) for agent in noted),
    )
    return (nodes, agents, wrong, notes) if noted else (nodes, agents, wrong)


def _lag(node: NodeState) -> Cell:
    if not node.acknowledged:
        return bad("nothing acknowledged")
    sequence = node.acknowledged.rpartition(":")[2]
    if node.behind == 0:
        return good(f"up to date at {sequence}")
    return Cell(
        f"{node.behind} behind at {sequence}" if node.behind else f"another epoch: {node.acknowledged}", Tone.WARN
    )
