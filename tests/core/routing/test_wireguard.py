"""Which keys a node shows, which slot a pair takes, which peers a device has, and that a rotation ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from proto.net import Network
from proto.routes import NodeRoutes, WireguardKey
from services.routing.core.models.wireguard import prohibited
from services.routing.core.wireguard import (
    KEEPALIVE,
    NOBODY,
    PROVED,
    Known,
    OwnKeys,
    PeerStep,
    Remote,
    WantedPeer,
    best_slot,
    holders,
    networks_of_nodes,
    next_step,
    parse_key,
    peer_steps,
    public_text,
    remotes,
    shown,
    slot_now,
    wanted_peers,
)
from tests.core.routing.test_plan import blocks, claim, node

NOW = 1_700_000_000.0


def key(number: int) -> bytes:
    return bytes([number]) * 32


def own(home: int = 0, *, rotating: bool = False, **keys: int) -> OwnKeys:
    """``s0=1, s1=2``: keys by slot."""
    given_keys = {int(slot[1]): key(number) for slot, number in keys.items()} or {home: key(1)}
    return OwnKeys(home=home, keys=given_keys, made=0, rotating=rotating)


def announcing(name: str, *slots: str, underlay: str = "172.30.0.12") -> NodeRoutes:
    """``"0 home 7"``: slot, state, number of the key."""
    keys = []
    for slot, state, number in (text.split() for text in slots):
        keys.append(WireguardKey(int(slot), public_text(key(int(number))), 51820 + int(slot), state))
    return structs.replace(node(name, underlay), wireguard=tuple(keys))


def states(mine: Iterable[WireguardKey]) -> list[str]:
    return [f"{one.slot} {one.state} {parse_key(one.key)[0]}" for one in mine]  # type: ignore[index]


@pytest.mark.parametrize(
    ("mine", "others", "expected"),
    [
        pytest.param(own(), [], ["0 home 1"], id="alone"),
        pytest.param(own(), [announcing("n2", "0 home 2")], ["0 home 1"], id="all are in slot 0"),
        pytest.param(own(), [announcing("n2", "1 home 2")], ["0 home 1", "1 guest 1"], id="a guest with the same key"),
        pytest.param(own(), [announcing("n2", "0 home 2", "1 guest 2")], ["0 home 1"], id="guests need no guest"),
        pytest.param(
            own(), [announcing("n2", "0 home 2", "1 leaving 2")], ["0 home 1", "1 guest 1"], id="stays until left"
        ),
        pytest.param(own(1), [announcing("n2", "0 home 2")], ["1 home 1"], id="slot 0 comes to slot 1"),
        pytest.param(own(1), [announcing("n2", "0 home 2", "1 guest 2")], ["1 home 1"], id="and has come"),
        pytest.param(
            own(1), [announcing("n2", "0 home 2", "1 leaving 2")], ["1 home 1", "0 guest 1"], id="but not now"
        ),
        pytest.param(own(1), [announcing("n2", "1 home 3", "0 leaving 2")], ["1 home 1", "0 guest 1"], id="nor yet"),
        pytest.param(own(1, s0=5, s1=1), [], ["1 home 1", "0 leaving 5"], id="leaves its old key"),
        pytest.param(
            own(rotating=True),
            [announcing("n2", "1 home 2")],
            ["0 home 1", "1 leaving 1"],
            id="makes room for a new one",
        ),
    ],
)
def test_which_slots_a_node_shows(mine: OwnKeys, others: list[NodeRoutes], expected: list[str]) -> None:
    assert states(shown(mine, others, 51820)) == expected


@pytest.mark.parametrize(
    ("mine", "peer", "slot"),
    [
        pytest.param(["0 home 1"], ["0 home 2"], 0, id="home of both"),
        pytest.param(["0 home 1", "1 guest 1"], ["0 home 2", "1 guest 2"], 0, id="both are guests elsewhere"),
        pytest.param(["0 home 1", "1 guest 1"], ["1 home 2", "0 guest 2"], 1, id="each is the other's guest"),
        pytest.param(["0 home 1", "1 guest 1"], ["1 home 2"], 1, id="a guest"),
        pytest.param(["1 home 3", "0 leaving 1"], ["0 home 2", "1 guest 2"], 1, id="away from what is left"),
        pytest.param(["0 home 1", "1 guest 1"], ["1 home 3", "0 leaving 2"], 1, id="at both ends"),
        pytest.param(["1 home 3", "0 leaving 1"], ["0 home 2"], 0, id="until the other one is there"),
        pytest.param(["1 home 3", "0 leaving 1"], ["0 home 2", "1 leaving 2"], 1, id="the smaller name first"),
        pytest.param(["0 home 1"], ["1 home 2"], None, id="none in common yet"),
        pytest.param(["0 home 1"], [], None, id="it has no WireGuard"),
    ],
)
def test_both_ends_of_a_pair_come_to_the_same_slot(mine: list[str], peer: list[str], slot: int | None) -> None:
    one, other = announcing("n1", *mine), announcing("n2", *peer)
    assert best_slot("n1", one.wireguard, other) == slot
    assert best_slot("n2", other.wireguard, one) == slot


@pytest.mark.parametrize(
    ("best", "current", "proved", "shared", "slot"),
    [
        pytest.param(0, None, set(), {0}, 0, id="the first way is not proved: packets wait for the handshake"),
        pytest.param(1, 0, set(), {0, 1}, 0, id="stays until the other is proved"),
        pytest.param(1, 0, {0, 1}, {0, 1}, 1, id="moves when it is"),
        pytest.param(1, 0, set(), {1}, 1, id="goes where the peer is"),
        pytest.param(None, 0, {0}, {0}, None, id="no slot in common"),
    ],
)
def test_packets_move_when_the_other_slot_is_proved(
    best: int | None, current: int | None, proved: set[int], shared: set[int], slot: int | None
) -> None:
    assert slot_now(best, current, proved, shared) == slot


# --- peers ---


def known(*others: NodeRoutes, held: Mapping[str, str] | None = None, **more: Any) -> Known:
    holds = {"n1": "10.244.0.0/26", "n2": "10.244.0.64/26 fd00:10:244::40/122"} if held is None else held
    announced = {one.node: one for one in others}
    state: dict[str, Any] = {
        "underlay": {one.node: one.underlay for one in others},
        "families": frozenset((4, 6)),
        **more,
    }
    return Known(me="n1", routes=announced, blocks=blocks(**holds), **state)


def networks(*texts: str) -> frozenset[Network]:
    return frozenset(map(ip_network, texts))


N2 = announcing("n2", "0 home 2", underlay="172.30.0.12 fd00:172:30::12")


def test_a_peer_may_use_what_ipam_gave_it_and_nothing_that_it_says() -> None:
    lying = structs.replace(N2, prefixes=(ip_network("10.244.0.0/26"), ip_network("0.0.0.0/0")))
    claims = (claim("10.244.1.7", "n2"), claim("10.244.0.70", "n2"), claim("10.244.1.8", "n3"))
    found, faults = remotes(known(lying, claims=claims), own(), {})
    assert faults == []
    assert found["n2"].allowed == networks(
        "10.244.0.64/26", "fd00:10:244::40/122", "10.244.1.7/32", "172.30.0.12/32", "fd00:172:30::12/128"
    )
    assert found["n2"].addresses == (ip_address("172.30.0.12"), ip_address("fd00:172:30::12"))
    only6, _ = remotes(known(lying, families=frozenset((6,))), own(), {})
    assert only6["n2"].addresses == (ip_address("fd00:172:30::12"),)


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        pytest.param(public_text(key(7)), key(7), id="a key"),
        pytest.param("", None, id="empty"),
        pytest.param(public_text(bytes(32)), None, id="zeros"),
        pytest.param(public_text(key(7)[:31]), None, id="short"),
        pytest.param(public_text(key(7)) + "AAAA", None, id="long"),
        pytest.param("ä" * 44, None, id="no base64"),
    ],
)
def test_what_is_a_key(text: str, raw: bytes | None) -> None:
    assert parse_key(text) == raw


@pytest.mark.parametrize(
    ("others", "words"),
    [
        pytest.param([announcing("n2", "0 home 1")], "this node's own WireGuard key", id="ours"),
        pytest.param([announcing("n2", "0 home 0")], "a WireGuard key that is none", id="zeros"),
        pytest.param([announcing("n2", "7 home 2")], "a WireGuard key that is none", id="no slot"),
        pytest.param([structs.replace(N2, underlay=())], "no address on the shared network", id="no address"),
    ],
)
def test_what_cannot_be_a_peer_is_a_fault_and_none(others: list[NodeRoutes], words: str) -> None:
    found, faults = remotes(known(*others), own(), {})
    assert found == {}
    assert [words in fault.fault and fault.of_others for fault in faults] == [True]


def test_a_key_that_two_announce_stays_with_who_has_it() -> None:
    """Whoever tells another's key does not cut that one off, however it is named; nobody knows whose a new one is."""
    for liar, honest in (("n0", "n2"), ("n2", "n0")):
        two = known(
            announcing(liar, "0 home 2", underlay="172.30.0.9"),
            announcing(honest, "0 home 2"),
            held={liar: "10.244.9.0/26", honest: "10.244.0.64/26"},
        )
        found, faults = remotes(two, own(), {})
        assert found == {}
        assert len(faults) == 2
        peer = Peer(key(2), allowed=networks("10.244.0.64/26", "172.30.0.12/32"))
        held = holders({0: [peer]}, networks_of_nodes(two))
        found, faults = remotes(two, own(), held)
        assert list(found) == [honest]
        assert [liar in fault.fault for fault in faults] == [True]


