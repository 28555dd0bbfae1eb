"""Pods' links through lists of states: endpoints come and go, and whatever somebody does to a link is put right.

The oracle asks of the present endpoints and links alone: which link is whose, how it should be, which are missing, and
for which nobody answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random

from proto.net import Address
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.links import (
    GROUP_DELETING,
    GROUP_LIVE,
    HOST_MAC,
    KernelLinks,
    Mark,
    SeenLink,
    alias,
    host_name,
    pod_mac,
)
from services.dataplane.core.endpoint.plan import Standing, repairs
from tests.core.states import Driver, every_order, follow

Key = tuple[str, str]
INDEXES = {"aaa": (3, 13), "bbb": (4, 14), "ccc": (5, 15)}
"""Interface indexes that a container's link has had."""
ADDRESSES = {name: (ip_address(f"10.0.0.{at}"), ip_address(f"fd00::{at}")) for at, name in enumerate(INDEXES)}
FOREIGN = (1, 2)
MTU = 1500


@dataclass(frozen=True)
class Wanted:
    """An endpoint that is up."""

    index: int
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Left:
    """A link as somebody leaves it."""

    index: int
    up: bool
    mtu: int
    ours: bool
    """Marked, and not awaiting removal."""


@dataclass(frozen=True)
class Route:
    """One of our protocol."""

    index: int
    address: Address


Value = Wanted | Left | Route | int
Objects = dict[Key, Value]


def attachment(name: str) -> Attachment:
    return Attachment(name, "eth0")


class Repaired(Driver[Key, Value]):
    """The registry and a kernel: what is found to be done is done."""

    def __init__(self) -> None:
        self.wanted: dict[str, Wanted] = {}
        self.busy: set[str] = set()
        self.mtu = MTU
        self.links: dict[str, Left] = {}
        self.routes: set[tuple[int, Address]] = set()
        self.neighbours: set[tuple[int, Address, bytes]] = set()
        self.verdict: tuple[set[str], set[str]] = (set(), set())

    def put(self, key: Key, value: Value | None) -> None:
        kind, name = key
        if kind == "endpoint":
            self.wanted.pop(name, None)
            if isinstance(value, Wanted):
                self.wanted[name] = value
        elif kind == "busy":
            (self.busy.discard if value is None else self.busy.add)(name)
        elif kind == "mtu":
            self.mtu = value if isinstance(value, int) else MTU
        elif kind == "route":
            index, _, address = name.partition(" ")
            route = int(index), ip_address(address)
            (self.routes.discard if value is None else self.routes.add)(route)
        elif kind == "link":
            before = self.links.pop(name, None)
            if isinstance(value, Left):
                self.links[name] = value
            if before is not None and (not isinstance(value, Left) or not value.up or value.index != before.index):
                self.routes = {one for one in self.routes if one[0] != before.index}
                self.neighbours = {one for one in self.neighbours if one[0] != before.index}

    def kernel(self) -> KernelLinks:
        links = [SeenLink(index=at, name=f"eth{at}", alias="", group=0, up=True, mtu=9000, mac=b"") for at in FOREIGN]
        for name, left in self.links.items():
            group = GROUP_LIVE if left.ours else GROUP_DELETING
            marked = alias(Mark(attachment(name), "uid", 7))
            links.append(
                SeenLink(
                    index=left.index,
                    name=host_name(attachment(name)),
                    alias=marked,
                    group=group,
                    up=left.up,
                    mtu=left.mtu,
                    mac=HOST_MAC,
                )
            )
        return KernelLinks(links=tuple(links), routes=frozenset(self.routes), neighbours=frozenset(self.neighbours))

    def flush(self) -> None:
        standing = [
            Standing(attachment=attachment(name), index=one.index, addresses=one.addresses, mtu=self.mtu)
            for name, one in self.wanted.items()
        ]
        found = repairs(standing, [attachment(name) for name in self.busy], self.kernel())
        names = {one.index: name for name, one in self.links.items()}
        for down in found.down:
            name = down.container
            index = self.links[name].index
            self.links[name] = replace(self.links[name], up=True, mtu=self.mtu)
            self.routes |= {(index, address) for address in self.wanted[name].addresses}
            self.neighbours |= {(index, address, pod_mac(down)) for address in self.wanted[name].addresses}
        self.routes |= set(found.routes)
        self.routes -= set(found.stale_routes)
        self.neighbours |= set(found.neighbours)
        for size in found.sizes:
            self.links[names[size.index]] = replace(self.links[names[size.index]], mtu=size.mtu)
        orphans = {names[link.index] for link in found.orphans}
        gone = {one.container for one in found.gone}
        touched = {index for index, _ in (*found.routes, *found.stale_routes)}
        touched |= {index for index, _, _ in found.neighbours}
        touched |= {size.index for size in found.sizes} | {self.links[one.container].index for one in found.down}
        assert not {names[index] for index in touched} & self.busy, "what is being made or undone is left alone"
        assert not (orphans | gone) & self.busy
        self.verdict = gone, orphans

    def settle(self) -> object:
        for _ in range(3):
            self.flush()
        judged = {name: one for name, one in self.links.items() if one.ours and name not in self.busy}
        indexes = {one.index for one in judged.values()} | {*FOREIGN}
        answered = {name: one for name, one in judged.items() if name in self.wanted and name not in self.verdict[0]}
        return {
            "links": answered,
            "routes": {route for route in self.routes if route[0] in indexes},
            "unknown": {
                (name, address)
                for name, one in answered.items()
                for address in self.wanted[name].addresses
                if (one.index, address, pod_mac(attachment(name))) not in self.neighbours
            },
            "gone": self.verdict[0],
            "orphans": self.verdict[1],
        }


