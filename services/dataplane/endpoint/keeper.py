"""Keeps what should be in the kernel in the kernel: links, routes, neighbours, programs, masquerade.

Owns the repair of drift, the removal of retired links with their flows, and of the flows of pods that are gone.
Promises: what somebody takes away by hand is back within a full pass (5 s); an endpoint whose link has vanished in two
passes one after the other is undone as a DEL would (its pod is gone and the runtime never said so); links nobody
answers for are reported, never removed: a pod may be behind them. Without its mark no link is touched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from chassis.health import Condition
from chassis.reconcile import Again, Dirty, Done
from kit.once import Once
from proto.objects import IPPool, Node
from services.dataplane.core.cni.request import Attachment, CniError
from services.dataplane.core.egress.masquerade import ruleset
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.endpoint.links import GROUP_DOOMED, KernelLinks, PodLink, host_name
from services.dataplane.core.endpoint.plan import Repairs, Standing, repairs
from services.dataplane.egress.masquerade import Masquerade
from services.dataplane.endpoint.attach import Attacher
from services.dataplane.parts import Parts

REAP_EVERY = 0.25


class Keeper:
    """Repairs one node's kernel state."""

    def __init__(self, parts: Parts, condition: Condition, outward: Condition, attacher: Attacher) -> None:
        self._parts = parts
        self._condition = condition
        self._outward = outward
        self._undo = attacher.delete
        self._mtu = attacher.mtu
        self._retired = attacher.retired
        self._masquerade = Masquerade()
        self._missing: frozenset[Attachment] = frozenset()
        self._unmarked: frozenset[int] = frozenset()
        self._once: Once[str] = Once()
        self.restored = False
        """Whether the maps have been given what this node knows of its endpoints."""

    async def repair(self, _dirty: Dirty) -> Done | Again:
        """One full pass over links and programs."""
        busy = self._parts.registry.busy
        kernel: KernelLinks = await self._parts.thread.run(self._parts.links.snapshot)
        up = self._parts.registry.up
        standing = [
            Standing(attachment=one.attachment, index=one.index, addresses=one.addresses) for one in up.values()
        ]
        found = repairs(standing, busy | self._parts.registry.busy, kernel)
        await self._mend(found, up)
        await self._sweep_gone(found)
        self._report_orphans(found)
        await self._sweep_unmarked(kernel)
        if any(link.group == GROUP_DOOMED for link in kernel.links) and not self._retired:
            self._retired.append(0)  # left by an agent that died before it reaped
        await self._programs(kernel)
        try:
            changed = self._parts.enforcer.restore(self._parts.registry.up.values())
        finally:
            self.restored = True  # what found no room finds none by waiting
        await self._sweep_budgets()
        if found.drift or changed:
            self._parts.log.info("drift-repaired", routes=len(found.routes), links=len(found.down), entries=changed)
        return Done()

    async def _mend(self, found: Repairs, up: Mapping[Attachment, LocalEndpoint]) -> None:
        links, thread = self._parts.links, self._parts.thread
        for attachment in found.down:
            one = up[attachment]
            wanted = PodLink(attachment=attachment, uid=one.first.pod_uid, addresses=one.addresses, mtu=self._mtu)
            await thread.run(lambda one=one, wanted=wanted: links.bring_up(one.index, wanted))  # type: ignore[misc]
        if found.routes or found.neighbours:
            await thread.run(lambda: links.repair(list(found.routes), list(found.neighbours)))
        if found.stale_routes:
            await thread.run(lambda: links.remove_routes(list(found.stale_routes)))

    async def _sweep_gone(self, found: Repairs) -> None:
        """Two-phase: what is missing in two passes one after the other is gone."""
        missing = frozenset(found.gone)
        for attachment in missing & self._missing:
            self._parts.log.warning("link-vanished", container=attachment.container)
            try:
                await self._undo(attachment)
            except CniError as error:
                self._parts.log.error("undo-failed", container=attachment.container, error=error.message)
        self._missing = missing - self._missing

    async def _sweep_budgets(self) -> None:
        """Flows and budgets of endpoints that nobody has: their pods went while no agent was there."""
        if stale := self._parts.enforcer.stale_budgets(self._parts.registry.up.values()):
            self._parts.log.info("flows-of-the-dead-removed", endpoints=sorted(stale))
            await asyncio.to_thread(self._parts.datapath.broom.forget_endpoints, stale)

    def _report_orphans(self, found: Repairs) -> None:
        names = {link.alias: link.name for link in found.orphans}
        for alias in self._once.take(names, time.monotonic()):
            self._parts.log.error("orphan-link", link=names[alias], alias=alias)
            self._parts.bus.tell_fault(
                f"link {names[alias]} ({alias}) has no entry in the address journal",
                "delete the pod behind it; restore the journal if it was removed",
            )

    async def _sweep_unmarked(self, kernel: KernelLinks) -> None:
        """Links whose maker died between making and marking them; two-phase, since one may be in the making."""
        begun = frozenset(link.index for link in kernel.unmarked())
        for index in begun & self._unmarked:
            self._parts.log.warning("unmarked-link-removed", ifindex=index)
            await self._parts.thread.run(lambda index=index: self._parts.links.remove(index))  # type: ignore[misc]
        self._unmarked = begun

    async def _programs(self, kernel: KernelLinks) -> None:
        """Programs hang where they should: endpoints, uplinks, sockets."""
        datapath, settings = self._parts.datapath, self._parts.settings
        held = datapath.links()
        indices = {link.name: link.index for link in kernel.links}
        uplinks = {indices[uplink]: uplink for uplink in settings.uplinks if uplink in indices}
        datapath.keep_uplinks(uplinks, indices["lo"])
        for one in self._parts.registry.up.values():
            state = held.get(host_name(one.attachment))
            if (state is None or state.ifindex != one.index) and one.attachment not in self._parts.registry.busy:
                datapath.attach_endpoint(one.index, host_name(one.attachment))
        absent = [uplink for uplink in settings.uplinks if uplink not in indices]
        try:
            for index, uplink in uplinks.items():
                datapath.attach_uplink(index, uplink)
            datapath.attach_sockets(settings.cgroup)
        except OSError as error:
            self._condition.set(False, str(error))
            raise
        names = {host_name(one) for one in (*self._parts.registry.up, *self._parts.registry.busy)}
        stale = [name for name in held if name.startswith("am") and len(name) == 12 and name not in names]
        for name in stale:
            if name not in indices:
                datapath.detach(name)
        why = f"uplink {', '.join(absent)} does not exist; set AIRMESH_UPLINKS to interfaces of this node"
        self._condition.set(not absent, why)

    async def masquerade(self, dirty: Dirty) -> Done | Again:
        """The nftables table, once the pools and nodes are known."""
        feed = self._parts.feed
        if not dirty.full and not feed.concern(dirty.keys, IPPool, Node):
            return Done()
        if not (feed.complete(IPPool) and feed.complete(Node)):
            if not self._outward.ok:
                self._outward.set(False, "pools and nodes are not known yet, so nothing can be masqueraded")
            return Again(after=1.0)
        addresses = [address for node in feed.all_of(Node) for address in node.addresses]
        if await self._masquerade.keep(ruleset(feed.all_of(IPPool), addresses), verify=dirty.full):
            self._parts.log.info("masquerade-written")
        if not self._outward.ok:
            self._outward.set(True)
            self._parts.book.bell.ring("masquerade")  # pods may start now: the runtime's configuration waits for it
        return Done()

    async def reap(self) -> None:
        """Removes retired links in batches, and their flows; for ever."""
        retired = self._retired
        while True:
            await asyncio.sleep(REAP_EVERY)
            if not retired:
                continue
            batch, retired[:] = list(retired), []
            try:
                await self._parts.thread.run(self._parts.links.reap)
            except OSError as error:
                self._parts.log.warning("reap-failed", error=error)
            if indices := {index for index in batch if index}:
                await asyncio.to_thread(self._parts.datapath.broom.forget_endpoints, indices)


def uplink_mtu(kernel: KernelLinks, uplinks: tuple[str, ...]) -> int:
    """The smallest MTU of the uplinks that exist; 1500 when none does."""
    return min((link.mtu for link in kernel.links if link.name in uplinks and link.mtu), default=1500)
