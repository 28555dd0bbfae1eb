"""The parts of one node's agent that others work with: made once by ``app``, handed on whole."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.bus import Bus
from chassis.log import Log
from chassis.telemetry import Telemetry
from services.dataplane.addresses import AddressBook
from services.dataplane.bell import Courtesy
from services.dataplane.enforce import Enforcer
from services.dataplane.feed import Feed
from services.dataplane.gate import Gate
from services.dataplane.kernel.links import Links
from services.dataplane.kernel.programs import Datapath
from services.dataplane.kernel.thread import NamespaceThread
from services.dataplane.registry import Registry
from services.dataplane.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """See each part's own module."""

    settings: Settings
    bus: Bus
    log: Log
    telemetry: Telemetry
    feed: Feed
    gate: Gate
    book: AddressBook
    registry: Registry
    enforcer: Enforcer
    datapath: Datapath
    thread: NamespaceThread
    links: Links
    courtesy: Courtesy
