"""`airmesh bgp`: the sessions of all nodes' BGP speakers; `airmesh bgp routes`: what one of them received, chose, sent.

An answer counts under the node whose key it came with, as with pairs (`cli.reports.pairs.by_node`). Texts of a peer's
operator are among the reasons of a session that is down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from itertools import islice

import msgspec

from cli.reports.table import Cell, Table, Tone, bad, dim, good
from cli.reports.text import ago, socket
from proto.bgp import (
    MAX_PATHS,
    MAX_SESSIONS,
    BgpFault,
    BgpPath,
    BgpRoutes,
    BgpSessions,
    PrefixCount,
    RoutesTable,
    SessionReport,
    SessionState,
    Standing,
)
from proto.net import Address, Network

PORT = 179
"""Of BGP (RFC 4271); another one is shown."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of one node (`proto.bgp.SessionReport`)."""

    node: str
    peer: str
    address: Address
    asn: int
    local_asn: int
    state: SessionState
    since: int = 0
    """Unix seconds; 0: never tried."""
    port: int = PORT
    local: Address | None = None
    interface: str = ""
    families: tuple[PrefixCount, ...] = ()
    hold_seconds: int = 0
    established: int = 0
    received_messages: int = 0
    sent_messages: int = 0
    why: str = ""
    remedy: str = ""


