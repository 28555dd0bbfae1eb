"""The tables hold what the present alone says, whatever came in which order: routes, peers, settings, next hops.

Between the states peers restart, refresh and are asked for a refresh, selection is deferred and resumed, and work is
done in pieces of any size. Whatever is sent is applied to a table of the peer's own, as a peer would.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from random import Random
from typing import Any

import pytest

from proto.net import Address
from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator, SessionSettings, Source, TableSettings
from services.routing.core.bgp.rib import groups
from services.routing.core.bgp.rib.exports import OwnNextHop
from services.routing.core.bgp.rib.neighbors import Completed, Established
from services.routing.core.bgp.rib.paths import Reach
from services.routing.core.bgp.rib.tables import Tables
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
    prefix_of,
)
from tests.core.routing.bgp.rib_reference import PeerNow, Reference
from tests.core.states import Driver, every_order, follow

V4 = Family.IPV4
MOST = 3
OURS = 64512
NODE = IPv4Address("10.0.0.1")
PREFIXES = [
    prefix_of(IPv4Network(text))[1]
    for text in ("0.0.0.0/0", "192.168.0.0/16", "192.168.1.0/26", "10.1.0.0/16", "10.1.2.0/24", "169.254.9.0/24")
]
HOPS: list[Address] = [IPv4Address(f"172.31.{number}.1") for number in range(4)]
HOPS += [IPv6Address("2001:db8::9")]
ASNS = {"tor-a": 65001, "tor-b": 65002, "tor-c": 65001, "node-2": OURS, "node-3": OURS, "rr": OURS}


def path(*asns: int) -> tuple[Segment, ...]:
    return (Segment(SegmentKind.SEQUENCE, asns),) if asns else ()


def some_attributes(asn: int, chance: Random) -> Attributes:
    """Mostly what is accepted, and equal in most steps, so that the later ones decide too."""
    external = asn != OURS
    if chance.random() < 0.65:
        return Attributes(
            origin=Origin.IGP,
            as_path=path(*((asn,) if external else (65001,)), 65100),
            next_hop=chance.choice(HOPS[:4]),
        )
    tail = chance.choice([(), (65100,), (65100,), (65200, 65201), (OURS,)])
    as_path = path(*((asn,) if external and chance.random() < 0.95 else ()), *tail)
    if chance.random() < 0.1:
        as_path += (Segment(SegmentKind.SET, (65300, 65301)),)
    return Attributes(
        origin=chance.choice([Origin.IGP, Origin.IGP, Origin.INCOMPLETE]),
        as_path=as_path,
        next_hop=chance.choice([*HOPS, NODE] if chance.random() < 0.1 else HOPS[:4]),
        med=chance.choice([None, None, 0, 5, 9]),
        local_pref=None if external else chance.choice([None, 100, 100, 200]),
        communities=chance.choice([(), (), (), (77,), (0xFFFF0000,), (0xFFFFFF01,), (0xFFFFFF02,), (0xFFFF0006,)]),
        large_communities=chance.choice([(), (), ((1, 2, 3),)]),
        originator_id=None if external else chance.choice([None, None, IPv4Address("9.9.9.9"), NODE]),
        cluster_list=() if external else chance.choice([(), (), (IPv4Address("1.1.1.1"),), (IPv4Address("8.8.8.8"),)]),
    )


def some_rule(chance: Random) -> FilterRule:
    accepts = chance.random() < 0.6
    networks = [None, *(ip_network(t) for t in ("0.0.0.0/0", "192.168.0.0/16", "10.1.0.0/16", "169.254.9.0/24"))]
    return FilterRule(
        action=Action.ACCEPT if accepts else Action.REJECT,
        family=chance.choice([V4, V4, V4, Family.IPV6]),
        network=chance.choice(networks),
        operator=chance.choice(list(MatchOperator)),
        lengths=chance.choice([None, None, (20, 28), (0, 16)]),
        source=chance.choice([None, None, None, Source.REMOTE_PEERS]),
        interface=chance.choice(["", "", "", "eth*", "am-vxlan"]),
        communities=chance.choice([(), (), (), (77,), ((1, 2, 3), 78)]),
        as_path_prefix=chance.choice([(), (), (), (65001,), (65001, 65100)]),
        set_local_pref=chance.choice([None, 50, 300]) if accepts else None,
        prepend=chance.choice([(), (), (65400,), (65400, 65401)]) if accepts else (),
        add_communities=chance.choice([(), (), (77, (1, 2, 3)), (5,)]) if accepts else (),
    )


def some_peer(name: str, chance: Random) -> PeerNow:
    number = list(ASNS).index(name) + 1
    several = chance.random() < 0.3
    families = frozenset([V4])
    mine = OwnNextHop(address=chance.choice([NODE, NODE, IPv4Address("172.31.0.9")]))
    return PeerNow(
        session=SessionSettings(
            address=IPv4Address(f"172.31.{number}.1"), local_asn=OURS, peer_asn=ASNS[name], router_id=NODE
        ),
        tables=TableSettings(
            imports=tuple(some_rule(chance) for _ in range(chance.choice([0, 0, 1, 3]))),
            exports=tuple(some_rule(chance) for _ in range(chance.choice([0, 0, 1, 3]))),
            default_import=chance.random() < 0.9,
            default_export=chance.random() < 0.9,
            client=ASNS[name] == OURS and chance.random() < 0.5,
            cluster_id=chance.choice([None, IPv4Address("1.1.1.1")]),
            keep_next_hop=chance.random() < 0.2,
            allowed_own_asn=chance.choice([0, 0, 1]),
            first_asn_checked=chance.random() < 0.9,
            leaving=chance.random() < 0.2,
        ),
        agreed=Agreed(
            families=families,
            four_octets=True,
            external=ASNS[name] != OURS,
            receives_paths=families,
            sends_paths=families if several else frozenset(),
            extended_next_hops=families if chance.random() < 0.3 else frozenset(),
        ),
        router_id=IPv4Address(f"{chance.choice([3, 3, number])}.3.3.3"),
        next_hops=((V4, mine),) if chance.random() < 0.9 else (),
        long_lived=chance.random() < 0.5,
    )


def some_states(seed: int, count: int = 5) -> list[dict[Any, Any]]:
    chance = Random(f"states {seed}")
    states = []
    for _ in range(count):
        state: dict[Any, Any] = {}
        for name, asn in ASNS.items():
            if chance.random() < 0.75:
                state["peer", name] = some_peer(name, chance)
            for prefix in PREFIXES:
                for path_id in (0, 7):
                    if chance.random() < (0.5 if path_id == 0 else 0.15):
                        state["path", name, prefix, path_id] = some_attributes(asn, chance)
        for prefix in PREFIXES:
            if chance.random() < 0.15:
                state["own", prefix] = Attributes(
                    origin=Origin.IGP,
                    local_pref=chance.choice([None, None, 0]),
                    med=chance.choice([None, 3]),
                    communities=chance.choice([(), (0xFFFFFF01,)]),
                    next_hop=chance.choice([None, None, HOPS[0]]),
                )
        for hop in HOPS:
            if chance.random() < 0.3:
                state["hop", hop] = chance.choice([(0, "eth0"), (0, "eth0"), (5, "eth1"), (5, "am-vxlan"), "unreached"])
        states.append(state)
    return states


class Speaker(Driver[Any, Any]):
    def __init__(self) -> None:
        self.chance = Random("speaker")
        self.hops: dict[Address, Any] = {}
        self.tables = Tables(self.resolve, most_paths=MOST)
        self.peers: dict[str, PeerNow] = {}
        self.paths: dict[tuple[str, Prefix, int], Attributes] = {}
        self.away: set[str] = set()
        self.fib: dict[Prefix, tuple[Any, ...]] = {}
        self.views: dict[str, dict[tuple[Prefix, int], Attributes]] = {}
        self.whole: dict[str, list[Completed]] = {}

    def resolve(self, address: Address, interface: str) -> Reach | None:
        how = self.hops.get(address, (0, ""))
        return None if how == "unreached" else Reach(*how)

    def put(self, key: Any, value: Any) -> None:
        match key:
            case ("peer", name):
                self.put_peer(name, value)
            case ("path", name, prefix, path_id):
                self.put_path((name, prefix, path_id), value)
            case ("own", prefix) if value is None:
                self.tables.withdraw_own(V4, prefix)
            case ("own", prefix):
                self.tables.originate(V4, prefix, value)
            case ("hop", address):
                self.hops.pop(address, None)
                if value is not None:
                    self.hops[address] = value
                self.tables.next_hops_changed(self.chance.choice([None, [address]]))
            case _:
                raise AssertionError(key)

    def put_peer(self, name: str, value: PeerNow | None) -> None:
        before = self.peers.pop(name, None)
        if value is None:
            self.tables.peer_down(name)
            self.away.discard(name)
            return
        self.peers[name] = value
        if name in self.away:
            return
        if before is not None and replace(before, tables=value.tables) == value:
            self.tables.settings_changed(name, value.tables)
            return
        if before is not None and self.chance.random() < 0.7:
            self.tables.peer_down(name)
        self.up(name)

    def up(self, name: str) -> None:
        peer = self.peers[name]
        self.views[name], self.whole[name] = {}, []
        self.tables.peer_up(
            name,
            Established(
                session=peer.session,
                tables=peer.tables,
                agreed=peer.agreed,
                router_id=peer.router_id,
                next_hops=dict(peer.next_hops),
                long_lived=peer.long_lived,
            ),
        )
        self.send_all(name)
        self.tables.update(name, Update(end_of_rib=V4))

    def send_all(self, name: str) -> None:
        own = [(key, attributes) for key, attributes in self.paths.items() if key[0] == name]
        for (_, prefix, path_id), attributes in self.chance.sample(own, len(own)):
            self.tables.update(name, announcement(prefix, path_id, attributes))

    def put_path(self, key: tuple[str, Prefix, int], value: Attributes | None) -> None:
        name, prefix, path_id = key
        self.paths.pop(key, None)
        if value is not None:
            self.paths[key] = value
        if name in self.away:
            return
        gone = Unreachable(family=V4, prefixes=(prefix,), path_ids=(path_id,))
        self.tables.update(name, announcement(prefix, path_id, value) if value else Update(unreachable=(gone,)))

    def flush(self) -> None:
        chance = self.chance
        name = chance.choice(list(ASNS))
        match chance.randrange(9):
            case 0 if name in self.peers:
                self.tables.peer_down(name, keep=[V4])
                self.away.add(name)
            case 1 if name in self.away:
                self.come_back(name)
            case 2 if name in self.away:
                self.tables.long_lived_begun(name, V4)
            case 3 if name in self.away:
                self.tables.stale_expired(name, V4)
            case 4 if name not in self.away:
                self.tables.refresh_begin(name, V4)
                self.send_all(name)
                self.tables.refresh_end(name, V4)
            case 5 if name in self.peers:
                self.tables.refresh_requested(name, V4)
            case 6:
                self.tables.defer(V4, deferred=chance.random() < 0.5)
            case _:
                pass
        self.decide(chance.choice([1, 3, 100]))
        for name in chance.sample(list(ASNS), 3):
            self.send(name, chance.choice([1, 2, 100]))

    def come_back(self, name: str) -> None:
        self.away.discard(name)
        if name in self.peers:
            self.up(name)

    def decide(self, limit: int) -> None:
        for change in self.tables.decide(limit):
            assert shown(self.fib.get(change.prefix, ())) == shown(change.before)
            assert change.before != change.after
            self.fib.pop(change.prefix, None)
            if change.after:
                self.fib[change.prefix] = change.after

    def send(self, name: str, limit: int) -> bool:
        pending = self.tables.pending(name, limit)
        if name not in self.views:
            assert not pending.batches
            return False
        view = self.views[name]
        for batch in pending.batches:
            for gone in batch.unreachable:
                for prefix, path_id in zip(gone.prefixes, gone.path_ids or (0,) * len(gone.prefixes), strict=True):
                    assert (prefix, path_id) in view, "what was not sent is not taken back"
                    del view[prefix, path_id]
            for come in batch.reachable:
                for prefix, path_id in zip(come.prefixes, come.path_ids or (0,) * len(come.prefixes), strict=True):
                    view[prefix, path_id] = come.attributes
        self.whole[name] += [what for _, what in pending.completed]
        return pending.more

    def settle(self) -> object:
        self.tables.defer(V4, deferred=False)
        for name in list(self.away):
            self.come_back(name)
        while self.tables.undecided:
            self.decide(self.chance.choice([1, 4, 1000]))
        found: dict[Any, Any] = {("used", prefix): shown(paths) for prefix, paths in self.fib.items()}
        assert found == {("used", prefix): shown(paths) for prefix, paths in self.tables.chosen(V4).items()}
        for name in self.peers:
            while self.send(name, self.chance.choice([1, 3, 1000])):
                pass
            assert not self.tables.owes(name)
            assert self.whole[name][:1] == [Completed.INITIAL]
            assert self.whole[name].count(Completed.INITIAL) == 1
            assert self.tables.count(name)[V4].stale == 0
            sent = {(prefix, path_id): attributes for prefix, path_id, attributes in self.tables.sent(name, V4)}
            assert sent == self.views[name]
            found |= {("sent", name, *key): attributes for key, attributes in sent.items()}
        return found


def shown(paths: tuple[Any, ...]) -> list[Any]:
    return [(path.source.name, path.path_id, path.attributes) for path in paths]


def announcement(prefix: Prefix, path_id: int, attributes: Attributes) -> Update:
    reachable = Reachable(family=V4, attributes=replace(attributes), prefixes=(prefix,), path_ids=(path_id,))
    return Update(reachable=(reachable,))


def oracle(present: dict[Any, Any]) -> object:
    peers: dict[str, PeerNow] = {key[1]: value for key, value in present.items() if key[0] == "peer"}
    reference = Reference(
        V4,
        peers,
        {key[1:]: value for key, value in present.items() if key[0] == "path"},
        {key[1]: value for key, value in present.items() if key[0] == "own"},
        {key[1]: None if value == "unreached" else value for key, value in present.items() if key[0] == "hop"},
        most=MOST,
    )
    expected: dict[Any, Any] = {
        ("used", prefix): [(one.name, one.path_id, one.attributes) for one in chosen]
        for prefix, chosen in reference.chosen.items()
    }
    for name in peers:
        expected |= {("sent", name, *key): attributes for key, attributes in reference.sent(name).items()}
    return expected


@every_order(12)
def test_the_tables_hold_what_the_present_says(expander: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:  # peers fall behind all the time
        for name, least in (("LONG_LOG", 2), ("LOG_PER_PREFIX", 1), ("FOLDED_AT_ONCE", 3)):
            monkeypatch.setattr(groups, name, least)
    follow(Speaker, oracle, some_states(seed), expander, seed)


def test_the_states_are_worth_following() -> None:
    """Many prefixes have a choice, several paths are used together, and peers are sent something."""
    outputs: list[Any] = [oracle(state) for seed in range(12) for state in some_states(seed)]
    used = [paths for output in outputs for key, paths in output.items() if key[0] == "used"]
    assert len(used) > 150
    assert sum(len(paths) > 1 for paths in used) > 10
    assert sum(key[0] == "sent" for output in outputs for key in output) > 400
