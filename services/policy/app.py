"""Wiring of ``policy``: mirrors, graph, leases, the loop, checks, the endpoints, in this order."""

from __future__ import annotations

from chassis.runtime.election import Election
from chassis.runtime.reconcile import Loop
from chassis.runtime.service import Runtime
from proto.requests import ExplainMany, ExplainRequest
from proto.subjects import POLICY_EXPLAIN, POLICY_MATRIX
from services.policy.api import Api
from services.policy.compile_loop import CompileLoop
from services.policy.core.graph import Graph
from services.policy.core.limits import Limits
from services.policy.doctor import start as start_doctor
from services.policy.feed import Feed
from services.policy.settings import Settings
from services.policy.shards import Shards


async def build(runtime: Runtime[Settings]) -> None:
    """Make the service; returns at once, whether or not the bus can be reached."""
    settings = runtime.settings
    limits = Limits(
        identities=settings.policy_namespace_identities,
        record_bytes=settings.policy_namespace_bytes,
        policy_prefixes=settings.policy_max_policy_prefixes,
        namespace_prefixes=settings.policy_max_namespace_prefixes,
        prefixes=settings.policy_max_prefixes,
    )
    graph = Graph(limits)
    feed = Feed(runtime.bus)
    leases = [
        Election(runtime, f"policy.{shard}", settings.policy_lease_seconds) for shard in range(settings.policy_shards)
    ]
    compile_loop = CompileLoop(runtime, feed, graph, Shards(runtime, feed, graph, leases), limits)
    cursors = [view.cursor() for view in (feed.objects, feed.rules, feed.identities)]
    loop = Loop(runtime, "policy", cursors=cursors, apply=compile_loop.apply)
    for shard, lease in enumerate(leases):
        runtime.spawn(f"shard {shard}", _follow(lease, loop))
    start_doctor(runtime, graph, compile_loop, feed)
    api = Api(graph, compile_loop)
    await runtime.bus.serve(POLICY_EXPLAIN, ExplainRequest, api.explain)
    await runtime.bus.serve(POLICY_MATRIX, ExplainMany, api.matrix)


async def _follow(lease: Election, loop: Loop) -> None:
    """A shard that became ours has to be published."""
    while True:
        await lease.changed()
        loop.poke()
