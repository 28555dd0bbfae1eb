"""Wires ``ipam``: views, endpoints, upkeep. Decides nothing."""

from __future__ import annotations

from chassis.bus.client import Bus
from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from chassis.runtime.service import Runtime
from proto.addresses import ACKNOWLEDGED_KEY, AcknowledgedEndpoints, Block, Claim
from proto.events import AddressMoved
from proto.requests import (
    BlockReportRequest,
    BlockRequest,
    ClaimRelease,
    ClaimRequest,
    IpamShow,
)
from proto.subjects import (
    ACKS,
    BLOCKS,
    CLAIMS,
    ENDPOINTS,
    IPAM_BLOCK,
    IPAM_CLAIM,
    IPAM_RELEASE,
    IPAM_REPORT,
    IPAM_SHOW,
    OBJECTS,
    OWNERS,
    event_subject,
)
from services.ipam.acknowledged import Acknowledged, Departures, published
from services.ipam.block_allocation import BlockAllocation
from services.ipam.claims import Claims
from services.ipam.reclaim import Reclaimer
from services.ipam.reports import Reports
from services.ipam.senders import Senders
from services.ipam.settings import Settings
from services.ipam.store import fence
from services.ipam.upkeep import Upkeep
from services.ipam.world import World

SWEEP_EVERY = 10.0
MOST_WITHHELD = 64
"""Kept addresses that have rested and wait for a live node that is behind in ``endpoints``."""
MOST_WITHHELD_BLOCKS = 16
"""Blocks of deleted Nodes that do."""


async def build(runtime: Runtime[Settings]) -> None:
    """Everything that one copy of the service is."""
    bus = runtime.bus
    world = World(bus)
    blocks, owners, claims = (bus.bucket(bucket) for bucket in (BLOCKS, OWNERS, CLAIMS))
    stores = (blocks, owners, claims)

    async def unchanged() -> None:
        await fence(stores, world.look().epochs)

    senders = Senders(runtime.log, bus.report_fault)
    allocation = BlockAllocation(blocks, world.look, unchanged, most=runtime.settings.node_addresses)
    address_claims = Claims(owners, claims, allocation, world.look, unchanged, lambda event: _moved(bus, event))
    reports = Reports(allocation, address_claims, world.look, runtime.log, senders.report_fault)

    def acknowledged_now() -> AcknowledgedEndpoints:
        return published(world.blocks.marks.get(ACKNOWLEDGED_KEY))

    of_claims: Departures[Claim] = Departures(MOST_WITHHELD, bus.bucket(ENDPOINTS), acknowledged_now)
    of_blocks: Departures[Block] = Departures(MOST_WITHHELD_BLOCKS, bus.bucket(ENDPOINTS), acknowledged_now)
    upkeep = Upkeep(
        stores, world.of_addresses, allocation, world.look, runtime.log, bus.report_fault, of_claims.known_to_all
    )
    await bus.serve_nodes(IPAM_BLOCK, BlockRequest, senders.checked(allocation.allocate))
    await bus.serve_nodes(IPAM_REPORT, BlockReportRequest, senders.checked(reports.report))
    await bus.serve_nodes(IPAM_CLAIM, ClaimRequest, senders.checked(address_claims.claim))
    await bus.serve_nodes(IPAM_RELEASE, ClaimRelease, senders.releasing(address_claims.release))
    await bus.serve(IPAM_SHOW, IpamShow, reports.show)
    read = (bus.bucket(OBJECTS), bus.bucket(ACKS), bus.bucket(ENDPOINTS))
    reclaimer = Reclaimer(
        blocks, read, world.look, lambda: world.objects.epoch, unchanged, of_blocks.known_to_all, runtime.log
    )
    acknowledged = Acknowledged(blocks, bus.bucket(ACKS), world.look, acknowledged_now)
    _keep_up(runtime, world, upkeep, reclaimer, acknowledged)


def _keep_up(
    runtime: Runtime[Settings], world: World, upkeep: Upkeep, reclaimer: Reclaimer, acknowledged: Acknowledged
) -> None:
    """Loops of the upkeep, and readiness: views in sync and the gate open."""
    settings = runtime.settings
    ready = runtime.health.require("addresses")

    async def lift_recovery_barrier(dirty: Dirty) -> Done | Again:
        outcome = await upkeep.lift_recovery_barrier(dirty)
        seen = world.look()
        ready.set(not seen.not_synced and seen.complete, seen.not_synced or "waiting for nodes' reports")
        return outcome

    async def sweep(_dirty: Dirty) -> Done:
        return await upkeep.sweep(settings.owner_grace, settings.address_cooldown)

    async def reclaim(_dirty: Dirty) -> Done:
        return await reclaimer.sweep(settings.node_grace, settings.address_cooldown)

    async def acknowledge(_dirty: Dirty) -> Done:
        return await acknowledged.publish()

    cursors = [view.cursor() for view in (*world.of_addresses, world.objects)]
    Loop(runtime, "recovery-barrier", cursors=cursors, apply=lift_recovery_barrier, period=5.0, debounce=0.05)
    Loop(runtime, "sweep", cursors=[], apply=sweep, period=SWEEP_EVERY)
    Loop(runtime, "reclaim", cursors=[], apply=reclaim, period=SWEEP_EVERY)
    Loop(runtime, "acknowledged", cursors=[], apply=acknowledge, period=settings.acknowledged_every)


def _moved(bus: Bus, event: AddressMoved) -> None:
    bus.publish(event_subject("ipam", "address-moved"), event)
