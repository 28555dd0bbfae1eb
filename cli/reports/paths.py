"""The path of one connection, hop by hop, as each node's own programs judge a packet of it (``proto.probes``).

Pure. A path is followed by asking: :meth:`Path.question` says which node is asked what next, :meth:`Path.reported`
takes the answer. The packet there is followed to the destination, the one back to the source; a Service's address
becomes a path for each backend. No packet is sent, so nothing is said of the network between the nodes: routes of the
pair and packets of measurement are what ``airmesh routes explain`` shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Literal

import msgspec

from cli.faults import Complaint, Declined, Usage
from cli.reports.table import Cell, Table, Tone, bad, dim, good
from cli.reports.text import identity, protocol, socket
from proto.addresses import Endpoint
from proto.findings import Finding, node_name, object_name, pair_name
from proto.flow import DropReason
from proto.net import Address
from proto.objects import Pod, Service
from proto.probes import (
    MAX_BACKENDS,
    MAX_PROBES,
    Judgement,
    Listener,
    Probe,
    ProbeAnswer,
    ProbeHop,
    ProbeResult,
    ProbeStep,
    ServiceChoice,
)

FIRST_PORT = 40_000
"""Source ports of probes are from here on: what ``net.ipv4.ip_local_port_range`` has by default."""
WHY: dict[str, str] = {
    DropReason.POLICY_DENIED.name: "policy denies it",
    DropReason.POLICY_UNKNOWN.name: "rules of this end have not arrived on its node: denied until they have",
    DropReason.POLICY_REVOKED.name: "policy no longer allows it",
    DropReason.CONNTRACK_BUDGET.name: "the pod has as many flows as it may have",
    DropReason.CONNTRACK_FULL.name: "the node's conntrack table is full",
    DropReason.LINK_UNKNOWN.name: "the pod's link is not known to the programs",
    DropReason.ENDPOINT_GONE.name: "no pod has this address here",
    DropReason.UNENCRYPTED.name: "it must be encrypted, and no WireGuard route leads there",
    DropReason.NO_ROUTE.name: "there is no route",
    DropReason.TUNNEL_PEER.name: "the other node's outer address is not believed",
    DropReason.TUNNEL_SOURCE.name: "the pod's address is not believed of that node",
    DropReason.SPOOFED_ADDRESS.name: "its source address is not believed",
}
_NEXT_HOPS = ("sent", "stack")

Stage = Literal["out", "here", "there", "back", "done"]
"""What is asked next: the packet out; there and back on one node; the other node; the packet back at the source."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a connection."""

    name: str
    """``namespace/pod``; empty for an address that is no pod's."""
    address: Address
    node: str = ""
    """Where it lives; empty for what is no pod."""