@dataclass(frozen=True)
class Peer:
    """As a device has it."""

    public_key: bytes
    endpoint: Any = (ip_address("172.30.0.12"), 51820)
    keepalive: int = KEEPALIVE
    allowed: frozenset[Network] = frozenset()
    handshake: int = int(NOW) - 1


WANTED = WantedPeer(
    addresses=(ip_address("172.30.0.12"),),
    port=51820,
    keepalive=KEEPALIVE,
    allowed=networks("10.1.0.0/26", "10.2.0.0/26"),
)
THERE = Peer(key(2), allowed=WANTED.allowed)
WHOLE = Known(
    me="n1",
    blocks=blocks(n2="10.1.0.0/26 10.2.0.0/26"),
    complete=True,
    reported=frozenset({"n2", "n3"}),
)


@pytest.mark.parametrize(
    ("wanted", "seen", "steps"),
    [
        pytest.param({key(2): WANTED}, [THERE], [], id="as it should be: nothing is announced"),
        pytest.param(
            {key(2): WANTED},
            [],
            [
                PeerStep(
                    public_key=key(2),
                    endpoint=(ip_address("172.30.0.12"), 51820),
                    keepalive=KEEPALIVE,
                    allow=(ip_network("10.1.0.0/26"), ip_network("10.2.0.0/26")),
                )
            ],
            id="a new one",
        ),
        pytest.param({}, [THERE], [PeerStep(public_key=key(2), remove=True)], id="gone"),
        pytest.param(
            {key(2): WANTED},
            [replace(THERE, allowed=networks("10.1.0.0/26"))],
            [PeerStep(public_key=key(2), existing=True, allow=(ip_network("10.2.0.0/26"),))],
            id="one address more",
        ),
        pytest.param(
            {key(2): replace(WANTED, allowed=networks("10.1.0.0/26"))},
            [THERE],
            [
                PeerStep(public_key=NOBODY, allow=(ip_network("10.2.0.0/26"),)),
                PeerStep(public_key=NOBODY, remove=True),
            ],
            id="one address less, and the others are never nobody's",
        ),
        pytest.param(
            {key(2): WANTED},
            [replace(THERE, endpoint=(ip_address("203.0.113.9"), 999))],
            [],
            id="heard from elsewhere, and alive: WireGuard knows better",
        ),
        pytest.param(
            {key(2): WANTED},
            [replace(THERE, endpoint=(ip_address("203.0.113.9"), 999), handshake=int(NOW) - PROVED)],
            [PeerStep(public_key=key(2), existing=True, endpoint=(ip_address("172.30.0.12"), 51820))],
            id="silent: where it is said to be",
        ),
        pytest.param(
            {key(3): WANTED},
            [THERE],
            [
                PeerStep(
                    public_key=key(3),
                    endpoint=(ip_address("172.30.0.12"), 51820),
                    keepalive=KEEPALIVE,
                    allow=(ip_network("10.1.0.0/26"), ip_network("10.2.0.0/26")),
                ),
                PeerStep(public_key=key(2), remove=True),
            ],
            id="another key: its addresses go over first",
        ),
        pytest.param(
            {}, [Peer(NOBODY)], [PeerStep(public_key=NOBODY, remove=True)], id="left over of a pass that died"
        ),
    ],
)
def test_a_device_is_given_what_differs(
    wanted: dict[bytes, WantedPeer], seen: list[Peer], steps: list[PeerStep]
) -> None:
    assert list(peer_steps(wanted, seen, NOW, WHOLE)) == steps


