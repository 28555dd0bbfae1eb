"""Departures of freed addresses: by rows, then over every history against one who knows the truth of all nodes."""

from __future__ import annotations

import random
from ipaddress import ip_address

from proto.addresses import AcknowledgedEndpoints
from proto.net import Address
from services.dataplane.core.ipam.departures import Departures

A = ip_address("10.244.0.1")
NONE: frozenset[Address] = frozenset()


def acknowledged(on: Departures, sequence: int, epoch: str = "e", freed_at: float = 1.0) -> bool:
    on.acknowledged = AcknowledgedEndpoints(epoch, sequence)
    return on.is_known_to_all(A, freed_at)


def test_an_address_has_left_where_no_slot_shows_it_any_more() -> None:
    departures = Departures()
    departures.observe({A: 1.0}, frozenset({A}), "e", 1, 5)
    assert not acknowledged(departures, 900), "its endpoint is still on the bus"
    departures.observe({A: 1.0}, NONE, "e", 1, 6)
    departures.observe({A: 1.0}, NONE, "e", 1, 9)
    assert not acknowledged(departures, 5)
    assert acknowledged(departures, 6), "later changes of the bucket put nothing off"


def test_another_life_of_the_bucket_or_a_new_list_counts_from_there() -> None:
    departures = Departures()
    departures.observe({A: 1.0}, NONE, "e", 1, 6)
    assert not acknowledged(departures, 900, "f")
    departures.observe({A: 1.0}, NONE, "f", 2, 3)
    assert acknowledged(departures, 3, "f")
    departures.observe({A: 1.0}, NONE, "f", 3, 8)
    assert not acknowledged(departures, 7, "f"), "what was known before a list may be of a bucket put back"


def test_an_address_that_was_given_and_freed_again_leaves_again() -> None:
    departures = Departures()
    departures.observe({A: 1.0}, NONE, "e", 1, 6)
    assert not acknowledged(departures, 900, freed_at=90.0), "nobody has looked since"
    departures.observe({A: 90.0}, NONE, "e", 1, 20)
    assert not acknowledged(departures, 19, freed_at=90.0), "its second pod was gone at 20"
    departures.observe({}, NONE, "e", 1, 21)
    assert not acknowledged(departures, 900), "it is held: nobody asks"


def test_a_node_that_knows_nothing_says_no() -> None:
    assert not acknowledged(Departures(), 0, "")
    assert not acknowledged(Departures(), 900)


def test_what_is_known_to_all_is_in_no_live_nodes_map() -> None:
    assert sum(history(seed) for seed in range(150)) > 1000, "addresses that are known to all are looked at"


def history(seed: int) -> int:
    """Nodes follow one log of changes at their own speed, one may stand still, and the bus may begin anew. How often an
    address was known to all.
    """
    chance = random.Random(seed)
    addresses = [ip_address(f"10.244.0.{number}") for number in range(3)]
    departures, log, epoch, clock = Departures(), list[tuple[Address, bool]](), 1, 0.0
    freed = dict.fromkeys(addresses, 0.0)
    reached = {"n1": 0, "n2": 0, "n3": 0}
    known = 0

    def shown(upto: int) -> frozenset[Address]:
        there: set[Address] = set()
        for address, is_up in log[:upto]:
            (there.add if is_up else there.discard)(address)
        return frozenset(there)

    for _ in range(120):
        clock += 1.0
        match chance.choice(["up", "down", "down", "follow", "follow", "follow", "observe", "observe", "lost"]):
            case "up" if freed:
                address = chance.choice(list(freed))
                del freed[address]
                log.append((address, True))
            case "down" if held := [one for one in addresses if one not in freed]:
                address = chance.choice(held)
                freed[address] = clock
                if chance.random() < 0.7:
                    log.append((address, False))
            case "follow":
                node = chance.choice(list(reached))
                reached[node] = chance.randint(reached[node], len(log))
            case "observe":
                log += [(address, False) for address in shown(len(log)) & freed.keys() if chance.random() < 0.5]
                departures.observe(freed, shown(len(log)), str(epoch), epoch, len(log))
            case "lost" if chance.random() < 0.2:
                epoch += 1
                log[:] = [(address, True) for address in addresses if address not in freed]
                reached = dict.fromkeys(reached, 0)
        departures.acknowledged = AcknowledgedEndpoints(str(epoch), min(reached.values()))
        for address in freed:
            if departures.is_known_to_all(address, freed[address]):
                known += 1
                assert all(address not in shown(upto) for upto in reached.values())
    return known


def test_what_left_under_our_eyes_is_withheld_until_all_know() -> None:
    departures = Departures()
    departures.observe({}, frozenset({A}), "e", 1, 5)
    departures.observe({A: 1.0}, NONE, "e", 1, 6)
    for by_all, withheld in ((AcknowledgedEndpoints("e", 5), True), (AcknowledgedEndpoints("e", 6), False)):
        departures.acknowledged = by_all
        assert departures.is_withheld(A, 1.0) is withheld
        assert departures.is_known_to_all(A, 1.0) is not withheld


def test_where_nothing_is_known_time_alone_counts() -> None:
    departures = Departures()
    departures.acknowledged = AcknowledgedEndpoints("e", 3)
    assert not departures.is_withheld(A, 1.0), "nobody has looked"
    departures.observe({A: 1.0}, NONE, "e", 1, 6)
    assert not departures.is_withheld(A, 1.0), "it was gone before this agent looked, perhaps long ago"
    departures.observe({A: 9.0}, NONE, "e", 1, 7)
    assert departures.is_withheld(A, 9.0)
    departures.acknowledged = AcknowledgedEndpoints("", 0)
    assert not departures.is_withheld(A, 9.0), "a live node has acknowledged nothing"
    departures.observe({A: 9.0}, NONE, "e", 2, 8)
    departures.acknowledged = AcknowledgedEndpoints("e", 3)
    assert not departures.is_withheld(A, 9.0), "the view was listed anew"
