"""Up to which point every live node's maps follow: one row for each cluster."""

from __future__ import annotations

import pytest

from proto.addresses import AcknowledgedEndpoints
from proto.objects import Node
from proto.policy import Ack, Revision
from services.ipam.core.acknowledged import NOTHING, Departed, acknowledged_by_all


@pytest.mark.parametrize(
    ("ready", "acks", "expected"),
    [
        (["n1", "n2"], {"n1": ("e", 7), "n2": ("e", 5)}, AcknowledgedEndpoints("e", 5)),
        (["n1"], {"n1": ("e", 7), "n2": ("e", 5)}, AcknowledgedEndpoints("e", 7)),
        (["n1"], {"n1": ("e", 7), "n2": ("old", 5)}, AcknowledgedEndpoints("e", 7)),
        (["n1", "n2"], {"n1": ("e", 7)}, NOTHING),
        (["n1", "n2"], {"n1": ("e", 7), "n2": ("old", 900)}, NOTHING),
        (["n1", "n2"], {"n1": ("e", 7), "n2": ("", 0)}, NOTHING),
        (["n1", "n2"], {"n1": ("e", 7), "n2": ("e", -1)}, AcknowledgedEndpoints("e", -1)),
        ([], {"n2": ("e", 5)}, NOTHING),
    ],
    ids=["least", "not ready", "not ready, of before", "silent", "of before", "none yet", "a lie", "nobody"],
)
def test_the_least_of_every_live_node(
    ready: list[str], acks: dict[str, tuple[str, int]], expected: AcknowledgedEndpoints
) -> None:
    nodes = [Node(name=name, uid=name, ready=name in ready) for name in ("n1", "n2")]
    written = {
        name: Ack("somebody", Revision("r", 1), sequence, endpoints_epoch=epoch)
        for name, (epoch, sequence) in acks.items()
    }
    assert acknowledged_by_all(nodes, written) == expected, "by the key, whatever the value says of its node"


def last(sequence: int, epoch: str = "e") -> AcknowledgedEndpoints:
    return AcknowledgedEndpoints(epoch, sequence)


def test_what_has_rested_is_freed_once_every_live_node_has_got_there() -> None:
    departed: Departed[str] = Departed(most=64)
    assert departed.known_to_all(["a"], last(100), last(99)) == ()
    assert departed.known_to_all(["a", "b"], last(120), last(100)) == ("a",), "b rested later"
    assert departed.known_to_all(["b"], last(130), last(119)) == ()
    assert departed.known_to_all(["b"], last(130), last(120)) == ("b",)


def test_what_is_in_use_meanwhile_begins_again() -> None:
    departed: Departed[str] = Departed(most=64)
    assert departed.known_to_all(["a"], last(100), last(99)) == ()
    assert departed.known_to_all([], last(110), last(99)) == ()
    assert departed.known_to_all(["a"], last(120), last(110)) == ()


@pytest.mark.parametrize(
    ("epoch", "acknowledged"), [("e", NOTHING), ("e", last(500, "of before")), ("", NOTHING)], ids=str
)
def test_where_no_acknowledgement_of_this_epoch_is_known_time_alone_counts(
    epoch: str, acknowledged: AcknowledgedEndpoints
) -> None:
    assert Departed[str](most=64).known_to_all(["a"], last(100, epoch), acknowledged) == ("a",)


def test_sequences_of_an_epoch_that_is_over_say_nothing() -> None:
    departed: Departed[str] = Departed(most=64)
    assert departed.known_to_all(["a"], last(100), last(99)) == ()
    assert departed.known_to_all(["a"], last(3, "new"), last(2, "new")) == ()
    assert departed.known_to_all(["a"], last(9, "new"), last(3, "new")) == ("a",)


def test_no_more_than_the_most_wait_for_a_node_that_is_behind() -> None:
    departed: Departed[int] = Departed(most=2)
    freed = [departed.known_to_all(range(count), last(100 + count), last(50)) for count in range(1, 5)]
    assert freed == [(), (), (0,), (0, 1)], "those that have waited longest"
