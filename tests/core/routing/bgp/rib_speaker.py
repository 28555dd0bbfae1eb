"""A speaker's tables in the notation of the tests: peers by name, prefixes as text, paths with what matters of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from proto.net import Address
from services.routing.core.bgp.peers import SessionSettings, TableSettings
from services.routing.core.bgp.rib.exports import OwnNextHop
from services.routing.core.bgp.rib.neighbors import Completed, Established
from services.routing.core.bgp.rib.paths import Path, Reach
from services.routing.core.bgp.rib.tables import PrefixLimit, Tables
from services.routing.core.bgp.values import (
    Agreed,
    Attributes,
    Family,
    Origin,
    Prefix,
    Reachable,
    Segment,
    SegmentKind,
    Unreachable,
    Update,
    network_of,
    prefix_of,
)

OURS = 64512
NODE = IPv4Address("10.0.0.1")
V4, V6 = Family.IPV4, Family.IPV6


def prefix(text: str) -> Prefix:
    return prefix_of(ip_network(text))[1]


def as_path(*parts: int | set[int]) -> tuple[Segment, ...]:
    """Numbers in a row are a sequence, a set is a set."""
    found: list[Segment] = []
    for part in parts:
        if isinstance(part, set):
            found.append(Segment(SegmentKind.SET, tuple(sorted(part))))
        elif found and found[-1].kind is SegmentKind.SEQUENCE:
            found[-1] = Segment(SegmentKind.SEQUENCE, (*found[-1].numbers, part))
        else:
            found.append(Segment(SegmentKind.SEQUENCE, (part,)))
    return tuple(found)


def attributes(*path: int | set[int], hop: str = "172.31.0.1", **more: Any) -> Attributes:
    plain = Attributes(origin=Origin.IGP, as_path=as_path(*path), next_hop=ip_address(hop))
    return replace(plain, **more)


class Speaker:
    """The tables of a node in AS 64512 whose every next hop is reached, if nothing else is said."""

    def __init__(self, *, most_paths: int = 4) -> None:
        self.reach: dict[str, Reach | None] = {}
        self.asked: list[Address] = []
        self.tables = Tables(self._resolve, most_paths=most_paths)

    def _resolve(self, address: Address, interface: str) -> Reach | None:
        self.asked.append(address)
        return self.reach.get(str(address), Reach(0, interface or "eth0"))

    def up(
        self,
        name: str,
        asn: int,
        address: str,
        *,
        router_id: str = "",
        receives_paths: bool = False,
        sends_paths: bool = False,
        families: Iterable[Family] = (V4,),
        long_lived: bool = False,
        own: str = str(NODE),
        interface: str = "",
        **tables: Any,
    ) -> None:
        families = frozenset(families)
        self.tables.peer_up(
            name,
            Established(
                session=SessionSettings(
                    address=ip_address(address), local_asn=OURS, peer_asn=asn, router_id=NODE, interface=interface
                ),
                tables=TableSettings(**tables),
                agreed=Agreed(
                    families=families,
                    four_octets=True,
                    external=asn != OURS,
                    receives_paths=families if receives_paths else frozenset(),
                    sends_paths=families if sends_paths else frozenset(),
                ),
                router_id=IPv4Address(router_id or address),
                next_hops={
                    family: OwnNextHop(address=ip_address(own if family is V4 else "2001:db8::1"))
                    for family in families
                },
                long_lived=long_lived,
            ),
        )

    def learn(
        self, name: str, texts: str | Iterable[str], what: Attributes, path_id: int | None = None
    ) -> tuple[PrefixLimit, ...]:
        """The peer announces prefixes, all of one family."""
        networks = [ip_network(text) for text in (texts.split() if isinstance(texts, str) else texts)]
        family = prefix_of(networks[0])[0]
        prefixes = tuple(prefix_of(network)[1] for network in networks)
        ids = () if path_id is None else (path_id,) * len(prefixes)
        reachable = Reachable(family=family, attributes=what, prefixes=prefixes, path_ids=ids)
        return self.tables.update(name, Update(reachable=(reachable,)))

    def unlearn(self, name: str, texts: str, path_id: int | None = None) -> None:
        networks = [ip_network(text) for text in texts.split()]
        prefixes = tuple(prefix_of(network)[1] for network in networks)
        ids = () if path_id is None else (path_id,) * len(prefixes)
        gone = Unreachable(family=prefix_of(networks[0])[0], prefixes=prefixes, path_ids=ids)
        self.tables.update(name, Update(unreachable=(gone,)))

    def decide(self) -> dict[str, str]:
        """Decide all; what changed, as prefix → names of the peers whose paths are used now, best first."""
        changed: dict[str, str] = {}
        while self.tables.undecided:
            for change in self.tables.decide():
                changed[str(network_of(change.family, change.prefix))] = names(change.after)
        return changed

    def used(self, family: Family = V4) -> dict[str, str]:
        """The peers whose paths are used, best first, by prefix."""
        self.decide()
        return {str(network_of(family, one)): names(paths) for one, paths in self.tables.chosen(family).items()}

    def drain(self, name: str, limit: int = 1000) -> tuple[list[str], list[Completed]]:
        """What is written to a peer, as it is written: ``+prefix`` or ``-prefix``, ``#identifier`` behind it."""
        written: list[str] = []
        completed: list[Completed] = []
        more = True
        while more:
            pending = self.tables.pending(name, limit)
            for batch in pending.batches:
                for sign, runs in (("-", batch.unreachable), ("+", batch.reachable)):
                    for run in runs:
                        written += [sign + text for text in _texts(run)]
            completed += [what for _, what in pending.completed]
            more = pending.more
        return written, completed

    def sent(self, name: str, text: str, family: Family = V4) -> Attributes | None:
        """What a peer is sent of a prefix."""
        self.decide()
        found = [what for one, _, what in self.tables.sent(name, family) if one == prefix(text)]
        return found[0] if found else None


def _texts(run: Reachable | Unreachable) -> list[str]:
    texts = [str(network_of(run.family, one)) for one in run.prefixes]
    return [f"{text}#{number}" for text, number in zip(texts, run.path_ids, strict=True)] if run.path_ids else texts


def names(paths: Iterable[Path]) -> str:
    return " ".join(path.source.name or "own" for path in paths)


__all__ = ("OURS", "V4", "V6", "Speaker", "as_path", "attributes", "names", "prefix", "replace")
