"""The tour's tables: what was seen, as a person enjoys reading it. Disagreements are red and say both sides.

Owns the looks alone; whether things agree is decided in `probes`, `services`, `drops`, `ways` and
`multipath`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.tour.drops import DropRow, Drops
from lab.tour.multipath import CHI_SQUARE, Neighbor, Spread, Stage
from lab.tour.probes import Cell, CellState, Move
from lab.tour.services import Answered
from lab.tour.ways import SHOWN, Way

_SHOWN_DISAGREEMENTS = 12
DOMAIN_SHOWN = ".svc.cluster.local"
"""Left out of names in tables; the connections use them whole."""


def heading(page: Console, text: str, note: str = "") -> None:
    """A title with a line of explanation."""
    page.print()
    page.print(f"[bold cyan]{escape(text)}[/]" + (f"  [dim]{escape(note)}[/]" if note else ""))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _short(workload: str) -> str:
    return workload.rpartition("/")[2]


def matrix(page: Console, cells: Mapping[Cell, CellState]) -> None:
    """Rows: who connects. Columns: to whom, on which port. A cell: the verdict, and connections made of those tried."""
    heading(
        page, "Who reaches whom", "policy's verdict, then connections made / tried from inside the pods, both families"
    )
    sources = sorted({source for source, _, _ in cells})
    columns = sorted({(target, port) for _, target, port in cells})
    table = _table("from \\ to", *(f"{_short(target)}\n:{port}" for target, port in columns))
    for source in sources:
        row = [escape(source)]
        for target, port in columns:
            state = cells.get((source, target, port))
            row.append(_state(state) if state else "[dim]–[/]")
        table.add_row(*row)
    page.print(table)
    wrong = [outcome for state in cells.values() for outcome in state.wrong]
    for outcome in wrong[:_SHOWN_DISAGREEMENTS]:
        says = "allows" if outcome.allowed else "denies"
        did = "connected" if outcome.connected else outcome.error
        probe = outcome.probe
        ends = f"{probe.source.full_name} → {probe.target.full_name} ({probe.url})"
        page.print(f"  [bold red]policy {says}, connection: {escape(did)}[/]  {escape(ends)}")
    if len(wrong) > _SHOWN_DISAGREEMENTS:
        page.print(f"  [bold red]… and {len(wrong) - _SHOWN_DISAGREEMENTS} more[/]")


def _state(state: CellState) -> str:
    count = f"{state.connected}/{state.total}"
    if state.wrong:
        return f"[bold red]! {'allow' if not state.denied else 'deny' if not state.allowed else 'mixed'} {count}[/]"
    if state.allowed and state.denied:
        return f"[yellow]part {count}[/]"
    return f"[green]✓ {count}[/]" if state.allowed else f"[dim]✗ {count}[/]"


def services(page: Console, seen: Sequence[Answered]) -> None:
    """One row a way to a Service."""
    heading(page, "Services", "by name through CoreDNS and by cluster IP; also from someone whom policy stops")
    table = _table("service", "by", "address", "from", "answers", "answered by", "mean", "")
    for one in seen:
        check = one.check
        udp = "/udp" if check.port.protocol == "udp" else ""
        table.add_row(
            escape(check.service.full_name) + (" [dim]sticky[/]" if check.service.sticky else ""),
            escape(check.way),
            escape(f"{check.host.removesuffix(DOMAIN_SHOWN)}:{check.port.number}{udp}"),
            escape(_brief(check.client.name, check.client.workload)),
            f"{one.connected}/{one.tried}",
            _who(one),
            f"{one.milliseconds:.1f} ms" if one.connected else "[dim]–[/]",
            _verdict(one),
        )
    page.print(table)


def _brief(name: str, workload: str) -> str:
    """`api-…24jgz` for a Deployment's pod, a StatefulSet's in full."""
    first, _, last = name.rpartition("-")
    return name if first == _short(workload) else f"{_short(workload)}-…{last}"


def _who(one: Answered) -> str:
    if not one.pods:
        return f"[dim]{escape(', '.join(one.errors))}[/]"
    by_name = {pod.name: pod.workload for pod in one.check.service.backends}
    if len(one.pods) == 1:
        return escape(_brief(one.pods[0], by_name.get(one.pods[0], "/")))
    return f"{len(one.pods)} of {len(by_name)} pods"


def _verdict(one: Answered) -> str:
    if not one.agrees:
        said = ", ".join("name not resolved" if error == "name" else error for error in one.errors) or "by others' pods"
        return f"[bold red]should be {'reached' if one.check.allowed else 'denied'}: {escape(said)}[/]"
    return "[green]✓[/]" if one.check.allowed else "[green]✓[/] [dim]denied, as it should be[/]"


def ways(page: Console, seen: Sequence[Way]) -> None:
    """One row a pair of nodes and family: the kernel's route, and what packets between pods were in on the wire."""
    heading(page, "How packets travel between nodes", "the kernel's route, then what a capture on the fabric has seen")
    table = _table("from", "to", "family", "model", "route", "packets on the wire", "")
    for one in seen:
        packets = ", ".join(f"{count} {SHOWN[tunnel]}" for tunnel, count in sorted(one.packets.items()) if count)
        table.add_row(
            one.source,
            one.destination,
            f"IPv{one.family}",
            one.model,
            escape(one.route),
            packets or "[dim]none[/]",
            _agreed(one.disagreement),
        )
    page.print(table)


