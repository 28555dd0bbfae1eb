"""How long flows may be idle, in seconds."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from services.dataplane.core import conntrack
from services.dataplane.core.layout import MAX_CONDEMNED, Flow, FlowKey, Seen

NONE = Seen(0)
REPLY, FIN, FIN_BACK, RESET = Seen.REPLY, Seen.FIN_ORIGINAL, Seen.FIN_REPLY, Seen.RESET


def key(protocol: int = 6, port: int = 80) -> FlowKey:
    return FlowKey(
        local=IPv4Address("10.0.0.1"), remote=IPv4Address("10.0.0.2"), local_port=4000, remote_port=port,
        protocol=protocol,
    )  # fmt: skip


def flow(seen: int = 0, *, last_seen: int = 0, endpoint: int = 1) -> Flow:
    return Flow(last_seen=last_seen, generation=1, endpoint=endpoint, rule=0, seen=seen, flags=0, side=0)


@pytest.mark.parametrize(
    ("protocol", "seen", "seconds"),
    [
        (6, NONE, 60),
        (6, REPLY, 21_600),
        (6, REPLY | FIN, 600),
        (6, REPLY | FIN_BACK, 600),
        (6, REPLY | FIN | FIN_BACK, 10),
        (6, REPLY | RESET, 10),
        (6, RESET, 10),
        (17, NONE, 60),
        (17, REPLY, 180),
        (132, REPLY, 180),
        (1, NONE, 30),
        (58, REPLY, 30),
    ],
)
def test_idle(protocol: int, seen: int, seconds: int) -> None:
    assert conntrack.idle_seconds(protocol, seen) == seconds
    flows = {key(protocol): flow(seen, last_seen=5)}
    end = 5 + seconds * conntrack.SECOND
    assert list(conntrack.idle_flows(flows, end)) == []
    assert list(conntrack.idle_flows(flows, end + 1)) == [(key(protocol), 5)]


def test_clock_behind_a_flow_condemns_nothing() -> None:
    assert list(conntrack.idle_flows({key(): flow(last_seen=10**12)}, 0)) == []


def test_flows_of_one_endpoint() -> None:
    flows = {key(port=1): flow(endpoint=1), key(port=2): flow(endpoint=2)}
    assert list(conntrack.flows_of(flows, {2})) == [(key(port=2), 0)]
    assert conntrack.count_by_endpoint(flows) == {1: 1, 2: 1}


@pytest.mark.parametrize("count", [0, 1, MAX_CONDEMNED, MAX_CONDEMNED + 1, 3 * MAX_CONDEMNED])
def test_batches(count: int) -> None:
    condemned = [(key(port=n), n) for n in range(count)]
    batches = list(conntrack.condemned_batches(condemned))
    assert [(len(batch) - 16) // 48 for batch in batches] == [
        min(MAX_CONDEMNED, count - start) for start in range(0, count, MAX_CONDEMNED)
    ]
    joined = b"".join(batch[16:] for batch in batches)
    read = [(FlowKey.unpack(joined[i : i + 40]), int.from_bytes(joined[i + 40 : i + 48], "little"))
            for i in range(0, len(joined), 48)]  # fmt: skip
    assert read == condemned
