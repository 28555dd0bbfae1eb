"""What the mirror of the API says for BGP: its objects, nodes, pools, and Services where their addresses are announced.

Services and their endpoints are followed from the moment on that a BGPConfiguration announces ranges of them: a cluster
may have tens of thousands, and every node would keep them. Nothing is said of what is not known whole: a peer that is
missing for a moment would be told that it is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from chassis.bus.client import Bus
from chassis.bus.view import View
from kit.model_settings import DEFAULT
from proto.codec import kind_prefix
from proto.net import Network
from proto.objects import (
    KIND_OF,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    EndpointSlice,
    IPPool,
    Node,
    Service,
)
from proto.subjects import OBJECTS
from services.routing.bgp_passwords import keys_named, read_passwords
from services.routing.core.bgp.resources import Objects

KINDS = (BGPConfiguration, BGPFilter, BGPPeer, IPPool, Node)
OF_SERVICES = (Service, EndpointSlice)
T = TypeVar("T")


class Mirror:
    """Views of the kinds that BGP follows from. ``passwords``: the folder of Secrets, if there is one."""

    def __init__(self, bus: Bus, node: str, passwords: Path | None) -> None:
        self._bus = bus
        self._node = node
        self._passwords = passwords
        self.objects = _watch(bus, KINDS, "bgp")
        self.services: View | None = None

    def follow_services(self) -> View:
        """Follow Services from now on, for good."""
        if self.services is None:
            self.services = _watch(self._bus, OF_SERVICES, "bgp-services")
        return self.services

    def look(self) -> Objects | None:
        """The present objects; None while not all of them are known."""
        if not _is_whole(self.objects, KINDS):
            return None
        configurations = tuple(_all(self.objects, BGPConfiguration))
        peers = tuple(_all(self.objects, BGPPeer))
        return Objects(
            me=self._node,
            nodes={one.name: one for one in _all(self.objects, Node)},
            configurations=configurations,
            peers=peers,
            filters={one.name: one for one in _all(self.objects, BGPFilter)},
            pools=tuple(_all(self.objects, IPPool)),
            passwords=read_passwords(self._passwords, keys_named(configurations, peers)),
        )

    def look_at_services(self) -> tuple[tuple[Service, ...], tuple[EndpointSlice, ...]] | None:
        """Services and their endpoints; None while not all of them are known."""
        if self.services is None or not _is_whole(self.services, OF_SERVICES):
            return None
        return tuple(_all(self.services, Service)), tuple(_all(self.services, EndpointSlice))


class Asked:
    """Whether anybody asks nodes to speak BGP, for a gateway, which speaks none: then the fabric leads to pods."""

    def __init__(self, bus: Bus) -> None:
        self.view = _watch(bus, (BGPConfiguration, BGPPeer), "bgp")

    def leads_to(self) -> Callable[[Network], bool] | None:
        """A way to every prefix, by routes of others; None: nobody asks for BGP."""
        asked = _all(self.view, BGPPeer) or any(one.name == DEFAULT for one in _all(self.view, BGPConfiguration))
        return _anywhere if asked else None


def _anywhere(_prefix: Network) -> bool:
    return True


def _watch(bus: Bus, kinds: tuple[type, ...], name: str) -> View:
    prefixes = {kind_prefix(KIND_OF[kind]): kind for kind in kinds}
    return bus.bucket(OBJECTS).watch(prefixes, prefixes=tuple(prefixes), markers=(), name=name)


def _is_whole(view: View, kinds: tuple[type, ...]) -> bool:
    return view.synced and all(view.scope_complete(kind_prefix(KIND_OF[kind])) for kind in kinds)


def _all(view: View, kind: type[T]) -> list[T]:
    return [entry.value for entry in view.entries.values() if isinstance(entry.value, kind)]