class NodeFault(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of one node and it cannot do."""

    node: str
    fault: str
    remedy: str


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh bgp`."""

    well: bool
    """All that is asked for is established, and every agent answered."""
    asked_at: int
    """Unix seconds of this machine."""
    sessions: tuple[Session, ...] = ()
    faults: tuple[NodeFault, ...] = ()
    without: tuple[str, ...] = ()
    """Nodes that nobody asks to speak BGP."""
    silent: tuple[str, ...] = ()
    """Nodes whose agents did not answer."""
    left_out: int = 0
    """Sessions that found no room in the answers."""
    leaving: tuple[str, ...] = ()
    """Nodes whose routes ask to be passed over (RFC 8326): they are cordoned, or about to be deleted."""


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh bgp routes`."""

    node: str
    table: RoutesTable
    prefix: Network | None = None
    """What was asked about; none: all."""
    paths: tuple[BgpPath, ...] = ()
    left_out: int = 0
    """Paths that found no room in the answer; of the table of chosen ones prefixes."""

    @property
    def well(self) -> bool:
        """What was asked about is used, received or sent."""
        counts = {"best", "used", "sent"} if self.table != "received" else {"best", "used", "unused"}
        return self.prefix is None or any(path.standing in counts for path in self.paths)


def prefix_named(text: str) -> Network | None:
    """A prefix, or an address as the prefix of it alone; None where it is neither."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def sessions(answers: Mapping[str, BgpSessions], nodes: Iterable[str], asked_at: int) -> Sessions:
    """What nodes answered; ``nodes``: those whose agents should."""
    found = tuple(
        _session(node, one) for node in sorted(answers) for one in islice(answers[node].sessions, MAX_SESSIONS)
    )
    faults = tuple(_fault(node, one) for node in sorted(answers) for one in islice(answers[node].faults, MAX_SESSIONS))
    silent = tuple(sorted(set(nodes) - answers.keys()))
    left_out = sum(answer.left_out for answer in answers.values())
    return Sessions(
        well=not faults and not silent and not left_out and all(one.state == "Established" for one in found),
        asked_at=asked_at,
        sessions=found,
        faults=faults,
        without=tuple(node for node in sorted(answers) if not answers[node].speaks),
        silent=silent,
        left_out=left_out,
        leaving=tuple(node for node in sorted(answers) if answers[node].leaving),
    )


def _session(node: str, reported: SessionReport) -> Session:
    fields = {name: getattr(reported, name) for name in reported.__struct_fields__}
    return Session(node=node, **fields)


def _fault(node: str, reported: BgpFault) -> NodeFault:
    return NodeFault(node=node, fault=reported.fault, remedy=reported.remedy)


def routes(answer: BgpRoutes, node: str, table: RoutesTable, prefix: Network | None) -> Routes:
    """What one node answered."""
    paths = tuple(islice(answer.paths, MAX_PATHS))
    return Routes(node=node, table=table, prefix=prefix, paths=paths, left_out=answer.left_out)


def session_tables(report: Sessions) -> tuple[Table, ...]:
    """Sessions; then why those are down that are, and what cannot be honoured."""
    rows = tuple(
        (
            Cell(one.node, Tone.STRONG),
            Cell(one.peer, Tone.STRONG),
            _address(one),
            str(one.asn),
            good(one.state) if one.state == "Established" else bad(one.state),
            f"{ago(max(0, report.asked_at - one.since))} ago" if one.since else dim("–"),
            _prefixes(one.families, "received"),
            _prefixes(one.families, "sent"),
        )
        for one in report.sessions
    )
    shown = [
        Table(
            title=f"BGP sessions ({len(rows)})",
            columns=("node", "peer", "address", "AS", "state", "since", "received", "sent"),
            rows=rows,
            note="; ".join(_notes(report)),
            empty=_without_sessions(report),
        )
    ]
    down = tuple(
        (Cell(one.node, Tone.STRONG), Cell(one.peer, Tone.STRONG), one.why or "not tried yet", one.remedy or dim("–"))
        for one in report.sessions
        if one.state != "Established"
    )
    if down:
        shown.append(Table(title="Not established", columns=("node", "peer", "why", "what to do"), rows=down))
    if report.faults:
        faults = tuple((Cell(one.node, Tone.STRONG), bad(one.fault), one.remedy) for one in report.faults)
        shown.append(Table(title="Not honoured", columns=("node", "fault", "what to do"), rows=faults))
    return tuple(shown)


def _without_sessions(report: Sessions) -> str:
    if len(report.without) > 0 and not report.silent and not report.left_out:
        return "no node is asked to speak BGP: make a BGPConfiguration named default, or a BGPPeer"
    return "none"


def _notes(report: Sessions) -> Iterable[str]:
    if report.silent:
        yield f"no routing agent answers for: {', '.join(report.silent)}"
    if report.without and report.sessions:
        yield f"not asked to speak BGP: {', '.join(report.without)}"
    if report.leaving:
        yield f"cordoned, so peers are asked to pass them over (GRACEFUL_SHUTDOWN): {', '.join(report.leaving)}"
    if report.left_out:
        yield f"{report.left_out} sessions found no room in their agents' answers: name a node with --node, or --down"


def _address(session: Session) -> str:
    address = socket(session.address, session.port if session.port != PORT else 0)
    return f"{address}%{session.interface}" if session.interface else address


def _prefixes(families: tuple[PrefixCount, ...], which: str) -> str | Cell:
    texts = [f"{getattr(one, which)} IPv{one.family}" for one in families]
    if which == "received":
        texts += [f"{one.stale} of IPv{one.family} stale" for one in families if one.stale]
    return ", ".join(texts) or dim("–")


_TONES: dict[Standing, Tone] = {
    "best": Tone.GOOD,
    "used": Tone.GOOD,
    "unused": Tone.PLAIN,
    "rejected": Tone.BAD,
    "sent": Tone.GOOD,
    "withheld": Tone.BAD,
}
_TITLES: dict[RoutesTable, str] = {"chosen": "Routes of", "received": "Received by", "sent": "Sent by"}


def route_tables(report: Routes) -> tuple[Table, ...]:
    """Paths, with what became of each and why."""
    of = "prefixes" if report.table == "chosen" else "paths"
    note = f"{report.left_out} more {of} found no room in the answer: name a prefix or a peer" * bool(report.left_out)
    return (
        Table(
            title=f"{_TITLES.get(report.table, report.table)} {report.node} ({len(report.paths)} paths)",
            columns=(
                "prefix",
                "to" if report.table == "sent" else "from",
                "standing",
                "next hop",
                "AS path",
                "attributes",
                "why",
            ),
            rows=tuple(
                (
                    Cell(str(path.prefix), Tone.STRONG),
                    path.peer or dim("this node"),
                    Cell(path.standing, _TONES.get(path.standing, Tone.PLAIN)),
                    str(path.next_hop) if path.next_hop is not None else dim("–"),
                    path.as_path or dim("–"),
                    ", ".join(_attributes(path)),
                    path.why,
                )
                for path in report.paths
            ),
            note=note,
            empty="none",
        ),
    )


def _attributes(path: BgpPath) -> Iterable[str]:
    if path.stale:
        yield "stale"
    if path.local_pref is not None:
        yield f"preference {path.local_pref}"
    if path.med is not None:
        yield f"MED {path.med}"
    if path.origin not in ("", "igp"):
        yield f"origin {path.origin}"
    if path.path_id:
        yield f"path {path.path_id}"
    yield from path.communities