@pytest.mark.parametrize(
    ("known", "gone"),
    [
        pytest.param(WHOLE, True, id="the node has told all of its own, and no such key"),
        pytest.param(replace(WHOLE, reported=frozenset({"n3"})), False, id="it has not been heard of yet"),
        pytest.param(replace(WHOLE, complete=False), False, id="something is not known whole"),
        pytest.param(replace(WHOLE, blocks={}, reported=frozenset()), True, id="it holds nothing any more"),
        pytest.param(
            replace(WHOLE, blocks={}, claims=(claim("10.9.0.1", "n2"),), reported=frozenset()),
            False,
            id="it holds a kept address",
        ),
    ],
)
def test_a_peer_goes_when_whoever_has_its_addresses_has_reported_all(known: Known, gone: bool) -> None:
    seen = [replace(THERE, allowed=networks("10.1.0.0/26", "10.9.0.1/32", "172.30.0.12/32"))]
    assert bool(peer_steps({}, seen, NOW, known)) == gone


def test_a_peer_keeps_an_address_that_may_be_its_own_yet() -> None:
    fewer = {key(2): replace(WANTED, allowed=networks("10.1.0.0/26"))}
    assert peer_steps(fewer, [THERE], NOW, replace(WHOLE, complete=False)) == ()


ADDRESSES = tuple(ip_network(f"10.{number}.0.0/24") for number in range(6))
STATES = st.dictionaries(st.integers(2, 5), st.frozensets(st.sampled_from(ADDRESSES)), max_size=4)


