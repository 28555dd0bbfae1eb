"""The datapath of a node as its settings ask for it, and the loop that finishes an upgrade."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chassis.runtime.reconcile import Loop
from chassis.runtime.service import Runtime
from services.dataplane.core.datapath.layout import Config, ConfigFlag
from services.dataplane.core.datapath.maps import conntrack_entries, conntrack_sizes
from services.dataplane.core.datapath.pins import Source
from services.dataplane.datapath.growth import limits_of, node_memory
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.datapath.upgrade import Upgrade
from services.dataplane.settings import Settings


def flow_sizes(settings: Settings) -> dict[str, int]:
    """Entries of the tables of flows on this node."""
    return conntrack_sizes(conntrack_entries(node_memory(), settings.conntrack_entries))


NO_FLAGS = ConfigFlag(0)


def open_datapath(settings: Settings, flags: ConfigFlag = NO_FLAGS) -> Datapath:
    """Programs and maps as pinned, with what the pinned flags say of tunnels and encryption, and ``flags`` beside that.
    Raises as :meth:`Datapath.open` does.
    """
    sizes = {**limits_of(settings).first, **flow_sizes(settings)}
    datapath = Datapath.open(settings.pin_root, settings.bpf_cache, filter_pods=not settings.tcx, sizes=sizes)
    of_settings = ConfigFlag.EMIT_FORWARDED | ConfigFlag.MEASURE_DNS
    flags |= ConfigFlag(datapath.tables.config.flags) & ~of_settings
    if settings.measure_dns:
        flags |= ConfigFlag.MEASURE_DNS
    if settings.publish_forwarded:
        flags |= ConfigFlag.EMIT_FORWARDED
    datapath.tables.configure(Config(flags=int(flags)))
    return datapath


def start(
    runtime: Runtime[Settings],
    datapath: Datapath,
    thread: NamespaceThread,
    *,
    filled: Mapping[Source, Callable[[], bool]],
    switched: Callable[[], None],
) -> None:
    """Finishes an upgrade, if there is one: waits until all are ``filled``, and calls ``switched`` after the switch."""
    if not (datapath.unfilled or datapath.losses):
        return
    upgrade = Upgrade(
        datapath,
        thread,
        runtime.log,
        runtime.health.require("upgrade"),
        filled=filled,
        report=runtime.bus.report_fault,
        switched=switched,
        sizes=flow_sizes(runtime.settings),
    )
    Loop(runtime, "upgrade", cursors=[], apply=upgrade.apply)