def neighbors(page: Console, seen: Sequence[Neighbor]) -> None:
    """One row a node, one column a switch: families that a session runs over."""
    heading(page, "BGP sessions", "each node with each switch, by the switch's word, and what it is established over")
    names = list(dict.fromkeys(one.switch for one in seen))
    table = _table("node", *names)
    for node in dict.fromkeys(one.node for one in seen):
        over = {one.switch: one.over for one in seen if one.node == node}
        found = (
            f"[green]✓[/] {', '.join(over[name])}" if over[name] else "[bold red]not established[/]" for name in names
        )
        table.add_row(node, *found)
    page.print(table)


def spreads(page: Console, seen: Sequence[Spread], names: Sequence[str]) -> None:
    """One row a pair of nodes and family: new connections by switch."""
    heading(page, "Connections over both switches", "new ones, by the switch that the sending node's packets came to")
    table = _table("from", "to", "family", "connected", *(f"by {name}" for name in names), "chi-square", "")
    for one in seen:
        table.add_row(
            one.source,
            one.destination,
            f"IPv{one.family}",
            f"{one.connected}/{one.tried}",
            *(str(one.counts[name]) for name in names),
            f"{one.chi_square:.1f} [dim]of {CHI_SQUARE}[/]",
            _agreed(one.disagreement),
        )
    page.print(table)


def stages(page: Console, seen: Sequence[Stage], names: Sequence[str]) -> None:
    """One row a thing that happened to a switch: what held connections did."""
    heading(page, "A switch is out", "TCP connections that echo all the time; where their packets go afterwards")
    table = _table(
        "what happened", "held", "lost", *(f"by {name}" for name in names), "longest wait", "all go on after", ""
    )
    for one in seen:
        table.add_row(
            escape(one.what),
            str(one.flows),
            str(len(one.broken)),
            *(str(one.seen.get(name, 0)) for name in names),
            f"{one.longest_ms:.0f} ms",
            f"{one.seconds:.1f} s" if one.seconds >= 0 else "[bold red]never[/]",
            _agreed(one.disagreement),
        )
    page.print(table)


def _agreed(disagreement: str) -> str:
    return f"[bold red]{escape(disagreement)}[/]" if disagreement else "[green]✓[/]"


def move(page: Console, seen: Move) -> None:
    """The moved pod, before and after."""
    heading(page, "A StatefulSet's pod moves", "node cordoned, pod deleted, a peer's beat every 5 ms runs through it")
    before, after = seen.before, seen.after
    table = _table("pod", "node", "addresses", "Ready again after", "longest silence", "")
    gaps = ", ".join(f"{family} {gap:.0f} ms" for family, gap in seen.gaps_ms) or "[bold red]never heard again[/]"
    kept = "[green]✓ addresses kept[/]" if set(before.addresses) == set(after.addresses) else "[bold red]changed[/]"
    table.add_row(
        escape(before.full_name),
        escape(f"{before.node} → {after.node}") + ("" if before.node != after.node else " [bold red]did not move[/]"),
        escape(", ".join(map(str, after.addresses))),
        f"{seen.seconds:.1f} s",
        gaps,
        kept if kept.startswith("[green]") else f"{kept} [dim]from {escape(', '.join(map(str, before.addresses)))}[/]",
    )
    page.print(table)


def drops(page: Console, seen: Drops) -> None:
    """Who stopped whom, by which policies; and where that contradicts the matrix."""
    heading(page, "What was dropped, and by what", "told by the datapath of each node while the connections were tried")
    table = _table("where", "who", "at ports", "reason", "policies", "rules of revision", "packets")
    for group in _alike(seen.rows):
        table.add_row(*_drop(group))
    page.print(table if seen.rows else "  [bold red]no drop was told[/]")
    if seen.missed:
        page.print(f"  [yellow]{seen.missed} more were counted but not told: flows are rate-limited[/]")
    for line in seen.contradictions:
        page.print(f"  [bold red]{escape(line)}[/]")


def _alike(rows: Sequence[DropRow]) -> list[list[DropRow]]:
    """Rows of the same subject that differ in nothing but the other end."""
    groups: dict[tuple[object, ...], list[DropRow]] = {}
    for row in rows:
        source, target, _ = row.cell
        subject = source if row.direction == "egress" else target
        groups.setdefault((row.direction, subject, row.reason, row.policies, row.rule, row.revisions), []).append(row)
    return list(groups.values())


def _drop(group: Sequence[DropRow]) -> tuple[str, ...]:
    row = group[0]
    out = row.direction == "egress"
    revisions = ", ".join(revision.rpartition(":")[2] for revision in row.revisions)
    others = sorted({one.cell[1] if out else one.cell[0] for one in group})
    ports = sorted({one.cell[2] for one in group})
    return (
        f"on its way out of {escape(row.cell[0])}" if out else f"on its way into {escape(row.cell[1])}",
        escape(("to " if out else "from ") + ", ".join(others)),
        ", ".join(map(str, ports)),
        row.reason,
        escape(", ".join(row.policies)) or "–",
        (f"rule {row.rule} at " if row.rule >= 0 else "") + revisions,
        str(sum(one.count for one in group)),
    )


def summary(page: Console, wrong: Sequence[str], connections: int, seconds: float) -> None:
    """The last lines: everything agrees, or what does not."""
    page.print()
    if not wrong:
        page.print(f"[bold green]Everything agrees[/] ({connections} connections, {seconds:.0f} s)")
    for line in wrong:
        page.print(f"[bold red]disagrees:[/] {escape(line)}")
