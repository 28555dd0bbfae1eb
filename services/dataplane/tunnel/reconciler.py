"""The tunnel reconciler: maps and programs of the tunnel devices that ``routing`` has made.

Owns ``am_tunnels``, ``am_tunnel_ends``, ``am_tunnel_peers``, ``am_tunnel_srcs``, the flags of tunnels and encryption in
``am_config``, and the programs on tunnel devices. Devices and routes are believed as the kernel has them, never as the
bus tells: so nothing waits for ``routing``, and with both agents dead table and maps agree. Promises: a device's maps
are filled before its programs hang, and its way out before its way in (``routing`` tells the others that it receives
when the way in hangs); programs are replaced in one step, found again by a restarted agent, and go with their device;
with the bus away, and until all it says has been here once, what is in the maps of peers stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.runtime.service import Runtime
from kit.once import Once
from kit.tunnels import is_tunnel_name
from kit.underlay import Refusal
from proto.net import Address
from proto.objects import FelixConfiguration
from services.dataplane.core.datapath.layout import AddressKey, ConfigFlag, LinkKey, PrefixKey
from services.dataplane.core.datapath.tunnel_layout import (
    Tunnel,
    TunnelEnd,
    TunnelEndKey,
    TunnelKind,
    TunnelPeer,
    TunnelSource,
)
from services.dataplane.core.tunnel import devices as core
from services.dataplane.core.tunnel import encryption
from services.dataplane.core.tunnel.peers import TunnelPeers
from services.dataplane.core.tunnel.routes import Routes
from services.dataplane.datapath.programs import Datapath
from services.dataplane.feed import Feed
from services.dataplane.one_thread import OneThread
from services.dataplane.settings import Settings
from services.dataplane.tunnel.encryption import remember
from services.dataplane.tunnel.kernel import KernelWatch, Links, TunnelKernel
from services.dataplane.tunnel.known import Known
from services.dataplane.tunnel.maps import FollowedMap

COMPARE_EVERY = 15.0
"""Seconds between two looks at the maps themselves: what somebody did to them by hand ends then."""
LASTING = 5.0
"""Seconds for which an address has to be refused before that is told."""
REMEDY = (
    "give each node addresses of its own; if the agent of one of them says what no agent of ours does, its key was "
    "taken: take it away"
)
ROOM_REMEDY = "tell us how large the cluster is; until then it has more nodes, blocks or kept addresses than are served"


class TunnelReconciler:
    """See the module; :meth:`apply` is what its loop runs."""

    def __init__(
        self,
        runtime: Runtime[Settings],
        datapath: Datapath,
        feed: Feed,
        *,
        thread: OneThread,
    ) -> None:
        """``thread`` speaks with the kernel."""
        self._settings = runtime.settings
        self._log = runtime.log
        self._bus = runtime.bus
        self._datapath = datapath
        self._feed = feed
        self._thread = thread
        self._kernel = TunnelKernel()
        self._links = Links((), frozenset())
        self._routes = Routes()
        self.peers = TunnelPeers("" if runtime.settings.gateway else feed.node)
        self._known = Known(feed, self.peers)
        tables = datapath.tables
        self._tunnels: FollowedMap[LinkKey, Tunnel] = FollowedMap(tables.tunnels)
        self._ends: FollowedMap[TunnelEndKey, TunnelEnd] = FollowedMap(tables.tunnel_ends)
        self._peers: FollowedMap[AddressKey, TunnelPeer] = FollowedMap(tables.tunnel_peers)
        self._sources: FollowedMap[PrefixKey, TunnelSource] = FollowedMap(tables.tunnel_sources)
        self._compared: float | None = None
        self._hung: tuple[core.Device, ...] | None = None
        """Devices that have their programs; None: not known."""
        self._encryption = encryption.of_flags(ConfigFlag(tables.config.flags))
        self._remembered: frozenset[int] | None = None
        """What the file says; None: not looked at."""
        self._since: dict[Refusal, float] = {}
        self._once: Once[object] = Once()
        self.watch: KernelWatch | None = None
        self.filled = False
        """Whether the maps have held what is known of the whole cluster."""
        self.is_encryption_known = False
        """Whether what FelixConfiguration asks for has been here, and is in force: pods may start."""

    def close(self) -> None:
        """Lets go of the thread and the sockets; what hangs, hangs on."""
        if self.watch is not None:
            self.watch.close()
        self._thread.close()
        self._kernel.close()

    async def own_addresses(self) -> frozenset[Address]:
        """Addresses of this machine's interfaces, as the kernel has them now."""
        return await self._thread.run(self._kernel.own_addresses)

    async def apply(self, dirty: Dirty) -> Done | Again:
        """One pass."""
        began = time.monotonic()
        await self._look(full=dirty.full)
        for key in self._routes.take_changed():
            self.peers.set_route(key, self._routes.get(key))
        self.peers.set_devices(self._links.devices)
        self._known.follow()
        if self._compared is None or (dirty.full and began - self._compared >= COMPARE_EVERY):
            await self._compare()
            self._compared = began
        written = self._write()
        self._set_flags(began)
        if dirty.full or self._hung != self._links.devices:
            await self._hang()
        self._report(began)
        if written:
            self._log.debug("tunnels-written", entries=written)
        return Again(after=1.0, full=False) if self._encryption.remaining else Done()

    async def _look(self, *, full: bool) -> None:
        """The kernel's state: all of it, or what it told."""
        kernel = self._kernel
        notices = self.watch.take() if self.watch is not None else None
        if full or notices is None or notices.lost:
            self._links = await self._thread.run(kernel.links)
            self._routes.replace(await self._thread.run(kernel.routes))
            self.peers.set_own(await self._thread.run(kernel.own_addresses))
            self.peers.forget()
        else:
            for key, route, is_there in notices.routes:
                if is_there:
                    self._routes.put(key, route)
                else:
                    self._routes.remove(key, route)
            if notices.links:
                self._links = await self._thread.run(kernel.links)
                self._routes.keep_links(self._links.up)
        if self.watch is not None:
            self.watch.known = frozenset(device.index for device in self._links.devices)

    async def _compare(self) -> None:
        """Reads the maps."""
        self._settle()
        run, tables = self._thread.run, self._datapath.tables
        self._tunnels.compare(await run(tables.tunnels.items), core.tunnels(self._links.devices))
        self._ends.compare(await run(tables.tunnel_ends.items), core.ends(self._links.devices))
        self._peers.compare(await run(tables.tunnel_peers.items), self.peers.peers)
        self._sources.compare(await run(tables.tunnel_sources.items), self.peers.sources)

    def _settle(self) -> None:
        if self._known.begun:
            changed = self.peers.settle()
            self._peers.changed(changed.peers, self.peers.peers)
            self._sources.changed(changed.sources, self.peers.sources)

    def _write(self) -> int:
        """What differs: sources before those who use them, devices last."""
        written = 0
        self._settle()
        if self._known.begun:
            written += self._sources.write(self.peers.sources, lambda: self._known.whole)
            written += self._peers.write(self.peers.peers, lambda: self._known.whole)
            self.filled = True
        ends, tunnels = core.ends(self._links.devices), core.tunnels(self._links.devices)
        self._tunnels.follow(tunnels)
        self._ends.follow(ends)
        written += self._tunnels.write(tunnels, lambda: True)
        return written + self._ends.write(ends, lambda: True)

    def _set_flags(self, now: float) -> None:
        encrypting = {one.index for one in self._links.devices if one.kind is TunnelKind.WIREGUARD}
        facts = encryption.Facts(
            asked=self._feed.model_settings().encrypted,
            is_known=self._feed.complete(FelixConfiguration),
            prohibited=self._routes.prohibited(),
            plain={family for family in encryption.FAMILIES if self._routes.has_plain(family, encrypting)},
        )
        before, self._encryption = self._encryption, encryption.judge(self._encryption, facts, now)
        if before != self._encryption:
            self._log.info(
                "encryption-changed", out=sorted(self._encryption.out), both_ways=sorted(self._encryption.both)
            )
        if self._remembered != self._encryption.out and not self._settings.gateway:
            remember(self._settings.state_dir, self._encryption)
            self._remembered = self._encryption.out
        tables = self._datapath.tables
        config = tables.config
        flags = ConfigFlag(config.flags) & ~(encryption.ENCRYPTION | ConfigFlag.TUNNELS)
        flags |= self._encryption.flags_of_gateway if self._settings.gateway else self._encryption.flags
        flags |= ConfigFlag.TUNNELS if self._tunnels.actual else ConfigFlag(0)
        if int(flags) != config.flags:
            tables.configure(replace(config, flags=int(flags)))
        self.is_encryption_known = self.is_encryption_known or self._feed.objects.synced

    async def _hang(self) -> None:
        """Programs on the devices. None is hung where arrivals would be judged by empty maps."""
        devices, self._hung = self._links.devices, None
        may_hang = not self._datapath.unfilled and (self._known.begun or bool(self._peers.actual))
        for name in await self._thread.run(partial(_hang, self._datapath, devices if may_hang else (), devices)):
            self._log.info("tunnel-programs-removed", device=name)
        if may_hang:
            self._hung = devices

    def _report(self, now: float) -> None:
        """Tells of addresses that do not count, and of maps that are full; each once while it lasts."""
        refusals = list(self.peers.refusals)
        refusals = refusals if refusals and self._known.whole else []
        self._since = {one: self._since.get(one, now) for one in refusals}
        lasting = [one for one in refusals if now - self._since[one] >= LASTING]
        followed = (self._tunnels, self._ends, self._peers, self._sources)
        full = {one.table.spec.name: one for one in followed if one.without_room}
        for key in self._once.take((*lasting, *full), now):
            if isinstance(key, Refusal):
                nodes = " and ".join(key.nodes[:3])
                word = "node" if len(key.nodes) == 1 else "nodes"
                fault = f"{word} {nodes} told as an own address {key.address}, which is not believed: {key.why}"
                self._log.error("underlay-refused", address=key.address, nodes=key.nodes, why=key.why)
                self._bus.report_fault(fault, REMEDY)
            elif isinstance(key, str):
                without = full[key]
                fault = (
                    f"{key} has {without.table.entries} entries and no room for {without.without_room} more: what is "
                    "left out is not taken out of tunnels"
                )
                self._log.error("tunnels-without-room", map=key, count=without.without_room)
                self._bus.report_fault(fault, ROOM_REMEDY)


def _hang(datapath: Datapath, ready: Iterable[core.Device], all_of_them: Iterable[core.Device]) -> list[str]:
    """Hangs programs on the devices that are ready; takes the pins of devices that are gone away, and names these."""
    for device in ready:
        datapath.attach_tunnel(device.index, device.name)
    there = {device.name for device in all_of_them}
    gone = [name for name in datapath.names() if is_tunnel_name(name) and name not in there]
    for name in gone:
        datapath.detach(name)
    return gone
