"""The endpoints ``report`` (what a node holds) and ``show`` (what is held).

A report is judged block by block against records read afresh; the marker that the node has reported is written last, so
a report that was cut off counts for nothing and is sent again.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chassis.faults import Refused
from chassis.telemetry.log import Log
from proto.addresses import CONTESTED, Block, Claim
from proto.net import Network
from proto.objects import IPPool
from proto.requests import BlockReportAnswer, BlockReportRequest, IpamShow, IpamState
from services.ipam.block_allocation import BlockAllocation, Look
from services.ipam.claims import Claims
from services.ipam.core.blocks import held_by
from services.ipam.core.recovery import GiveUp, waiting_for
from services.ipam.core.seen import Seen

MAX_REPORTED = 4096
"""Blocks, and claims, that one report may name."""


MAX_UNPROVEN = 16
"""Claims of one report on addresses that the API shows at no pod of the node: each may cost ``ipam`` a block."""

ReportFault = Callable[[str, str], None]
"""Takes a node and what it says that is not so."""


class Reports:
    """The endpoints ``report`` and ``show``."""

    def __init__(
        self, allocation: BlockAllocation, address_claims: Claims, look: Look, log: Log, report_fault: ReportFault
    ) -> None:
        self._allocation = allocation
        self._address_claims = address_claims
        self._look = look
        self._log = log
        self._report_fault = report_fault

    async def report(self, request: BlockReportRequest) -> BlockReportAnswer:
        """Blocks the node may go on using. Raises Refused: ``not-synced``, ``malformed``."""
        seen = self._look()
        if seen.not_synced:
            raise Refused("not-synced", f"ipam is not in sync yet: {seen.not_synced}", retry=True)
        if max(len(request.blocks), len(request.claims)) > MAX_REPORTED:
            raise Refused("malformed", f"a report names at most {MAX_REPORTED} blocks and claims")
        if await self._allocation.epoch() != seen.epoch:
            # A marker of the old epoch would make everybody wait for ever: the node has spoken, and not for this one.
            raise Refused("not-synced", "blocks was made anew a moment ago", retry=True)
        judged: dict[Network, Block | GiveUp] = {}
        for block in request.blocks:
            judged[block.cidr] = outcome = await self._allocation.record(block, request.node, request.node_uid)
            if isinstance(outcome, GiveUp):
                self._log.warning("block-to-give-up", node=request.node, why=outcome.why)
                if outcome.lie:
                    why = f"node {request.node} reports block {block.cidr}, which it does not hold: {outcome.why}"
                    self._report_fault(request.node, why)
        unproven = 0
        for claim in request.claims:
            if not any(pod.node == request.node for pod in seen.evidence.pods_at(claim.address)):
                unproven += 1
            if unproven <= MAX_UNPROVEN:
                await self._record_claim(claim, request.node)
        if unproven > MAX_UNPROVEN:
            self._report_fault(
                request.node, f"node {request.node} reports {unproven} kept addresses that no pod of it has"
            )
        await self._allocation.reported(request.node, seen.epoch)
        known = {block.cidr: block for block in held_by(self._look().blocks.values(), request.node)}
        mine = {**known, **judged}
        return BlockReportAnswer(tuple(block for block in mine.values() if isinstance(block, Block)))

    async def _record_claim(self, claim: Claim, node: str) -> None:
        try:
            lie = await self._address_claims.record(claim, node)
            if lie:
                self._report_fault(node, f"node {node} reports {lie}: it is not recorded")
        except Refused as refused:
            if refused.retry:
                raise
            self._log.warning("claim-not-recorded", address=claim.address, node=claim.node, why=refused.message)

    async def show(self, request: IpamShow) -> IpamState:
        """For a person: what is held, and what is being waited for."""
        seen = self._look()
        state = IpamState(
            pools=_pools(seen),
            blocks=(),
            owners=(),
            claims=(),
            waiting_for=() if seen.complete else waiting_for(seen.nodes.values(), seen.reports, seen.epoch),
            problems=((seen.not_synced,) if seen.not_synced else ()) + seen.pools.problems + _contested(seen),
            verdicts=seen.pools.verdicts,
        )
        if request.summary:
            return state
        return msgspec.structs.replace(
            state,
            blocks=tuple(
                sorted(seen.blocks.values(), key=lambda block: (block.cidr.version, block.cidr.network_address))
            ),
            owners=tuple(seen.owners[key] for key in sorted(seen.owners, key=str)),
            claims=tuple(sorted(seen.claims.values(), key=lambda claim: (claim.address.version, int(claim.address)))),
        )


def _contested(seen: Seen) -> tuple[str, ...]:
    return tuple(
        f"block {block.cidr} is claimed by two nodes; write annotation airmesh.io/blocks on the Node whose it is"
        for block in held_by(seen.blocks.values(), CONTESTED)
    )


def _pools(seen: Seen) -> tuple[IPPool, ...]:
    return tuple(seen.ippools[name] for name in sorted(seen.ippools))
