"""Pods' DNS as the programs measure it: queries and answers through the programs of a pod's link, read as by the agent.

Time is the kernel's. A query that is to be older gets another time in its cell, as if the pod had asked then.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath.dns_layout import DNS_SETS, DNS_WAYS, DnsOutcome, DnsPod
from services.dataplane.core.monitor.dns_counts import Counts, Sample, new_samples, read_counts
from tests.bpf import frames
from tests.bpf.frames import ACK, SYN, TCP, UDP
from tests.bpf.world import OK, SHOT, Pod, World, empty

pytestmark = pytest.mark.privileged

SERVERS = {4: "192.0.2.53", 6: "2001:db8::53"}
SECOND = 1_000_000_000
A, AAAA = 1, 28


def name_on_wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(name: str, *, ident: int = 7, kind: int = A, flags: int = 0x0100, questions: int = 1) -> bytes:
    """A query with an OPT record (RFC 6891), as glibc sends it with ``edns0``."""
    head = struct.pack(">HHHHHH", ident, flags, questions, 0, 0, 1)
    return head + name_on_wire(name) + struct.pack(">HH", kind, 1) + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def answer(name: str, *, ident: int = 7, kind: int = A, rcode: int = 0, answers: int = 1, tc: bool = False) -> bytes:
    flags = 0x8180 | rcode | (0x0200 if tc else 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 30, 4) + bytes([10, 0, 0, 1])
    head = struct.pack(">HHHHHH", ident, flags, 1, answers, 0, 0)
    return head + name_on_wire(name) + struct.pack(">HH", kind, 1) + record * answers


class Resolver:
    """A pod that asks, the server, and what the programs say of it. ``world.a`` unless said otherwise."""

    def __init__(self, world: World, version: int = 4, pod: Pod | None = None) -> None:
        self.world, self.version, self.pod = world, version, pod or world.a

    def ask(self, message: bytes, *, port: int = 40000, to: int = 53) -> None:
        raw = frames.ip(self.pod.address(self.version), SERVERS[self.version], UDP, frames.udp(port, to, message))
        assert self.world.from_pod(self.pod, raw).action == OK

    def hear(self, message: bytes, *, port: int = 40000, of: int = 53) -> None:
        raw = frames.ip(SERVERS[self.version], self.pod.address(self.version), UDP, frames.udp(of, port, message))
        assert self.world.from_wire(raw).action != SHOT

    @property
    def key(self) -> at.EndpointKey:
        return at.EndpointKey(endpoint=self.pod.number)

    @property
    def record(self) -> DnsPod:
        return self.world.tables.dns_pods.get(self.key) or DnsPod()

    @property
    def counts(self) -> Counts:
        return read_counts(self.record, time.monotonic_ns())

    @property
    def samples(self) -> list[Sample]:
        return new_samples(self.record, 0)

    def age(self, nanoseconds: int) -> None:
        """Every query in flight was asked so much earlier."""
        cells = [(tag, asked and asked - nanoseconds) for tag, asked in struct.iter_unpack("<QQ", self.record.cells)]
        raw = b"".join(struct.pack("<QQ", *cell) for cell in cells)
        self.world.tables.dns_pods.put(self.key, replace(self.record, cells=raw))

    @property
    def in_flight(self) -> int:
        return sum(asked != 0 for _, asked in struct.iter_unpack("<QQ", self.record.cells))


def measure(world: World, *, on: bool = True) -> None:
    flags = at.ConfigFlag.MEASURE_DNS if on else at.ConfigFlag(0)
    world.tables.configure(replace(world.tables.config, flags=int(flags)))


@pytest.fixture
def measured(world: World) -> Iterator[World]:
    empty(world.tables, ("dns_pods",))
    measure(world)
    yield world
    measure(world, on=False)
    empty(world.tables, ("dns_pods",))


@pytest.fixture(params=[4, 6])
def resolver(measured: World, request: pytest.FixtureRequest) -> Resolver:
    return Resolver(measured, request.param)


def test_an_answer_is_counted_with_its_time_and_its_name(resolver: Resolver) -> None:
    resolver.ask(question("Web.shop.svc.Cluster.local"))
    assert (resolver.counts.queries, resolver.in_flight, resolver.samples) == (1, 1, [])
    resolver.hear(answer("Web.shop.svc.Cluster.local"))
    counts = resolver.counts
    assert (counts.queries, counts.outcomes[DnsOutcome.USEFUL], sum(counts.latency)) == (1, 1, 1)
    assert (resolver.in_flight, counts.unmatched, counts.unread, counts.retries) == (0, 0, 0, 0)
    assert [(one.labels, one.is_whole, one.outcome) for one in resolver.samples] == [
        (("web", "shop", "svc", "cluster", "local"), True, DnsOutcome.USEFUL)
    ]


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ({}, DnsOutcome.USEFUL),
        ({"answers": 0}, DnsOutcome.EMPTY),
        ({"rcode": 1, "answers": 0}, DnsOutcome.FORMERR),
        ({"rcode": 2, "answers": 0}, DnsOutcome.SERVFAIL),
        ({"rcode": 3, "answers": 0}, DnsOutcome.NXDOMAIN),
        ({"rcode": 3, "answers": 1}, DnsOutcome.NXDOMAIN),
        ({"rcode": 4, "answers": 0}, DnsOutcome.NOTIMP),
        ({"rcode": 5, "answers": 0}, DnsOutcome.REFUSED),
        ({"rcode": 6, "answers": 0}, DnsOutcome.OTHER),
        ({"rcode": 15, "answers": 0}, DnsOutcome.OTHER),
        ({"tc": True}, DnsOutcome.TRUNCATED),
        ({"tc": True, "rcode": 3}, DnsOutcome.TRUNCATED),
    ],
    ids=str,
)
def test_every_answer_has_its_outcome(resolver: Resolver, what: dict[str, int], outcome: DnsOutcome) -> None:
    resolver.ask(question("a.example"))
    resolver.hear(answer("a.example", **what))  # type: ignore[arg-type]
    assert [one for one, count in enumerate(resolver.counts.outcomes) if count] == [outcome]
    assert [one.outcome for one in resolver.samples] == [outcome]


@pytest.mark.parametrize("nanoseconds", [0, 3 << 10, 1_000_000, 40_000_000, 2 * SECOND, 4 * SECOND])
def test_how_long_it_took_is_a_power_of_two(measured: World, nanoseconds: int) -> None:
    one, most = Resolver(measured), 5 * SECOND
    while most >= 5 * SECOND:  # a machine that was held up for so long tries again
        measured.tables.dns_pods.remove(one.key)
        began = time.monotonic_ns()
        one.ask(question("a.example"))
        one.age(nanoseconds)
        one.hear(answer("a.example"))
        most = time.monotonic_ns() - began + nanoseconds
    (bucket,) = (index for index, count in enumerate(one.counts.latency) if count)
    assert (nanoseconds >> 10).bit_length() <= bucket <= (most >> 10).bit_length()


def test_pairs_of_a_and_aaaa_are_two_queries(resolver: Resolver) -> None:
    for kind, ident in ((A, 7), (AAAA, 8)):
        resolver.ask(question("a.example", ident=ident, kind=kind))
    resolver.hear(answer("a.example", ident=8, kind=AAAA, answers=0))
    resolver.hear(answer("a.example", ident=7))
    counts = resolver.counts
    assert (counts.queries, counts.retries, counts.unmatched) == (2, 0, 0)
    assert (counts.outcomes[DnsOutcome.USEFUL], counts.outcomes[DnsOutcome.EMPTY]) == (1, 1)


Change = Callable[[Resolver], None]


@pytest.mark.parametrize(
    "other",
    [
        lambda r: r.hear(answer("a.example", ident=8)),
        lambda r: r.hear(answer("b.example")),
        lambda r: r.hear(answer("a.example", kind=AAAA)),
        lambda r: (r.ask(question("b.example"), port=40001), r.hear(answer("a.example"), port=40001)),
    ],
    ids=["id", "name", "type", "port"],
)
def test_another_answer_is_nobodys(resolver: Resolver, other: Change) -> None:
    resolver.ask(question("a.example"))
    other(resolver)
    counts = resolver.counts
    assert (counts.unmatched, sum(counts.outcomes)) == (1, 0)
    resolver.hear(answer("a.example"))
    assert sum(resolver.counts.outcomes) == 1


def test_a_second_copy_of_an_answer_counts_once(resolver: Resolver) -> None:
    resolver.ask(question("a.example"))
    for _ in range(3):
        resolver.hear(answer("a.example"))
    assert (sum(resolver.counts.outcomes), resolver.counts.unmatched) == (1, 2)


def test_the_same_query_again_is_a_retry_and_waits_since_the_first(measured: World) -> None:
    one = Resolver(measured)
    one.ask(question("a.example"))
    one.age(2 * SECOND)
    one.ask(question("a.example"))
    counts = one.counts
    assert (counts.queries, counts.retries, counts.timeouts, one.in_flight) == (2, 1, 0, 1)
    assert [sample.outcome for sample in one.samples] == [DnsOutcome.RETRIED]
    one.hear(answer("a.example"))
    slow = [index for index, count in enumerate(one.counts.latency) if count]
    assert slow == [(2 * SECOND >> 10).bit_length()]


@pytest.mark.parametrize(
    ("waited", "retries"), [(0, 0), (SECOND // 2, 0), (2 * SECOND, 1), (6 * SECOND, 1), (9 * SECOND, 0)]
)
def test_from_another_port_it_is_a_retry_when_one_has_waited(measured: World, waited: int, retries: int) -> None:
    """Go asks again by a new socket with a new id; two threads that want one name at a time do not ask again."""
    one = Resolver(measured)
    one.ask(question("a.example"))
    one.age(waited)
    one.ask(question("a.example", ident=9), port=40001)
    assert one.counts.retries == retries
    one.ask(question("b.example", ident=10), port=40002)
    assert one.counts.retries == retries


def test_a_query_times_out_once_whoever_finds_it(measured: World) -> None:
    one = Resolver(measured)
    one.ask(question("a.example"))
    assert one.counts.timeouts == 0
    one.age(6 * SECOND)
    assert (one.counts.timeouts, one.record.timeouts) == (1, 0)
    one.ask(question("a.example"))
    assert (one.counts.timeouts, one.counts.retries, one.in_flight) == (1, 1, 1)
    one.age(6 * SECOND)
    assert one.counts.timeouts == 2
    one.hear(answer("a.example"))
    counts = one.counts
    assert (counts.timeouts, counts.late, sum(counts.latency), sum(counts.outcomes)) == (2, 1, 0, 0)


def test_who_has_too_many_in_flight_loses_its_own_alone(measured: World) -> None:
    flooder, other = Resolver(measured), Resolver(measured, pod=measured.b)
    other.ask(question("quiet.example"))
    sent = 4 * DNS_SETS * DNS_WAYS
    for number in range(sent):
        flooder.ask(question(f"n{number}.example", ident=number))
    counts = flooder.counts
    assert (counts.queries, flooder.in_flight) == (sent, DNS_SETS * DNS_WAYS)
    assert counts.displaced == sent - DNS_SETS * DNS_WAYS
    other.hear(answer("quiet.example"))
    assert (other.counts.outcomes[DnsOutcome.USEFUL], other.counts.displaced) == (1, 0)
    assert [one.labels for one in other.samples] == [("quiet", "example")]


def test_the_oldest_makes_room(measured: World) -> None:
    one = Resolver(measured)
    for number in range(DNS_WAYS):
        one.ask(question("a.example", ident=number))
    one.age(SECOND // 10)
    one.hear(answer("a.example", ident=0))
    one.ask(question("a.example", ident=90))
    assert one.counts.displaced == 0, "a free cell goes first"
    one.ask(question("a.example", ident=91))
    assert one.counts.displaced == 1
    one.hear(answer("a.example", ident=90))
    one.hear(answer("a.example", ident=91))
    assert one.counts.unmatched == 0, "those that came last are still known"


BROKEN = {
    "short": b"\0\7\1\0\0\1\0\0\0\0\0\0",
    "no question": question("a.example", questions=0),
    "two questions": question("a.example", questions=2),
    "a notification": question("a.example", flags=0x2000),
    "a name without an end": question("a.example")[:12] + b"\x05aaaaaaaa",
    "a question without a type": question("a.example")[:24],
    "an answer that goes out": answer("a.example"),
    "text": b"hello",
}


@pytest.mark.parametrize("message", BROKEN.values(), ids=BROKEN)
def test_what_is_no_query_is_counted_and_let_through(resolver: Resolver, message: bytes) -> None:
    long = question("a-very-long-name-that-stays-in-the-room-for-messages.example.with.more.labels")
    resolver.ask(long, port=40001)
    resolver.ask(message)
    counts = resolver.counts
    assert (counts.queries, counts.unread, resolver.in_flight) == (1, 1, 1)


@pytest.mark.parametrize("length", [1, 60, 100, 105, 106, 107, 108, 109, 110, 111, 112, 113, 150, 240])
def test_names_of_any_length_find_their_answer(resolver: Resolver, length: int) -> None:
    text = "abcdefghi." * 30
    name = text[:length].rstrip(".") or "a"
    resolver.ask(question(name))
    resolver.ask(question(name, ident=8, kind=AAAA))
    resolver.hear(answer(name))
    resolver.hear(answer(name, ident=8, kind=AAAA))
    counts = resolver.counts
    assert (counts.queries, counts.unread, counts.unmatched, sum(counts.outcomes)) == (2, 0, 0, 2)
    said = resolver.samples[0]
    assert said.is_whole == (len(name_on_wire(name)) <= 112)
    assert name.startswith(".".join(said.labels))
    assert not said.is_whole or name == ".".join(said.labels)


def test_an_answer_that_spells_the_name_otherwise_is_its_own(resolver: Resolver) -> None:
    resolver.ask(question("wWw.ExAmPlE"))
    resolver.hear(answer("WwW.eXaMpLe"))
    assert sum(resolver.counts.outcomes) == 1


def test_other_ports_and_other_packets_are_not_looked_at(resolver: Resolver) -> None:
    resolver.ask(question("a.example"), to=5353)
    resolver.hear(answer("a.example"), of=5353)
    resolver.hear(question("a.example"), port=53, of=40000)  # the pod serves
    resolver.ask(answer("a.example"), port=53, to=40000)
    assert resolver.world.tables.dns_pods.items() == {}


def test_without_the_switch_nothing_is_measured(resolver: Resolver) -> None:
    measure(resolver.world, on=False)
    resolver.ask(question("a.example"))
    resolver.hear(answer("a.example"))
    assert resolver.world.tables.dns_pods.items() == {}


def test_what_policy_forbids_is_not_measured(resolver: Resolver) -> None:
    resolver.world.isolate(resolver.pod.identity, egress=True)
    raw = frames.ip(
        resolver.pod.address(resolver.version),
        SERVERS[resolver.version],
        UDP,
        frames.udp(40000, 53, question("a.example")),
    )
    assert resolver.world.from_pod(resolver.pod, raw).action == SHOT
    assert resolver.world.tables.dns_pods.items() == {}


class Stream(Resolver):
    """The same over TCP."""

    def __init__(self, world: World, version: int) -> None:
        super().__init__(world, version)
        self.sent, self.heard = 101, 901
        self._out(SYN, b"", sequence=100)
        self._in(SYN | ACK, b"", sequence=900)
        self._out(ACK, b"")

    def _out(self, flags: int, payload: bytes, *, sequence: int | None = None) -> None:
        segment = frames.tcp(
            40000, 53, flags, payload, sequence=self.sent if sequence is None else sequence, acknowledged=self.heard
        )
        raw = frames.ip(self.pod.address(self.version), SERVERS[self.version], TCP, segment)
        assert self.world.from_pod(self.pod, raw).action == OK
        self.sent += len(payload)

    def _in(self, flags: int, payload: bytes, *, sequence: int | None = None) -> None:
        segment = frames.tcp(
            53, 40000, flags, payload, sequence=self.heard if sequence is None else sequence, acknowledged=self.sent
        )
        raw = frames.ip(SERVERS[self.version], self.pod.address(self.version), TCP, segment)
        assert self.world.from_wire(raw).action != SHOT
        self.heard += len(payload)

    def send(self, payload: bytes) -> None:
        self._out(ACK, payload)

    def receive(self, payload: bytes) -> None:
        self._in(ACK, payload)


def framed(message: bytes) -> bytes:
    """As over TCP (RFC 1035 4.2.2)."""
    return struct.pack(">H", len(message)) + message


@pytest.fixture(params=[4, 6])
def stream(measured: World, request: pytest.FixtureRequest) -> Stream:
    return Stream(measured, request.param)


def test_over_tcp_a_message_in_a_segment_is_measured(stream: Stream) -> None:
    assert stream.world.tables.dns_pods.items() == {}, "a handshake is no query"
    stream.send(framed(question("a.example")))
    stream.receive(framed(answer("a.example")))
    counts = stream.counts
    assert (counts.queries, counts.tcp_queries, counts.unread, sum(counts.latency)) == (1, 1, 0, 1)
    assert [one.labels for one in stream.samples] == [("a", "example")]


def test_of_a_long_answer_the_first_segment_is_enough(stream: Stream) -> None:
    stream.send(framed(question("a.example")))
    long = framed(answer("a.example", answers=200))
    stream.receive(long[:1400])
    stream.receive(long[1400:])
    counts = stream.counts
    assert (counts.outcomes[DnsOutcome.USEFUL], counts.unread, counts.unmatched) == (1, 1, 0)


def test_what_follows_in_a_segment_or_spans_two_is_not_read(stream: Stream) -> None:
    stream.send(framed(question("a.example")) + framed(question("b.example", ident=8)))
    assert (stream.counts.queries, stream.counts.unread) == (1, 0)
    whole = framed(question("c.example", ident=9))
    stream.send(whole[:2])
    stream.send(whole[2:])
    assert (stream.counts.queries, stream.counts.unread) == (1, 2)