def put_right(objects: Objects) -> object:
    wanted = {name: one for (_, name), one in objects.items() if isinstance(one, Wanted)}
    links = {name: one for (_, name), one in objects.items() if isinstance(one, Left) and one.ours}
    mtu = objects.get(("mtu", ""), MTU)
    assert isinstance(mtu, int)
    at_rest = {name for name in INDEXES if ("busy", name) not in objects}
    answered = {
        name: replace(links[name], up=True, mtu=mtu)
        for name, one in wanted.items()
        if name in at_rest and name in links and links[name].index == one.index
    }
    routes = {(one.index, address) for name, one in answered.items() for address in wanted[name].addresses}
    foreign = {(one.index, one.address) for one in objects.values() if isinstance(one, Route) and one.index in FOREIGN}
    return {
        "links": answered,
        "routes": routes | foreign,
        "unknown": set(),
        "gone": (wanted.keys() & at_rest) - answered.keys(),
        "orphans": (links.keys() & at_rest) - wanted.keys(),
    }


def state(chance: Random) -> Objects:
    objects: Objects = {}
    for name, indexes in INDEXES.items():
        if chance.random() < 0.7:
            addresses = ADDRESSES[name][: chance.choice((1, 2, 2))]
            objects["endpoint", name] = Wanted(indexes[chance.random() < 0.2], addresses)
        if chance.random() < 0.8:
            objects["link", name] = Left(
                index=indexes[chance.random() < 0.2],
                up=chance.random() < 0.7,
                mtu=chance.choice((1400, 1500, 1500)),
                ours=chance.random() < 0.8,
            )
        if chance.random() < 0.2:
            objects["busy", name] = 1
        for index in indexes:
            if chance.random() < 0.3:
                address = chance.choice(ADDRESSES[chance.choice(list(INDEXES))])
                objects["route", f"{index} {address}"] = Route(index, address)
    for index in FOREIGN:
        address = ADDRESSES["aaa"][0]
        if chance.random() < 0.5:
            objects["route", f"{index} {address}"] = Route(index, address)
    if chance.random() < 0.5:
        objects["mtu", ""] = chance.choice((1400, 1500, 8900))
    return objects


@every_order(seeds=12)
def test_whatever_came_before_each_link_is_as_its_endpoint_asks(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Repaired, put_right, [state(chance) for _ in range(4)], expander, seed)
