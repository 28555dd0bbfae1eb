"""What `policy` looks at when the mesh is asked what is wrong: its policies, name service by them, and nodes' kernels.

The graph is looked at between two compilations, policy by policy with a breath after each; nothing is kept. A question
about a policy or a pod that is not there is named as unchecked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from chassis.runtime.checks import NotChecked
from chassis.runtime.service import Runtime
from proto.findings import DoctorRequest, Finding
from proto.objects import Namespace, NetworkPolicy
from proto.policy import Ack
from services.policy.compile_loop import CompileLoop
from services.policy.core.doctor import examine, lag
from services.policy.core.explain import NotFound
from services.policy.core.graph import Graph
from services.policy.feed import Feed
from services.policy.settings import Settings

PATIENCE = 4.0
"""Seconds that nodes have to acknowledge: less than a check has in all."""
LOOK_EVERY = 0.1


def start(runtime: Runtime[Settings], graph: Graph, compile_loop: CompileLoop, feed: Feed) -> None:
    """Answer from now on."""
    doctor = Doctor(graph, compile_loop, feed, runtime.settings.policy_shards)
    runtime.checks.add(examine.CODES, doctor.policies)
    runtime.checks.add((lag.KERNEL_LAGS,), doctor.kernels)


class Doctor:
    """Two checks: ``policies`` and ``kernels``."""

    def __init__(self, graph: Graph, compile_loop: CompileLoop, feed: Feed, shards: int) -> None:
        self._graph = graph
        self._compile_loop = compile_loop
        self._feed = feed
        self._shards = shards

    async def policies(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Raises :class:`NotChecked` before everything was compiled once, and for what is not there."""
        if asked.kind not in examine.KINDS:
            return ()
        found: list[Finding] = []
        async with self._compile_loop.lock:
            if self._compile_loop.compiled_up_to is None:
                raise NotChecked("policies and pods are still being read; ask again")
            examination = examine.Examination(self._facts())
            if asked.kind == "policy" and examination.named(asked.name) is None:
                raise NotChecked(f"there is no NetworkPolicy {asked.name}: give namespace/name as kubectl lists it")
            try:
                for some in examination.examine(asked):
                    found += some
                    await asyncio.sleep(0)
            except NotFound as why:
                raise NotChecked(str(why)) from why
        return found

    async def kernels(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Nodes that do not acknowledge what is compiled; raises :class:`NotChecked`."""
        if asked.kind not in ("all", "node", "policy"):
            return ()
        if not self._feed.acks.synced:
            raise NotChecked(f"acknowledgements of nodes are not known: {self._feed.acks.why()}")
        published = self._feed.published_up_to(self._shards)
        if published is None:
            raise NotChecked("no policy is published yet: not every shard has a frontier")
        before = self._acks()
        waited = 0.0
        while lag.is_waited_for(published, self._acks()) and waited < PATIENCE:
            await asyncio.sleep(LOOK_EVERY)
            waited += LOOK_EVERY
        only = asked.name if asked.kind == "node" else ""
        return lag.check(published, before, self._acks(), seconds=waited, only=only)

    def _facts(self) -> examine.Facts:
        values = {key: entry.value for key, entry in self._feed.objects.entries.items()}
        return examine.Facts(
            graph=self._graph,
            policies={key: one for key, one in values.items() if isinstance(one, NetworkPolicy)},
            namespaces=tuple(one for one in values.values() if isinstance(one, Namespace)),
        )

    def _acks(self) -> Mapping[str, Ack]:
        found = (entry.value for entry in self._feed.acks.entries.values() if isinstance(entry.value, Ack))
        return {ack.node: ack for ack in found}
