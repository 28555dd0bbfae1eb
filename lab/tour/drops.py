"""Flow events of drops compared with the policy's verdicts and with the connections that were tried.

Pure. A flow event is lossy by design: where the datapath tells that events were left out, a denied connection without
one is no disagreement. A drop where policy allows everything always is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from lab.tour.probes import Address, Cell, Outcome, cell_of, cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A flow event of the observer (`airmesh flows --output json`), as far as the tour reads it."""

    source: Address
    destination: Address
    protocol: str
    port: int
    reason: str
    direction: str
    policies: tuple[str, ...]
    rule: int
    revision: str
    missed: int


_PROTOCOLS = {6: "tcp", 17: "udp"}


def parse_drop(event: Mapping[str, Any]) -> Drop:
    """A flow event of JSON."""
    return Drop(
        source=ip_address(event["source"]),
        destination=ip_address(event["destination"]),
        protocol=_PROTOCOLS.get(event["protocol"], str(event["protocol"])),
        port=event["destination_port"],
        reason=event["reason"],
        direction=event["direction"],
        policies=tuple(event["policies"]),
        rule=event["rule"],
        revision=event["revision"],
        missed=event["missed"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRow:
    """Drops of one cell for one reason."""

    cell: Cell
    reason: str
    direction: str
    policies: tuple[str, ...]
    rule: int
    revisions: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drops:
    """All drops against all outcomes. `unnamed`: denied cells no drop was told of although none was left out."""

    rows: tuple[DropRow, ...]
    unnamed: tuple[Cell, ...]
    unexpected: tuple[DropRow, ...]
    """Drops in cells where policy allows everything."""
    misnamed: tuple[DropRow, ...]
    """Drops that name a policy which policy itself does not name for that cell."""
    missed: int
    """Events that were not sent, by the datapath's own count."""

    @property
    def contradictions(self) -> tuple[str, ...]:
        """What does not agree with the other two witnesses, a sentence each."""
        return (
            *(f"a drop of {text(cell)} is told nowhere, or without a policy" for cell in self.unnamed),
            *(f"{text(row.cell)} is allowed, yet {row.reason} was told" for row in self.unexpected),
            *(f"a drop of {text(row.cell)} names {', '.join(row.policies)}; policy does not" for row in self.misnamed),
        )


def text(cell: Cell) -> str:
    """`shop/web → prod/db:5432`."""
    source, target, port = cell
    return f"{source} → {target}:{port}"


def drops(events: Iterable[Drop], outcomes: Sequence[Outcome]) -> Drops:
    """Drops by cell, and where they and the matrix do not tell the same story. Others' traffic is left out."""
    by_ends = {
        (own, outcome.probe.address, outcome.probe.port.protocol, outcome.probe.port.number): cell_of(outcome.probe)
        for outcome in outcomes
        for own in outcome.probe.source.addresses
        if own.version == outcome.probe.address.version
    }
    grouped: dict[tuple[Cell, str, str, tuple[str, ...], int], list[Drop]] = {}
    missed = 0
    for event in events:
        missed += event.missed
        cell = by_ends.get((event.source, event.destination, event.protocol, event.port))
        if cell is not None:
            grouped.setdefault((cell, event.reason, event.direction, event.policies, event.rule), []).append(event)
    rows = tuple(
        DropRow(
            cell=cell,
            reason=reason,
            direction=direction,
            policies=policies,
            rule=rule,
            revisions=tuple(sorted({one.revision for one in group})),
            count=len(group),
        )
        for (cell, reason, direction, policies, rule), group in sorted(grouped.items(), key=lambda item: item[0])
    )
    denied = {cell for cell, state in cells(outcomes).items() if state.denied}
    named = {row.cell for row in rows if row.policies}
    reasons: dict[Cell, str] = {}
    for outcome in outcomes:
        reasons[cell_of(outcome.probe)] = reasons.get(cell_of(outcome.probe), "") + outcome.reasons
    return Drops(
        rows=rows,
        unnamed=() if missed else tuple(sorted(denied - named)),
        unexpected=tuple(row for row in rows if row.cell not in denied),
        misnamed=tuple(row for row in rows if any(name not in reasons[row.cell] for name in row.policies)),
        missed=missed,
    )
