"""What the feed keeps of a view's keys is what a look at all of them gives, and costs what changed."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from chassis.bus.cursor import Cursor
from chassis.bus.entry import Entry
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from proto.codec import encode_segment
from proto.policy import CidrPartition, Revision
from services.dataplane.endpoint.publish import EndpointsOut
from services.dataplane.feed import Followed, partition_of
from services.dataplane.signals import Signal


def cut(namespace: str, sequence: int) -> CidrPartition:
    return CidrPartition(Revision(epoch="e", sequence=sequence), (), namespace, "digest")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_it_is_as_if_all_were_looked_at(seed: int) -> None:
    rng, cursor = random.Random(seed), Cursor()
    entries: dict[str, Entry[Any]] = {}
    followed = Followed(cursor, entries, CidrPartition, partition_of)
    for sequence in range(1, 120):
        name = rng.choice(["shop", "x.y", "*", "z"])
        key = rng.choice([f"_cidrs.{encode_segment(name)}", "_frontier.1", "00000000000003e8", "_cidrs."])
        if rng.random() < 0.3:
            entries.pop(key, None)
        else:
            value = rng.choice([cut(name, sequence), "of another kind"])
            entries[key] = Entry(key, value, sequence, "")
        cursor.mark(key)
        if rng.random() < 0.5:
            assert dict(followed.now()) == {
                namespace: entry.value
                for key, entry in entries.items()
                if (namespace := partition_of(key)) is not None and isinstance(entry.value, CidrPartition)
            }


def test_one_change_among_5000_endpoints_looks_at_one_key() -> None:
    asked: list[str] = []
    entries = {f"n{number % 3}.slot.{number}": Entry("", number, 1, "") for number in range(5000)}
    cursor = Cursor()
    cursor.mark(*entries)

    def own(key: str) -> str | None:
        asked.append(key)
        return key if key.startswith("n1.") else None

    followed = Followed(cursor, entries, int, own)
    assert len(followed.now()) == 1667
    assert len(asked) == 5000
    entries["n1.slot.1"] = Entry("", 77, 2, "")
    cursor.mark("n1.slot.1")
    assert followed.now()["n1.slot.1"] == 77
    followed.now()
    assert asked[5000:] == ["n1.slot.1"]


@pytest.mark.parametrize(
    ("full", "published", "local", "looks"),
    [
        (False, ["n2.slot.5"], [], False),
        (False, ["n2.slot.5", "n1.slot.4"], [], True),
        (False, ["n2.slot.5", "_complete.n1"], [], True),
        (False, ["n2.slot.5"], ["container"], True),
        (False, [], [], True),
        (True, ["n2.slot.5"], [], True),
    ],
    ids=["another node's", "its own", "a marker", "a local endpoint", "the watch itself", "a full pass"],
)
def test_what_other_nodes_publish_is_no_reason_to_look_at_ones_own(
    full: bool, published: list[str], local: list[str], looks: bool
) -> None:
    view = SimpleNamespace(epoch="", synced=False)
    feed: Any = SimpleNamespace(node="n1", endpoints=view, is_published_endpoint=lambda key: key.startswith("n1."))
    bus: Any = SimpleNamespace(bucket=lambda bucket: None)
    registry: Any = SimpleNamespace(up={}, signal=Signal())
    out = EndpointsOut(bus, feed, registry, Log("test"), lambda *_: None)
    by_cursor = frozenset(published), frozenset(local)
    outcome = asyncio.run(out.apply(Dirty(full=full, keys=by_cursor[0] | by_cursor[1], by_cursor=by_cursor)))
    assert outcome == (Again(after=1.0) if looks else Done())
