"""`airmesh ipam show`: pools, the blocks that nodes hold, the addresses that owners keep.

The report is the message that `ipam` answers with (`proto.requests.IpamState`); it says itself what is wrong.
"""

from __future__ import annotations

from cli.reports import text
from cli.reports.table import Cell, Table, Tone, bad, dim, good
from kit.models import HOST_GW, wishes
from proto.addresses import IPAM_HOLDER, PoolVerdict
from proto.objects import IPPool
from proto.requests import IpamState


def tables(report: IpamState, *, blocks: bool, claims: bool) -> tuple[Table, ...]:
    """Pools always; blocks and claims when asked for (neither named: both in short); then what is wrong."""
    shown = [_pools(report)]
    if blocks or not claims:
        shown.append(_blocks(report))
    if claims or not blocks:
        shown.append(_claims(report))
    if report.waiting_for:
        shown.append(_waiting(report))
    if report.problems:
        rows = tuple((bad(problem),) for problem in report.problems)
        shown.append(Table(title="Problems", columns=("what",), rows=rows))
    return tuple(shown)


def _pools(report: IpamState) -> Table:
    verdicts = {verdict.pool: verdict for verdict in report.verdicts}
    ordered = sorted(report.pools, key=lambda pool: pool.name)
    rows = tuple(_pool(pool, report, verdicts.get(pool.name)) for pool in ordered)
    return Table(
        title="Pools",
        columns=("pool", "prefix", "blocks of", "blocks held", "of", "between nodes", "leaves the cluster", "state"),
        rows=rows,
        empty="no IPPool is known: no pod gets an address",
    )


def _state(pool: IPPool, verdict: PoolVerdict | None) -> Cell:
    """Whether it gives addresses; an `ipam` of an older release says nothing of a pool but what its object does."""
    if verdict is not None and verdict.refused:
        return bad(f"refused: {verdict.reason}")
    if pool.disabled:
        return dim("disabled")
    return dim("on request") if pool.assignment_mode == "Manual" else good("enabled")


def _pool(pool: IPPool, report: IpamState, verdict: PoolVerdict | None) -> tuple[str | Cell, ...]:
    held = sum(1 for block in report.blocks if block.pool == pool.name)
    return (
        Cell(pool.name, Tone.STRONG),
        str(pool.cidr),
        f"/{pool.block_size}",
        str(held),
        _possible(pool.block_size - pool.cidr.prefixlen),
        _between_nodes(pool),
        "with the node's address" if pool.nat_outgoing else "as it is",
        _state(pool, verdict),
    )


def _between_nodes(pool: IPPool) -> str:
    """What the pool asks for; what a pair of nodes takes is in `airmesh routes`."""
    wished = [f"{wish.model} {wish.mode}" for wish in wishes(pool)]
    return pool.model or ", ".join(wished) or HOST_GW.name


def _possible(bits: int) -> str:
    """How many blocks fit; none when a block is larger than the pool, which is refused for it."""
    if bits < 0:
        return "none"
    return str(1 << bits) if bits < 20 else f"2^{bits}"


def _blocks(report: IpamState) -> Table:
    ordered = sorted(report.blocks, key=lambda block: (block.cidr.version, block.cidr.network_address.packed))
    return Table(
        title=f"Blocks ({len(ordered)})",
        columns=("block", "pool", "held by", "epoch"),
        rows=tuple(
            (
                Cell(str(block.cidr), Tone.STRONG),
                block.pool,
                dim("ipam, for kept addresses") if block.node == IPAM_HOLDER else block.node,
                dim(str(block.epoch)),
            )
            for block in ordered
        ),
    )


def _claims(report: IpamState) -> Table:
    ordered = sorted(report.claims, key=lambda claim: (text.owner(claim.owner), claim.address.version))
    return Table(
        title=f"Kept addresses ({len(ordered)})",
        columns=("owner", "address", "held on", "epoch"),
        rows=tuple(
            (
                Cell(text.owner(claim.owner), Tone.STRONG),
                str(claim.address),
                claim.node or Cell("nobody, it waits for its owner", Tone.WARN),
                dim(str(claim.epoch)),
            )
            for claim in ordered
        ),
    )


def _waiting(report: IpamState) -> Table:
    return Table(
        title="Waiting",
        columns=("node",),
        rows=tuple((Cell(node, Tone.WARN),) for node in report.waiting_for),
        note="nothing is given away until these nodes have said which blocks they hold",
    )