@given(before=STATES, after=STATES)
def test_any_state_becomes_any_other_and_no_address_is_lost_on_the_way(
    before: dict[int, frozenset[Network]], after: dict[int, frozenset[Network]]
) -> None:
    """A device as WireGuard has it: an address is one peer's, and whoever gets it takes it from the other."""
    table = {network: key(number) for number, held in before.items() for network in sorted(held, key=str)}
    wanted = {network: key(number) for number, held in after.items() for network in sorted(held, key=str)}
    peers = {key(number) for number in before}
    seen = [Peer(one, allowed=frozenset(net for net, owner in table.items() if owner == one)) for one in peers]
    asked = {
        key(number): replace(WANTED, allowed=frozenset(net for net, owner in wanted.items() if owner == key(number)))
        for number in after
    }
    kept = {network for network in table if network in wanted}
    for step in peer_steps(asked, seen, NOW, WHOLE):
        if step.remove:
            peers.discard(step.public_key)
            table = {network: owner for network, owner in table.items() if owner != step.public_key}
        else:
            assert not step.existing or step.public_key in peers
            peers.add(step.public_key)
            table.update(dict.fromkeys(step.allow, step.public_key))
        assert kept <= table.keys(), "at no moment nobody's"
    assert table == wanted
    assert peers == asked.keys()


