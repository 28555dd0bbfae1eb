"""The dataplane of a gateway: a machine of the control plane that is no node, whose own packets go to pods by tunnels.

It has what a tunnel needs of a node and nothing else: the programs of its uplinks and tunnel devices, and the maps that
they judge by (devices, ends, peers, whose an address is). No CNI, no pods, no policy, no Services, no masquerade; it
tells others nothing and is acknowledged nowhere. Like a node's it waits for nothing, and what hangs goes on without it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType

from chassis.runtime.reconcile import Dirty, Done, Loop
from chassis.runtime.service import Runtime
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.datapath.pins import Source
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.datapath.growth import Growth, limits_of
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.start import open_datapath
from services.dataplane.datapath.start import start as start_upgrade
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.feed import Feed
from services.dataplane.ipcache.start import start as start_ipcache
from services.dataplane.settings import Settings
from services.dataplane.signals import Signal
from services.dataplane.tunnel.start import make as make_tunnels
from services.dataplane.tunnel.start import start as start_tunnels

_LOOPBACK = "lo"


class NoEndpoints:
    """The endpoints of a machine that has none."""

    up: Mapping[Attachment, LocalEndpoint] = MappingProxyType({})


def build_gateway(runtime: Runtime[Settings]) -> None:
    """Wires the agent."""
    settings = runtime.settings
    datapath, thread = open_datapath(settings), NamespaceThread()
    feed = Feed(runtime.bus, settings.node)
    tunnels = make_tunnels(runtime, datapath, feed)

    async def let_go() -> None:
        thread.close()
        datapath.close()

    runtime.on_stop(let_go)
    addresses = start_ipcache(
        runtime,
        datapath.tables,
        Growth(datapath, thread, limits_of(settings), runtime.log),
        feed=feed,
        endpoints=NoEndpoints(),
        signal=Signal(),
        own_addresses=tunnels.own_addresses,
        passed=lambda: None,
    )
    uplinks = Uplinks(runtime, datapath)
    Loop(runtime, "uplinks", cursors=[], apply=uplinks.apply)
    start_tunnels(runtime, tunnels, feed)
    filled = {
        Source.NODE: lambda: True,
        Source.ADDRESSES: lambda: addresses.filled,
        Source.POLICY: lambda: True,
        Source.SERVICES: lambda: True,
        Source.TUNNELS: lambda: tunnels.filled,
    }
    start_upgrade(runtime, datapath, thread, filled=filled, switched=lambda: None)


class Uplinks:
    """Keeps the programs of uplinks hanging where they should."""

    def __init__(self, runtime: Runtime[Settings], datapath: Datapath) -> None:
        self._names = runtime.settings.uplinks
        self._datapath = datapath
        self._condition = runtime.health.require("datapath")

    async def apply(self, _dirty: Dirty) -> Done:
        """One pass. Raises OSError."""
        indices = {name: index for index, name in socket.if_nameindex()}
        present = {indices[name]: name for name in self._names if name in indices}
        self._datapath.keep_uplinks(present, indices[_LOOPBACK])
        try:
            for index, name in present.items():
                self._datapath.attach_uplink(index, name)
        except OSError as error:
            self._condition.set(False, str(error))
            raise
        absent = ", ".join(name for name in self._names if name not in indices)
        why = f"uplink {absent} does not exist; set AIRMESH_UPLINKS to interfaces of this machine"
        self._condition.set(not absent, why)
        return Done()