class PathHop(msgspec.Struct, frozen=True, kw_only=True):
    """A hop, and the node that told it."""

    node: str
    hop: ProbeHop


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """One way that packets of the connection take."""

    source: End
    destination: End
    port: int
    protocol: int
    source_port: int
    service: str = ""
    """The Service's address and port that became this destination; empty: it was named itself."""
    choice: ServiceChoice | None = None
    """What the socket made of it."""
    stage: Stage = "out"
    hops: tuple[PathHop, ...] = ()
    listener: Listener | None = None
    ends: str = ""
    """Where and why it ends before it is whole, one sentence; empty: both packets arrive."""
    leaves: bool = False
    """It ends where no program of the mesh looks, at its edge or in the pod itself: no fault."""

    @property
    def well(self) -> bool:
        """Nothing stops it, as far as it can be followed."""
        return not self.ends or self.leaves

    def question(self) -> tuple[str, Probe] | None:
        """The node to ask next, and what; None when the path has been followed."""
        out, frame, last = ProbeStep("leaves"), b"", self.hops[-1].hop if self.hops else None
        if last is not None:
            frame = last.frame
        decrypted = last is not None and last.model == "wireguard"
        arrives = ProbeStep("arrives", is_reply=self.stage == "back", frame=frame, decrypted=decrypted)
        node, steps = {
            "out": (self.source.node, (out,)),
            "here": (self.source.node, (out, ProbeStep("leaves", is_reply=True))),
            "there": (self.destination.node, (arrives, ProbeStep("leaves", is_reply=True))),
            "back": (self.source.node, (out, arrives)),
            "done": ("", ()),
        }[self.stage]
        if not steps:
            return None
        return node, Probe(
            source=self.source.address,
            destination=self.destination.address,
            source_port=self.source_port,
            port=self.port,
            protocol=self.protocol,
            steps=steps,
        )

    def shown(self) -> Path:
        """The path without the frames, which only who follows it needs."""
        hops = (msgspec.structs.replace(one.hop, frame=b"") for one in self.hops)
        return msgspec.structs.replace(
            self, hops=tuple(PathHop(node=one.node, hop=hop) for one, hop in zip(self.hops, hops, strict=True))
        )

    def reported(self, result: ProbeResult) -> Path:
        """The path with what a node said."""
        if result.service is not None:
            return self._ended(_without_backend(result.service), choice=result.service)
        asked = self.question()
        node = asked[0] if asked else ""
        known = 1 if self.stage in ("here", "back") else 0
        new = tuple(PathHop(node=node, hop=hop) for hop in result.hops[known:])
        heard = msgspec.structs.replace(
            self, hops=(*self.hops, *new), listener=result.listener if result.listener is not None else self.listener
        )
        for one in new:
            if one.hop.outcome == "dropped":
                return heard._ended(_dropped(one))
            if one.hop.way == "arrives" and one.hop.outcome != "delivered":
                return heard._stuck(one)
        if result.refused:
            return heard._ended(result.refused)
        return heard._onwards(new[-1]) if new else heard._ended(f"node {node} did not say what becomes of it")

    def _onwards(self, one: PathHop) -> Path:
        """After a hop that the packet passed."""
        last = one.hop
        if self.stage in ("here", "back"):
            return self._arrived(one)
        if self.stage == "there":
            return self._to("back") if last.frame else self._stuck(one)
        if last.outcome == "delivered":
            return self._to("here")
        if not self.destination.node and last.device:
            where = f"{last.device}{f' to {last.next_hop}' if last.next_hop else ''}"
            return self._ended(f"it leaves the pods' network at node {self.source.node}: {where}", leaves=True)
        goes_on = self.destination.node not in ("", self.source.node) and last.frame
        return self._to("there") if goes_on else self._stuck(one)

    def _arrived(self, one: PathHop) -> Path:
        if one.hop.outcome != "delivered":
            return self._stuck(one)
        if self.listener is not None and not self.listener.listens:
            return self._ended(f"nothing listens on {protocol(self.protocol)} {self.port} in {self.destination.name}")
        return self._to("done")

    def _stuck(self, one: PathHop) -> Path:
        why = f"by {one.hop.device}" if one.hop.device else "which has no route"
        who = "the stack of node" if one.hop.outcome == "stack" else "node"
        return self._ended(f"{who} {one.node} takes it, {why}, and not to the pod: it cannot be followed there")

    def _to(self, stage: Stage) -> Path:
        return msgspec.structs.replace(self, stage=stage)

    def _ended(self, why: str, *, leaves: bool = False, choice: ServiceChoice | None = None) -> Path:
        return msgspec.structs.replace(self, stage="done", ends=why, leaves=leaves, choice=choice or self.choice)


def _without_backend(choice: ServiceChoice) -> str:
    if not choice.translated:
        return "the socket programs do not act in the pod's network namespace, so no backend is chosen"
    return "" if choice.backends else "the Service has no endpoint: a connection is refused at once"


def of_backends(path: Path, ends: dict[Address, End]) -> tuple[Path, ...]:
    """A path whose destination is a Service's address: one for each backend. Others stay as they are."""
    choice = path.choice
    if choice is None or path.service or path.ends or not choice.backends:
        return (path,)
    return tuple(
        _begun(
            path,
            destination=ends.get(address, End(name="", address=address)),
            port=port,
            source_port=path.source_port + index,
            service=socket(path.destination.address, path.port),
            stage="out",
        )
        for index, (address, port) in enumerate(choice.backends)
    )


def _begun(path: Path, **changes: object) -> Path:
    """The path with these changes, as far as it is followed at all: from a pod to somebody else."""
    path = msgspec.structs.replace(path, **changes)
    if not path.source.node:
        why = f"{path.source.address} is no pod's address: packets are followed from pods alone"
    elif path.source.address == path.destination.address:
        why = f"{path.source.name} speaks to itself: its packets stay on its own loopback"
    else:
        return path
    return path._ended(why, leaves=True)