def test_keepalives_go_by_the_slots_that_a_pair_takes_and_is_to_take() -> None:
    remote = Remote(
        node="n2", keys={0: (key(2), 51820), 1: (key(3), 51821)}, addresses=N2.underlay, allowed=frozenset()
    )

    def keepalives(best: int, now: int) -> list[tuple[bytes, int, int]]:
        wanted = [wanted_peers(slot, {"n2": remote}, {"n2": best}, {"n2": now}) for slot in (0, 1)]
        return [(one, peer.port, peer.keepalive) for peers in wanted for one, peer in peers.items()]

    first = wanted_peers(1, {"n2": remote}, {"n2": 1}, {"n2": 1}, {key(3)})
    assert [peer.keepalive for peer in first.values()] == [0], "the other one begins"
    assert keepalives(1, 1) == [(key(2), 51820, 0), (key(3), 51821, KEEPALIVE)]
    assert keepalives(1, 0) == [(key(2), 51820, KEEPALIVE), (key(3), 51821, KEEPALIVE)], "the present one, too"


# --- encryption is asked for ---


def test_whole_pools_are_prohibited_beneath_their_routes() -> None:
    pools = four, six = ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48")
    alone = ip_network("10.77.0.0/26")
    inside = [ip_network("10.244.0.64/26"), ip_network("fd00:10:244::40/122"), alone]
    assert prohibited(pools, inside, frozenset((4, 6))) == [four, six, alone]
    assert prohibited(pools, inside, frozenset((4,))) == [four, alone]
    assert prohibited(pools, inside, frozenset()) == []


# --- rotation ---


@pytest.mark.parametrize(
    ("mine", "kept", "due", "drained", "step"),
    [
        pytest.param(own(), ["0 home 1"], False, True, "stay", id="young"),
        pytest.param(own(), ["0 home 1"], True, False, "make", id="the other slot is free"),
        pytest.param(own(), ["0 home 1", "1 guest 1"], True, True, "begin", id="guests have to go first"),
        pytest.param(own(rotating=True), ["0 home 1", "1 leaving 1"], False, False, "stay", id="they are on their way"),
        pytest.param(own(rotating=True), ["0 home 1", "1 leaving 1"], False, True, "make", id="they have gone"),
        pytest.param(own(1, s0=1, s1=2), ["1 home 2", "0 leaving 1"], True, False, "stay", id="packets come yet"),
        pytest.param(own(1, s0=1, s1=2), ["1 home 2", "0 leaving 1"], False, True, "drop", id="no packet comes"),
    ],
)
def test_the_steps_of_a_rotation(mine: OwnKeys, kept: list[str], due: bool, drained: bool, step: str) -> None:
    assert next_step(mine, announcing("n1", *kept).wireguard, due=due, drained=drained) == step


@dataclass
class Rotating:
    """A node on paper. What it tells is what its devices have as of its last pass."""

    name: str
    keys: OwnKeys
    announced: NodeRoutes = field(init=False)
    slots: dict[str, int] = field(default_factory=dict)
    best: dict[str, int | None] = field(default_factory=dict)
    peers: dict[tuple[str, int], str] = field(default_factory=dict)
    """Public keys of the others on its devices."""
    proved: dict[tuple[str, int], int] = field(default_factory=dict)
    """When there was a handshake."""
    heard: dict[int, int] = field(default_factory=dict)
    """When something came by a slot."""

    def __post_init__(self) -> None:
        self.announced = announcing(self.name)

    @property
    def has(self) -> dict[int, str]:
        """Keys of its devices."""
        return {one.slot: one.key for one in self.announced.wireguard}


