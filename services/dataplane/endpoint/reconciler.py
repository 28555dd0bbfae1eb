"""The endpoint reconciler: pods' links, routes, neighbours and programs in the kernel as they should be.

Owns the repair of drift and the removal of the flows of pods that are gone.
Promises: what somebody takes away by hand is back within a full pass (5 s); an endpoint whose link has vanished in two
passes one after the other is undone as a DEL would (its pod is gone and the runtime never said so); links nobody
answers for are reported, never removed: a pod may be behind them. Without its mark no link is touched. Pods' links
follow the MTU of the uplinks, less what the models of the pools add (``kit.models``), while their connections go on;
as long as the pools are not known they are never made larger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from chassis.runtime.reconcile import Dirty, Done
from chassis.runtime.service import Runtime
from chassis.telemetry.health import Condition
from kit.models import Model, models_of, pod_mtu
from kit.once import Once
from kit.tunnels import is_tunnel_name
from proto.objects import IPPool
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.cni.request import CniError
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.endpoint.links import GROUP_DELETING, KernelLinks, PodLink, host_name
from services.dataplane.core.endpoint.plan import Repairs, Standing, repairs
from services.dataplane.endpoint.kernel import EndpointKernel
from services.dataplane.endpoint.reaper import Reaper
from services.dataplane.endpoint.registry import Registry
from services.dataplane.feed import Feed
from services.dataplane.policy.enforce import Enforcer
from services.dataplane.settings import Settings


class Reconciler:
    """Repairs one node's kernel state."""

    def __init__(
        self,
        runtime: Runtime[Settings],
        kernel: EndpointKernel,
        condition: Condition,
        *,
        registry: Registry,
        enforcer: Enforcer,
        collector: FlowCollector,
        reaper: Reaper,
        undo: Callable[[Attachment], Awaitable[None]],
    ) -> None:
        """``condition``: programs hang where they should. ``undo`` does what a DEL would."""
        self._settings = runtime.settings
        self._bus = runtime.bus
        self._log = runtime.log
        self._kernel = kernel
        self._condition = condition
        self._registry = registry
        self._enforcer = enforcer
        self._collector = collector
        self._reaper = reaper
        self._undo = undo
        self._missing: frozenset[Attachment] = frozenset()
        self._begun: frozenset[tuple[int, str]] = frozenset()
        """Links by index that nobody finishes, each with what its removal is called in the log."""
        self._unsized: tuple[str, ...] = ()
        """Links whose MTU should change and cannot."""
        self._once: Once[str] = Once()
        self.restored = False
        """Whether the maps have been given what this node knows of its endpoints."""

    async def repair(self, _dirty: Dirty) -> Done:
        """One full pass over links and programs."""
        busy = self._registry.busy
        kernel: KernelLinks = await self._kernel.thread.run(self._kernel.links.snapshot)
        up = self._registry.up
        self._kernel.mtu = mtu = self._mtu(kernel)
        standing = [
            Standing(attachment=one.attachment, index=one.index, addresses=one.addresses, mtu=mtu)
            for one in up.values()
        ]
        found = repairs(standing, busy | self._registry.busy, kernel)
        await self._mend(found, up)
        await self._sweep_gone(found)
        self._report_orphans(found)
        await self._sweep_begun(kernel, found)
        if any(link.group == GROUP_DELETING for link in kernel.links):
            self._reaper.retire_left()
        await self._programs(kernel)
        try:
            changed = self._enforcer.restore(self._registry.up.values())
        finally:
            self.restored = True  # what found no room finds none by waiting
        await self._sweep_budgets()
        if found.drift or changed:
            self._log.info("drift-repaired", routes=len(found.routes), links=len(found.down), entries=changed)
        return Done()

    async def _mend(self, found: Repairs, up: Mapping[Attachment, LocalEndpoint]) -> None:
        links, thread = self._kernel.links, self._kernel.thread
        for attachment in found.down:
            one = up[attachment]
            wanted = PodLink(
                attachment=attachment, uid=one.first.pod_uid, addresses=one.addresses, mtu=self._kernel.mtu
            )
            await thread.run(partial(links.bring_up, one.index, wanted))
        if found.routes or found.neighbours:
            await thread.run(lambda: links.repair(list(found.routes), list(found.neighbours)))
        if found.stale_routes:
            await thread.run(lambda: links.remove_routes(list(found.stale_routes)))
        if found.sizes:
            left = await thread.run(lambda: links.resize(found.sizes))
            if len(left) < len(found.sizes) or left != self._unsized:
                mtu = self._kernel.mtu
                self._log.info("mtu-changed", links=len(found.sizes) - len(left), mtu=mtu, left=left)
            self._unsized = left

    def _mtu(self, kernel: KernelLinks) -> int:
        """The MTU of pods' links; as it was while this node has none of its uplinks."""
        uplinks = uplink_mtus(kernel, self._settings.uplinks)
        if not uplinks:
            return self._kernel.mtu
        models = self._kernel.models()
        mtu = pod_mtu(uplinks, models or (), self._kernel.sizes())
        if models is not None:
            return mtu
        return min(mtu, *(link.mtu for link, _ in kernel.ours().values()), self._kernel.mtu)

    async def _sweep_gone(self, found: Repairs) -> None:
        """Two-phase: what is missing in two passes one after the other is gone."""
        missing = frozenset(found.gone)
        for attachment in missing & self._missing:
            self._log.warning("link-vanished", container=attachment.container)
            try:
                await self._undo(attachment)
            except CniError as error:
                self._log.error("undo-failed", container=attachment.container, error=error.message)
        self._missing = missing - self._missing

    async def _sweep_budgets(self) -> None:
        """Flows and budgets of endpoints that nobody has: their pods went while no agent was there."""
        if stale := self._enforcer.stale_budgets(self._registry.up.values()):
            self._log.info("flows-of-the-dead-removed", endpoints=sorted(stale))
            await asyncio.to_thread(self._collector.forget_endpoints, stale)

    def _report_orphans(self, found: Repairs) -> None:
        names = {link.alias: link.name for link in found.orphans if link.up}
        for alias in self._once.take(names, time.monotonic()):
            self._log.error("orphan-link", link=names[alias], alias=alias)
            self._bus.report_fault(
                f"link {names[alias]} ({alias}) has no entry in the address journal",
                "delete the pod behind it; restore the journal if it was removed",
            )

    async def _sweep_begun(self, kernel: KernelLinks, found: Repairs) -> None:
        """Links whose maker died before it marked them, or before their addresses were on disk; two-phase, since one
        may be in the making. Those that were up once have routes, and are adopted at the start.
        """
        begun = {(link.index, "unmarked-link-removed") for link in kernel.unmarked()}
        begun |= {(link.index, "unrecorded-link-removed") for link in found.orphans if not link.up}
        for index, event in sorted(begun & self._begun):
            self._log.warning(event, ifindex=index)
            await self._kernel.thread.run(partial(self._kernel.links.remove, index))
        self._begun = frozenset(begun)

    async def _programs(self, kernel: KernelLinks) -> None:
        """Programs hang where they should: endpoints, uplinks, sockets."""
        datapath, settings = self._kernel.datapath, self._settings
        held = datapath.links()
        indices = {link.name: link.index for link in kernel.links}
        uplinks = {indices[uplink]: uplink for uplink in settings.uplinks if uplink in indices}
        datapath.keep_uplinks(uplinks, indices["lo"])
        for one in self._registry.up.values():
            state = held.get(host_name(one.attachment))
            if (state is None or state.ifindex != one.index) and one.attachment not in self._registry.busy:
                datapath.attach_endpoint(one.index, host_name(one.attachment))
        absent = [uplink for uplink in settings.uplinks if uplink not in indices]
        try:
            for index, uplink in uplinks.items():
                datapath.attach_uplink(index, uplink)
            datapath.attach_sockets(settings.cgroup)
        except OSError as error:
            self._condition.set(False, str(error))
            raise
        names = {host_name(one) for one in (*self._registry.up, *self._registry.busy)}
        stale = [name for name in held if name.startswith("am") and len(name) == 12 and name not in names]
        for name in stale:
            if name not in indices:
                datapath.detach(name)
        why = f"uplink {', '.join(absent)} does not exist; set AIRMESH_UPLINKS to interfaces of this node"
        self._condition.set(not absent, why)


def models_of_pools(feed: Feed) -> tuple[Model, ...] | None:
    """The models that pods' packets may take; None while the pools are not known."""
    if not feed.complete(IPPool):
        return None
    return models_of(feed.all_of(IPPool), encrypted=feed.model_settings().encrypted)


def uplink_mtus(kernel: KernelLinks, uplinks: tuple[str, ...]) -> list[int]:
    """MTUs of the uplinks that exist. A tunnel device is none: its MTU is smaller already."""
    links = (link for link in kernel.links if link.name in uplinks and not is_tunnel_name(link.name))
    return [link.mtu for link in links if link.mtu]
