"""`airmesh flows`: packets dropped or let through, as they happen, each with what decided it.

A flow event is lossy by design; `missed` says how many of the same reason were not sent. A program gets the published
event itself (`proto.flow.FlowEvent`), one JSON object a line; this module is how a person sees it, and which to show.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cli.faults import Usage
from cli.reports import text
from cli.reports.table import Cell, Tone, dim
from proto.flow import FlowEvent
from proto.net import Address


def wanted(event: FlowEvent, pod: str) -> bool:
    """Whether ``pod`` (`namespace/name`, empty = any) is an end of the flow."""
    return pod in ("", event.source_name, event.destination_name)


def check_pod(pod: str) -> str:
    """`namespace/name` back; raises :class:`Usage`."""
    namespace, slash, name = pod.partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise Usage(f"--pod {pod!r} is not a pod", "write it as NAMESPACE/NAME")
    return pod


def line(event: FlowEvent) -> tuple[Cell, ...]:
    """Time, verdict, ends, reason and what decided."""
    let_through = event.reason in ("FORWARDED", "REPLY")
    when = datetime.fromtimestamp(event.time_ns / 1e9, tz=UTC)
    return (
        dim(when.strftime("%H:%M:%S.%f")[:-3]),
        Cell("passed", Tone.GOOD) if let_through else Cell("dropped", Tone.BAD),
        Cell(f"{event.direction:7}", Tone.DIM),
        Cell(_end(event.source_name, event.source_identity, event.source, 0)),
        dim("→"),
        Cell(_end(event.destination_name, event.destination_identity, event.destination, event.destination_port)),
        Cell(text.protocol(event.protocol)),
        Cell(why(event), Tone.PLAIN if let_through else Tone.WARN),
        dim(f"on {event.node}" + (f", {event.missed} more not sent" if event.missed else "")),
    )


def _end(name: str, identity: int, address: Address, port: int) -> str:
    shown = name or text.identity(identity)
    return f"{shown} ({text.socket(address, port)})"


def why(event: FlowEvent) -> str:
    """`POLICY_DENIED by prod/default-deny, prod/db-from-api at 417`, `SPOOFED_ADDRESS by way of eth1`."""
    decided = f" by {', '.join(event.policies)}" if event.policies else ""
    rule = f" rule {event.rule}" if event.rule >= 0 else ""
    revision = f" at {event.revision.rpartition(':')[2]}" if event.revision else ""
    way = f" by way of {event.interface}" if event.interface else ""
    return f"{event.reason}{decided}{rule}{revision}{way}"
