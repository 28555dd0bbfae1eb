"""The parts of one node's agent that others work with: made once by ``app``, handed on whole."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.bus import Bus
from chassis.log import Log
from chassis.telemetry import Telemetry
from services.dataplane.bell import Courtesy
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.thread import NamespaceThread
from services.dataplane.endpoint.gate import Gate
from services.dataplane.endpoint.links import Links
from services.dataplane.endpoint.registry import Registry
from services.dataplane.feed import Feed
from services.dataplane.ipam.addresses import AddressBook
from services.dataplane.policy.enforce import Enforcer
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