def _dropped(one: PathHop) -> str:
    hop = one.hop
    why = WHY.get(hop.reason, hop.reason or "no program says why")
    packet = "the answer" if hop.is_reply else "it"
    said = next((judged for judged in hop.judgements if judged.reason == hop.reason), None)
    if said is None or not said.subject:
        return f"node {one.node} drops {packet}: {why} ({hop.reason})"
    by = f", {_by(said)}" if said.policies or said.rule >= 0 else ""
    return f"node {one.node} drops {packet} at the {said.direction} of {said.subject}: {why}{by} ({hop.reason})"


def _by(judged: Judgement) -> str:
    """The policies that decided, and the rule."""
    if not judged.policies:
        return "not isolated" if judged.reason == DropReason.FORWARDED.name else ""
    rule = f" rule {judged.rule}" if judged.rule >= 0 else " isolates it, and no rule allows the peer"
    return ", ".join(judged.policies) + rule


def names_of(paths: Iterable[Path]) -> frozenset[str]:
    """What the connection is about, as findings name it: its ends, their nodes, the pair of these."""
    names: set[str] = set()
    for path in paths:
        nodes = [end.node for end in (path.source, path.destination) if end.node]
        names |= {node_name(node) for node in nodes}
        if len(set(nodes)) == 2:
            names.add(pair_name(*nodes))
        for end in (path.source, path.destination):
            names |= {object_name("Pod", *end.name.split("/"))} if end.name else set()
    return frozenset(names)


def end_of(endpoint: Endpoint) -> End:
    """A pod's end."""
    return End(name=f"{endpoint.namespace}/{endpoint.pod}", address=endpoint.address, node=endpoint.node)


def named(name: str, ends: Iterable[End]) -> tuple[End, ...]:
    """Ends of this ``namespace/pod`` or address; an address that is no pod's is an end by itself."""
    if "/" in name:
        return tuple(sorted((one for one in ends if one.name == name), key=lambda one: one.address.version))
    address = ip_address(name)
    return (next((one for one in ends if one.address == address), End(name="", address=address)),)


def no_source(name: str, pod: Pod | None) -> Complaint:
    """Nothing can be followed from there."""
    if pod is not None and pod.host_network:
        said = (
            f"pod {name} is in the network of node {pod.node}: its packets are the node's own, which no policy judges"
        )
        return Usage(said, "name a pod with an address of its own: airmesh pods lists them")
    if pod is not None:
        return Declined(f"pod {name} has no address in the mesh yet", "see kubectl describe pod, and airmesh status")
    return Declined(f"there is no pod {name}", "airmesh pods lists those that there are")


def no_target(name: str, pod: Pod | None) -> Complaint:
    """Nothing can be followed to there."""
    if pod is not None and pod.host_network:
        said = f"pod {name} is in the network of node {pod.node}: it is reached by the node's address"
        return Usage(said, "name that address as the target (kubectl get node -o wide)")
    if pod is not None:
        return no_source(name, pod)
    return Declined(f"there is neither a pod nor a Service {name}", "airmesh pods lists pods; kubectl get svc Services")


def service_ends(service: Service, port: int, number: int) -> tuple[End, ...]:
    """Cluster IPs of a Service. Raises Usage when it has none, or not this port."""
    name = f"{service.namespace}/{service.name}"
    if not service.cluster_ips:
        raise Usage(f"Service {name} has no cluster IP: clients speak to its pods", "name one of its pods")
    ports = sorted({f"{one.port}/{protocol(one.protocol)}" for one in service.ports})
    if f"{port}/{protocol(number)}" not in ports:
        has = ", ".join(ports) or "none"
        raise Usage(f"Service {name} has no port {port}/{protocol(number)}", f"name one that it has: {has}")
    return tuple(End(name="", address=one) for one in service.cluster_ips)


def between(
    sources: Iterable[End], targets: Iterable[End], port: int, number: int, family: int = 0
) -> tuple[Path, ...]:
    """A path for each family that both have, from pods. Raises Usage when there is none."""
    pairs = [
        (one, other)
        for one in sources
        for other in targets
        if one.address.version == other.address.version and family in (0, one.address.version)
    ]
    if not pairs:
        which = f"IPv{family}" if family else "one family"
        raise Usage(f"the two ends have no address of {which}", "name ends that have, or leave --family out")
    return tuple(
        _begun(
            Path(
                source=one,
                destination=other,
                port=port,
                protocol=number,
                source_port=FIRST_PORT + index * MAX_BACKENDS,
            )
        )
        for index, (one, other) in enumerate(pairs)
    )


