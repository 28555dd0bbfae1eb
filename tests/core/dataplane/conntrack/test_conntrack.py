"""How long flows may be idle, which entries that ends, what is wrong with a count, and when a share is nearly spent."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest

from proto.policy import Direction
from services.dataplane.core.conntrack import fills
from services.dataplane.core.conntrack import state as conntrack
from services.dataplane.core.conntrack.fills import Fill, Share
from services.dataplane.core.conntrack.state import Segment, State, budget_of, miscount
from services.dataplane.core.datapath.layout import (
    MAX_EXPIRED,
    NODE,
    Budget,
    Flow,
    FlowKey,
    Seen,
)
from services.dataplane.core.datapath.maps import (
    CONNTRACK_ENTRIES,
    MOST_CONNTRACK_ENTRIES,
    WAYS,
    conntrack_entries,
    conntrack_sizes,
    recent_sets,
)

NONE = Seen(0)
REPLY, FIN, FIN_BACK, RESET, SYN = Seen.REPLY, Seen.FIN_ORIGINAL, Seen.FIN_REPLY, Seen.RESET, Seen.SYN
LASTS = Seen.ESTABLISHED | REPLY
GIB = 1 << 30


def key(protocol: int = 6, port: int = 80) -> FlowKey:
    return FlowKey(
        local=IPv4Address("10.0.0.1"), remote=IPv4Address("10.0.0.2"), local_port=4000, remote_port=port,
        protocol=protocol,
    )  # fmt: skip


def flow(seen: int = 0, *, last_seen: int = 0, endpoint: int = 1, side: int = 0) -> Flow:
    return Flow(last_seen=last_seen, generation=1, endpoint=endpoint, rule=0, seen=seen, flags=0, side=side)


def looked(
    flows: dict[FlowKey, Flow], now: int, gone: frozenset[int] = frozenset()
) -> tuple[list[bytes], Counter[tuple[int, int]]]:
    census = conntrack.Census(Counter(), Counter())
    keys = b"".join(one.pack() for one in flows)
    values = b"".join(one.pack() for one in flows.values())
    return conntrack.look_at(keys, values, now, census, gone), census.counts


@pytest.mark.parametrize(
    ("protocol", "seen", "seconds"),
    [
        (6, NONE, 60),
        (6, SYN, 60),
        (6, SYN | REPLY, 60),
        (6, REPLY, 60),
        (6, LASTS, 21_600),
        (6, LASTS | FIN, 600),
        (6, LASTS | FIN_BACK, 600),
        (6, LASTS | FIN | FIN_BACK, 10),
        (6, LASTS | RESET, 10),
        (6, RESET, 10),
        (17, NONE, 30),
        (17, REPLY, 30),
        (17, LASTS | Seen.AGAIN, 180),
        (17, Seen.ONE_SHOT, 30),
        (17, Seen.ONE_SHOT | REPLY, 10),
        (132, REPLY, 60),
        (132, LASTS, 180),
        (1, NONE, 30),
        (58, LASTS, 30),
    ],
)
def test_idle(protocol: int, seen: int, seconds: int) -> None:
    assert conntrack.idle_seconds(protocol, seen) == seconds
    flows = {key(protocol): flow(seen, last_seen=5)}
    end = 5 + seconds * conntrack.SECOND
    assert looked(flows, end) == ([], {(1, 0): 1})
    assert looked(flows, end + 1) == ([key(protocol).pack() + (5).to_bytes(8, "little")], {})


def test_clock_behind_a_flow_condemns_nothing() -> None:
    assert looked({key(): flow(last_seen=10**12)}, 0)[0] == []


def test_flows_of_one_endpoint() -> None:
    flows = {key(port=1): flow(endpoint=1), key(port=2): flow(endpoint=2, side=1)}
    assert looked(flows, 0, frozenset({2})) == ([key(port=2).pack() + bytes(8)], {(1, 0): 1})


@pytest.mark.parametrize("count", [0, 1, MAX_EXPIRED, MAX_EXPIRED + 1, 3 * MAX_EXPIRED])
def test_batches(count: int) -> None:
    expired = [(key(port=n), n) for n in range(count)]
    batches = list(conntrack.batches([one.pack() + seen.to_bytes(8, "little") for one, seen in expired]))
    assert [(len(batch) - 16) // 48 for batch in batches] == [
        min(MAX_EXPIRED, count - start) for start in range(0, count, MAX_EXPIRED)
    ]
    joined = b"".join(batch[16:] for batch in batches)
    read = [(FlowKey.unpack(joined[i : i + 40]), int.from_bytes(joined[i + 40 : i + 48], "little"))
            for i in range(0, len(joined), 48)]  # fmt: skip
    assert read == expired


class TestHandshake:
    """Both ends of one connection, as the pod that began it tracks it and as the one that was asked does."""

    def steps(self, pod_began: bool, *numbers: tuple[int, int, int]) -> int:
        """(flags, sequence, acknowledged) of the three packets."""
        first, *rest = [
            Segment(
                is_reply=number == 1, is_own=(number == 1) != pod_began, flags=flags, sequence=seq, acknowledged=ack
            )
            for number, (flags, seq, ack) in enumerate(numbers)
        ]
        state = conntrack.first(6, first)
        for segment in rest:
            state = conntrack.step(6, state, segment, is_due=False)
        return conntrack.idle_seconds(6, state.seen)

    @pytest.mark.parametrize("pod_began", [True, False])
    def test_third_packet_establishes(self, pod_began: bool) -> None:
        assert self.steps(pod_began, (2, 0xFFFFFFFF, 0), (18, 70, 0), (16, 0, 71)) == 21_600

    @pytest.mark.parametrize("pod_began", [True, False])
    @pytest.mark.parametrize("third", [(16, 0, 70), (16, 0, 71 + conntrack.EARLY), (2, 0, 71), (24, 0, 1)])
    def test_anything_else_does_not(self, pod_began: bool, third: tuple[int, int, int]) -> None:
        assert self.steps(pod_began, (2, 0xFFFFFFFF, 0), (18, 70, 0), third) == 60

    @pytest.mark.parametrize("pod_began", [True, False])
    def test_answer_to_another_syn_is_none(self, pod_began: bool) -> None:
        assert self.steps(pod_began, (2, 5, 0), (18, 70, 7), (16, 6, 71)) == 60

    def test_syn_sent_again_loses_nothing(self) -> None:
        syn = Segment(is_reply=False, is_own=True, flags=2, sequence=9)
        state = State(seen=SYN | REPLY, sent=10, expected=71)
        assert conntrack.step(6, state, syn, is_due=False) == state


@pytest.mark.parametrize(
    ("counted", "before", "after", "wrong"),
    [
        (5, 5, 5, 0),
        (5, 4, 6, 0),
        (5, 6, 4, 0),
        (5, 3, 4, 1),
        (5, 8, 7, -2),
        (5, (1 << 64) - 1, (1 << 64) - 1, 6),
        (0, 9, 9, -9),
    ],
)
def test_miscount(counted: int, before: int, after: int, wrong: int) -> None:
    assert miscount(counted, before, after) == wrong


def test_mends_of_pods_and_of_the_node() -> None:
    was = {
        NODE: Budget(ingress_limit=9, egress_limit=9, ingress=7),
        3: Budget(ingress_limit=9, egress_limit=9, egress=1),
    }
    counts: Counter[tuple[int, int]] = Counter(
        {(3, Direction.INGRESS): 2, (3, Direction.EGRESS): 1, (4, Direction.EGRESS): 2}
    )
    found = conntrack.mends(was, was | {4: Budget(ingress_limit=9, egress_limit=9)}, counts)
    assert [(mend.endpoint, mend.ingress, mend.egress) for mend in found] == [(NODE, -2, 0), (3, 2, 0)]
    assert all(len(mend.pack()) == 48 for mend in found)


class TestSizes:
    @pytest.mark.parametrize(
        ("memory", "asked", "entries"),
        [
            (GIB, 0, 131_072),
            (4 * GIB, 0, 131_072),
            (16 * GIB, 0, 524_288),
            (23 * GIB, 0, 524_288),
            (32 * GIB, 0, 1_048_576),
            (512 * GIB, 0, 1_048_576),
            (GIB, 1_048_576, 1_048_576),
            (512 * GIB, 200_000, 131_072),
        ],
    )
    def test_entries(self, memory: int, asked: int, entries: int) -> None:
        assert conntrack_entries(memory, asked) == entries
        assert conntrack_sizes(entries) == {"am_ct": entries, "am_nat": entries // 2}
        assert recent_sets(entries) * WAYS <= entries // 4

    @pytest.mark.parametrize("asked", [1, CONNTRACK_ENTRIES - 1, MOST_CONNTRACK_ENTRIES + 1, -5])
    def test_outside(self, asked: int) -> None:
        with pytest.raises(ValueError, match="131072 to 1048576, or 0"):
            conntrack_entries(GIB, asked)

    @pytest.mark.parametrize("endpoint", [1, 7, 4096, 0xFFFFFFFF])
    @pytest.mark.parametrize("limit", [1, 16, 1000, 16_384, 10**9])
    @pytest.mark.parametrize("sets", [8192, 32_768])
    def test_window_lies_within_and_holds_half_at_most(self, endpoint: int, limit: int, sets: int) -> None:
        budget = budget_of(endpoint, limit, sets)
        width = budget.mask + 1
        assert width & budget.mask == 0
        assert budget.first % width == 0
        assert budget.first + width <= sets
        assert width == 1 or width * WAYS <= limit // 2


class TestFills:
    def test_reported_from_four_fifths_and_cleared_below_seven_tenths(self) -> None:
        share = Share(3, Direction.INGRESS)
        reported: frozenset[Share] = frozenset()
        outcomes = []
        for used in (79, 80, 71, 70, 69, 79, 100):
            reported = fills.nearly_spent({share: Fill(used, 100)}, reported)
            outcomes.append(share in reported)
        assert outcomes == [False, True, True, True, False, False, True]

    def test_shares_of_pods_and_of_the_node(self) -> None:
        budgets = {
            NODE: Budget(ingress_limit=75, egress_limit=75, ingress=60),
            5: Budget(ingress_limit=10, egress_limit=20, ingress=1, egress=2),
        }
        assert fills.fills(budgets, 100) == {
            Share(NODE, Direction.INGRESS): Fill(60, 100),
            Share(5, Direction.INGRESS): Fill(1, 10),
            Share(5, Direction.EGRESS): Fill(2, 20),
        }

    def test_flood_that_leads_to_nothing_is_a_share_of_its_own(self) -> None:
        budgets = {5: Budget(ingress_limit=1000, egress_limit=1000, ingress=100, first=0, mask=24)}
        found = fills.nearly_spent(fills.fills(budgets, 9, {(5, Direction.INGRESS): 90}), frozenset())
        assert found == {Share(5, Direction.INGRESS, is_pending=True)}

    @pytest.mark.parametrize(
        ("protocol", "seen", "pending"),
        [(6, SYN, True), (6, SYN | REPLY, True), (6, LASTS, False), (6, RESET, False), (17, NONE, True),
         (17, REPLY, False), (17, Seen.ONE_SHOT, True), (17, Seen.ONE_SHOT | REPLY, False)],
    )  # fmt: skip
    def test_what_leads_to_nothing(self, protocol: int, seen: int, pending: bool) -> None:
        assert conntrack.is_pending(protocol, seen) == pending

    def test_gone_endpoint_is_not_reported_any_more(self) -> None:
        assert fills.nearly_spent({}, frozenset({Share(3, Direction.EGRESS)})) == frozenset()


def test_peers_of_an_endpoint() -> None:
    six = FlowKey(
        local=IPv6Address("fd00::1"),
        remote=IPv6Address("2001:db8:1:2:3:4:5:6"),
        local_port=1,
        remote_port=2,
        protocol=6,
    )
    flows = {key(port=1): flow(endpoint=1), key(port=2): flow(endpoint=2), six: flow(endpoint=1)}
    keys, values = b"".join(k.pack() for k in flows), b"".join(v.pack() for v in flows.values())
    found = list(conntrack.peers_of(keys, values, 1, Direction.INGRESS))
    assert found == [bytes(10) + b"\xff\xff\x0a\0\0\x02", IPv6Address("2001:db8:1:2::").packed]


def test_every_protocol_and_state_has_its_time_and_few_protocols_a_table_of_their_own() -> None:
    """A table for each of 256 protocols would be three megabytes of every agent."""
    values = b"".join(flow(seen).pack() for seen in range(256))
    for protocol in range(256):
        census = conntrack.Census(Counter(), Counter())
        over = conntrack.look_at(key(protocol).pack() * 256, values, 100 * conntrack.SECOND, census)
        stay = [seen for seen in range(256) if conntrack.idle_seconds(protocol, seen) >= 100]
        assert len(over) == 256 - len(stay)
        assert census.counts.total() == len(stay)
        assert census.pending.total() == sum(conntrack.is_pending(protocol, seen) for seen in stay)
    assert len({id(row) for row in conntrack._PERIODS}) < 8
