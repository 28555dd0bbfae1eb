"""Up to which point every live node's maps follow: one row for each cluster."""

from __future__ import annotations

import pytest

from proto.addresses import AcknowledgedEndpoints
from proto.objects import Node
from proto.policy import Ack, Revision
from services.ipam.core.acknowledged import NOTHING, acknowledged_by_all


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