def result_of(node: str, answer: ProbeAnswer | None, index: int) -> ProbeResult:
    """What a node said of one of the probes that it was asked about."""
    if answer is None:
        return ProbeResult(refused=f"the dataplane agent of node {node} does not answer: see airmesh status")
    if index >= len(answer.results):
        return ProbeResult(refused=f"node {node} was asked about more than {MAX_PROBES} packets: choose a --family")
    return answer.results[index]


KINDS_OF_ENDS = ("Node", "Pair", "Pod", "Service")
"""Kinds of which a connection has its own: findings about others of these are not about it."""


def concerns(finding: Finding, names: frozenset[str]) -> bool:
    """Whether a finding may be about a connection that has these names: about one of them, or about no end at all."""
    about = {finding.about, *finding.affects}
    return bool(about & names) or finding.about.partition(" ")[0] not in KINDS_OF_ENDS


def tables(paths: Iterable[Path]) -> tuple[Table, ...]:
    """One for each path: its hops in their order, and how it ends."""
    return tuple(_table(path) for path in paths)


def _table(path: Path) -> Table:
    rows = tuple(_row(path))
    source = f"{path.source.name} {path.source.address}"
    target = f"{path.destination.name} {socket(path.destination.address, path.port)}".strip()
    note = "" if path.ends else "no packet was sent: the network between the nodes is not part of this"
    return Table(
        title=f"Path {source} → {target} {protocol(path.protocol)}",
        columns=("", "node", "looked at by", "said", "by"),
        rows=rows,
        note=note,
    )


def _row(path: Path) -> Iterator[tuple[str | Cell, ...]]:
    if path.choice is not None:
        what = f"{path.service or socket(path.destination.address, path.port)} is a Service's"
        kept = f", the same for {path.choice.affinity_seconds} s" if path.choice.affinity_seconds else ""
        chosen = f"one of {path.choice.count} backends by chance" if path.choice.count > 1 else "its only backend"
        said = f"{chosen}{kept}" if path.choice.count else "no backend"
        yield (
            "→",
            path.source.node,
            "socket",
            Cell(f"{what}: {said}", Tone.PLAIN if path.choice.count else Tone.BAD),
            "",
        )
    turned = False
    for one in path.hops:
        if one.hop.is_reply and not turned:
            turned = True
            yield from _listening(path)
        yield from _hop_rows(one)
    if path.ends:
        yield "", "", "", Cell(path.ends, Tone.DIM if path.leaves else Tone.BAD), ""
    elif path.stage == "done":
        yield "", "", "", good("answered: both packets arrive"), ""


def _listening(path: Path) -> Iterator[tuple[str | Cell, ...]]:
    found = path.listener
    if found is None:
        return
    queue = f", {found.waiting} of {found.bound} wait to be accepted" if found.bound else ""
    said = good(f"{found.process or 'a socket'} listens{queue}") if found.listens else bad("nothing listens")
    yield "→", path.destination.node, "socket", said, ""


def _hop_rows(one: PathHop) -> Iterator[tuple[str | Cell, ...]]:
    hop, arrow = one.hop, "←" if one.hop.is_reply else "→"
    for judged in hop.judgements:
        yield arrow, one.node, f"{hop.program} {judged.direction}", _judged(judged), _by(judged)
    if hop.outcome == "dropped" and not hop.judgements:
        yield arrow, one.node, hop.program, bad(f"dropped: {hop.reason or 'no reason told'}"), ""
    elif hop.outcome in _NEXT_HOPS:
        yield arrow, one.node, "route", _way(hop), dim("the node's stack" if hop.outcome == "stack" else "")


def _judged(judged: Judgement) -> Cell:
    peer = judged.peer or (identity(judged.peer_identity) if judged.peer_identity else "somebody unknown")
    of = f"{judged.subject}, peer {peer}"
    if judged.reason == DropReason.FORWARDED.name:
        return good(f"{of}: new flow, allowed")
    if judged.reason == DropReason.REPLY.name:
        return good(f"{of}: answer of a known flow")
    return bad(f"{of}: {WHY.get(judged.reason, 'dropped')} ({judged.reason})")


def _way(hop: ProbeHop) -> Cell:
    if not hop.device:
        return bad("no route")
    outer = f", outer {hop.outer_source} → {hop.outer_destination}" if hop.outer_destination else ""
    to = f" to {hop.next_hop}" if hop.next_hop else ""
    model = "" if hop.outcome == "stack" else f"{hop.model} "
    return Cell(f"{model}by {hop.device}{to}{outer}")