class Rounds:
    """Nodes on paper that act in any order, on what the others announced at their own last pass.

    At each moment each device sends keepalives, and makes a handshake where both ends have the other's present key.
    """

    PROVES, DRAINED = 30, 35

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock, self.made = 0, 10
        self.nodes: dict[str, Rotating] = {}
        for number, name in enumerate(("n1", "n2", "n3", "n4"), start=1):
            home = self.random.choice((0, 1))
            self.nodes[name] = Rotating(name, OwnKeys(home=home, keys={home: key(number)}, made=0))
        self.due: set[str] = set()

    def tick(self) -> None:
        """Keepalives and handshakes."""
        self.clock += 1
        for sender in self.nodes.values():
            for name, best in sender.best.items():
                receiver = self.nodes[name]
                for slot in {best, sender.slots.get(name)} & receiver.has.keys() & sender.has.keys():
                    receiver.heard[slot] = self.clock  # type: ignore[index]
                    knows = sender.peers.get((name, slot)) == receiver.has[slot]  # type: ignore[index, arg-type]
                    known = receiver.peers.get((sender.name, slot)) == sender.has[slot]  # type: ignore[index, arg-type]
                    if knows and known:
                        sender.heard[slot] = self.clock  # type: ignore[index]
                        sender.proved[name, slot] = receiver.proved[sender.name, slot] = self.clock  # type: ignore[index]

    def act(self, name: str) -> None:
        """One pass of a node."""
        node = self.nodes[name]
        others = {other.name: other.announced for other in self.nodes.values() if other is not node}
        other_slot = node.keys.other
        silent = self.clock - node.heard.get(other_slot, 0) >= self.DRAINED
        drained = silent and other_slot not in node.slots.values()
        mine = shown(node.keys, others.values(), 51820, in_use=other_slot in node.has and not drained)
        for slot in {one.slot for one in mine} - node.has.keys():
            node.heard[slot] = self.clock
        node.announced = structs.replace(node.announced, wireguard=mine)
        node.peers = {(peer, one.slot): one.key for peer, announced in others.items() for one in announced.wireguard}
        for peer, announced in others.items():
            common = {one.slot for one in mine} & {one.slot for one in announced.wireguard}
            proved = {slot for slot in common if self.clock - node.proved.get((peer, slot), -99) < self.PROVES}
            node.best[peer] = best_slot(name, mine, announced)
            slot_of = slot_now(node.best[peer], node.slots.get(peer), proved, common)
            node.slots = {**node.slots, peer: slot_of} if slot_of is not None else node.slots
        step = next_step(node.keys, mine, due=name in self.due, drained=drained)
        if step in ("begin", "make"):
            self.due.discard(name)
        if step == "begin":
            node.keys = replace(node.keys, rotating=True)
        elif step == "make":
            self.made += 1
            kept = node.keys.keys[node.keys.home]
            node.keys = OwnKeys(home=other_slot, keys={node.keys.home: kept, other_slot: key(self.made)}, made=0)
        elif step == "drop":
            node.keys = replace(node.keys, keys={node.keys.home: node.keys.keys[node.keys.home]})

    def lost(self) -> list[str]:
        """Pairs whose packets meet no device, or one that does not know them."""
        found = []
        for sender in self.nodes.values():
            for name, slot in sender.slots.items():
                receiver = self.nodes[name]
                knows = sender.peers.get((name, slot)) == receiver.has.get(slot)
                known = receiver.peers.get((sender.name, slot)) == sender.has.get(slot)
                if not (knows and known and slot in receiver.has):
                    found.append(f"{sender.name} to {name} by {slot}")
        return found


@pytest.mark.parametrize("seed", range(5))
def test_rotations_of_all_nodes_at_once_end_and_no_packet_meets_a_key_that_is_gone(seed: int) -> None:
    rounds = Rounds(seed)
    names = sorted(rounds.nodes)
    for _ in range(120):
        rounds.tick()
        rounds.act(rounds.random.choice(names))
    assert rounds.lost() == []
    assert all(len(node.slots) == 3 for node in rounds.nodes.values()), "all reach all"
    first = {name: node.keys.key_of(node.keys.home) for name, node in rounds.nodes.items()}
    for attempt in range(1000):
        if attempt % 40 == 0 and attempt < 160:
            rounds.due.add(names[attempt // 40])
        rounds.tick()
        rounds.act(rounds.random.choice(names))
        assert rounds.lost() == [], attempt
    for name, rotated in rounds.nodes.items():
        assert list(rotated.keys.keys) == [rotated.keys.home], f"{name} has one key"
        assert rotated.keys.keys[rotated.keys.home] != first[name], f"{name} has a new one"
