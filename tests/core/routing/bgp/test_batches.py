"""Batches of UPDATE messages: what came between two passes, which of them named a prefix last, and what is kept."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from services.routing.core.bgp import batches as module
from services.routing.core.bgp.batches import TRACED_A_SECOND, TRACED_AT_ONCE, Batch, Batches
from services.routing.core.bgp.values import Attributes, Origin, Reachable, Unreachable, Update, prefix_of

IGP = Attributes(origin=Origin.IGP)


def update(*texts: str) -> Update:
    """``10.1.0.0/24`` is announced, ``-10.1.0.0/24`` is taken back; each is a part of its own."""
    come: list[Reachable] = []
    gone: list[Unreachable] = []
    for text in texts:
        family, prefix = prefix_of(ip_network(text.removeprefix("-")))
        if text.startswith("-"):
            gone.append(Unreachable(family=family, prefixes=(prefix,)))
        else:
            come.append(Reachable(family=family, attributes=IGP, prefixes=(prefix,)))
    return Update(reachable=tuple(come), unreachable=tuple(gone))


def find(batches: Batches, text: str) -> Batch | None:
    return batches.find(*prefix_of(ip_network(text)))


def test_a_batch_is_what_came_between_two_passes() -> None:
    batches = Batches()
    assert batches.take(1.0) is None
    batches.add(2.0, "b", update("10.1.0.0/24", "-10.2.0.0/24"))
    batches.add(3.0, "a", update("10.3.0.0/24"))
    batches.add(4.0, "b", Update(end_of_rib=prefix_of(ip_network("10.0.0.0/8"))[0]))
    batch = batches.take(5.0)
    assert batch is not None
    assert (batch.begun, list(batch.peers), batch.messages, batch.prefixes) == (2.0, ["b", "a"], 2, 3)
    assert batches.take(6.0) is None


def test_the_last_batch_that_named_a_prefix_is_found_also_of_one_that_is_gone() -> None:
    batches = Batches()
    batches.add(1.0, "a", update("10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64"))
    first = batches.take(2.0)
    batches.add(3.0, "a", update("-10.2.0.0/24"))
    second = batches.take(4.0)
    assert first is not second
    assert find(batches, "10.1.0.0/24") is first
    assert find(batches, "fd00:1::/64") is first
    assert find(batches, "10.2.0.0/24") is second
    assert find(batches, "10.1.0.0/25") is None


def test_what_is_kept_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 10 * (module.MESSAGE_COST + 1))
    batches = Batches()
    for number in range(100):
        batches.add(float(number), "a", update(f"10.{number}.0.0/16"))
        batches.take(float(number))
        assert len(batches._kept) <= 10
    assert find(batches, "10.89.0.0/16") is None
    assert find(batches, "10.90.0.0/16") is not None


def test_a_noisy_peer_is_traced_by_a_rate() -> None:
    batches = Batches()
    traced = 0
    for number in range(1000):  # one each ten milliseconds, for ten seconds
        batches.add(number / 100, "a", update("10.1.0.0/24"))
        traced += batches.take(number / 100) is not None
    assert TRACED_AT_ONCE < traced <= TRACED_AT_ONCE + 10 * TRACED_A_SECOND
    found = find(batches, "10.1.0.0/24")
    assert found is not None
    assert not found.trace_id
