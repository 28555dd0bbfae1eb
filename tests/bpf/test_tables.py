"""Maps, layouts, the generated header, the ring and conntrack's collector against the real kernel."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from linux import bpf
from proto.flow import DropReason
from proto.policy import Direction
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.core.conntrack.state import batches
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.maps import MAPS, MapSpec
from services.dataplane.datapath.bytecode import Cache, CompileError, amalgamate
from services.dataplane.datapath.maps import LayoutMismatch, Table, TableFull, check_shape
from services.dataplane.datapath.programs import _check_layout
from services.dataplane.datapath.tables import create
from services.dataplane.monitor.ring import EventReader
from tests.bpf import frames
from tests.bpf.world import World
from tests.cpu_time import least

pytestmark = pytest.mark.privileged

SECOND = 1_000_000_000


def prefixes(count: int) -> dict[at.PrefixKey, at.Peer]:
    nets = (ip_network((0x0B000000 + i * 256, 24)) for i in range(count))
    return {at.PrefixKey.of(net): at.Peer(identity=5000 + i, flags=1) for i, net in enumerate(nets)}


def budget(limit: int, ingress: int = 0, egress: int = 0) -> at.Budget:
    return at.Budget(ingress_limit=limit, egress_limit=limit, ingress=ingress, egress=egress)


class TestTable:
    def test_what_goes_in_comes_out(self, world: World) -> None:
        table, wanted = world.tables.ipcache, prefixes(10_000)
        base = table.items()
        table.apply(wanted)
        assert table.items() == base | wanted
        assert table.get(at.PrefixKey.host(IPv4Address("11.0.7.9"))) == at.Peer(identity=5007, flags=1)
        table.apply({}, wanted)
        assert table.items() == base

    def test_diff_says_what_is_missing_wrong_and_too_much(self, world: World) -> None:
        table = world.tables.budgets
        keys = [at.EndpointKey(endpoint=n) for n in (1, 2, 3)]
        table.apply({keys[0]: budget(10), keys[1]: budget(20)})
        delta = table.diff({keys[0]: budget(11), keys[2]: budget(30)})
        assert delta.upserts == {keys[0]: budget(11), keys[2]: budget(30)}
        assert list(delta.deletes) == [keys[1]]
        table.apply(delta.upserts, delta.deletes)
        assert table.diff({keys[0]: budget(11), keys[2]: budget(30)}).empty

    def test_deleting_what_is_not_there_is_no_error(self, world: World) -> None:
        table = world.tables.budgets
        there = [at.EndpointKey(endpoint=n) for n in (1, 2)]
        absent = [at.EndpointKey(endpoint=n) for n in (7, 8, 9)]
        table.apply({}, [absent[0], there[0], absent[1], absent[2], there[1]])
        assert table.items() == {}

    def test_a_full_map_names_what_found_no_room(self, world: World) -> None:
        wanted = {at.EndpointKey(endpoint=n): budget(1) for n in range(5000)}
        with pytest.raises(TableFull, match="am_ct_budget takes 4096 entries and has no room for 904 more") as full:
            world.tables.budgets.apply(wanted)
        assert world.tables.budgets.items().keys() == wanted.keys() - full.value.keys

    @pytest.mark.parametrize("name", ["budgets", "source_ranges"])
    def test_removals_and_changes_in_place_never_wait_for_additions(self, world: World, name: str) -> None:
        """A hash and a trie, filled to the brim: what is refused keeps nothing else from being done."""
        kinds: dict[str, tuple[Callable[[int], Any], Any, Any]] = {
            "budgets": (lambda n: at.EndpointKey(endpoint=n), budget(1), budget(2)),
            "source_ranges": (
                lambda n: lb.SourceRangeKey.of(n, ip_network("10.0.0.0/8")), lb.SourceRange(), lb.SourceRange(mark=2),
            ),
        }  # fmt: skip
        key, old, new = kinds[name]
        spec = getattr(world.tables, name).spec
        fd = create(spec, 64)
        try:
            table: Table[Any, Any] = Table(fd, spec, spec.key, spec.value)
            assert table.entries == 64
            table.apply({key(n): old for n in range(64)})
            # 100 that are new, 3 that change in place, 2 that go: the new ones first, as the worst order has it.
            wanted = {key(1000 + n): old for n in range(100)} | {key(n): new for n in range(3)}
            with pytest.raises(TableFull) as full:
                table.apply(wanted, [key(10), key(11)])
            now = table.items()
            assert key(10) not in now
            assert key(11) not in now
            assert [now[key(n)] for n in range(3)] == [new] * 3
            assert len(now) == 64, "what was removed made room for two"
            assert len(full.value.keys) == 98
            table.apply({}, list(now))
            assert table.items() == {}
        finally:
            os.close(fd)

    def test_wrong_descriptor_is_refused(self, world: World) -> None:
        fd = world.tables.descriptors["am_links"]
        with pytest.raises(LayoutMismatch, match="am_ct_budget"):
            Table(fd, world.tables.budgets.spec, at.EndpointKey, at.Budget)

    def test_value_that_does_not_fit_is_refused(self, world: World) -> None:
        with pytest.raises(ValueError, match="does not fit"):
            world.tables.budgets.put(at.EndpointKey(endpoint=1 << 32), budget(1))
        with pytest.raises(ValueError, match="6 bytes"):
            at.Link(identity=1, address4=None, address6=None, mac=b"abc", endpoint=1).pack()


class TestLayout:
    @pytest.mark.parametrize("spec", MAPS, ids=lambda spec: spec.name)
    def test_compiled_map_has_our_sizes(self, spec: MapSpec, cache: Path) -> None:
        shape = Cache(cache).load().maps[spec.name]
        check_shape(spec, shape.kind, shape.key_size, shape.value_size, shape.entries)
        assert shape.flags == spec.flags

    def test_another_size_refuses(self, cache: Path) -> None:
        bytecode = Cache(cache).load()
        shape = bytecode.maps["am_links"]
        other = dict(bytecode.maps)
        other["am_links"] = type(shape)(shape.kind, shape.key_size, shape.value_size + 8, shape.entries, shape.flags)
        with pytest.raises(LayoutMismatch, match="am_links"):
            _check_layout(type(bytecode)(other, bytecode.programs))
        del other["am_links"]
        with pytest.raises(LayoutMismatch, match="am_links"):
            _check_layout(type(bytecode)(other, bytecode.programs))

    def test_verifier_work_stays_bounded(self, world: World) -> None:
        work = {name: bpf.program_info(fd).verified for name, fd in world.datapath.programs.items()}
        assert all(0 < verified < 100_000 for verified in work.values()), work


class TestBytecode:
    def test_second_load_compiles_nothing(self, cache: Path) -> None:
        Cache(cache).load()
        assert least(2, Cache(cache).load) < 1, "a compilation takes ten times that of a processor"

    def test_damaged_cache_is_made_again(self, cache: Path, tmp_path: Path) -> None:
        whole = next(cache.glob("airmesh-*.msgpack"))
        Cache(cache).load()
        for path in cache.glob("airmesh-*.msgpack"):
            (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
        assert Cache(tmp_path).load() == Cache(cache).load()
        assert whole.exists()

    def test_compilers_complaint_is_shown(self, tmp_path: Path) -> None:
        with pytest.raises(CompileError, match="nonsense"):
            Cache(tmp_path)._compile("int from_pod(struct nonsense *x) { return x->y; }\n", tmp_path / "x.msgpack")
        assert list(tmp_path.iterdir()) == []

    def test_amalgamation_takes_each_file_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.h").write_text('#include "b.h"\nA\n')
        (tmp_path / "b.h").write_text("B\n")
        (tmp_path / "main.c").write_text('#include "b.h"\n#include "a.h"\nMAIN\n')
        text = [line for line in amalgamate(tmp_path / "main.c").splitlines() if line and not line.startswith("#")]
        assert text == ["B", "A", "MAIN"]

    def test_complaint_about_what_stands_after_an_include_names_its_file_and_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.h").write_text("#define A 1\n\n\n")
        (tmp_path / "main.c").write_text('#include "a.h"\n#include "a.h"\nnonsense x;\n')
        with pytest.raises(CompileError, match=r"main\.c:3:1: error: unknown type name 'nonsense'"):
            Cache(tmp_path)._compile(amalgamate(tmp_path / "main.c"), tmp_path / "x.msgpack")


def send(world: World, dport: int) -> None:
    world.from_pod(world.a, frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4000, dport)))


@pytest.fixture
def one_processor() -> Iterator[None]:
    """This thread stays on the processor that it is on: of a map with a value for each, it meets one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


class TestEvents:
    @pytest.mark.usefixtures("one_processor")
    def test_rate_is_bounded_and_what_is_held_back_is_counted(self, world: World) -> None:
        """Of one endpoint, one reason and one processor."""
        world.tables.configure(at.Config(events_per_second=0, events_burst=3))
        world.isolate(world.b.identity, ingress=True)
        packet = frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4000, 80))
        reported = [world.from_pod(world.a, packet).event for _ in range(10)]
        assert [event is not None for event in reported] == [True] * 3 + [False] * 7
        world.tables.configure(at.Config(events_per_second=1000, events_burst=1000))
        time.sleep(0.05)
        last = world.from_pod(world.a, packet).event
        assert last is not None
        assert last.missed == 7

    def test_new_flows_only_when_asked_for(self, world: World) -> None:
        packet = frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4000, 80))
        assert world.from_pod(world.a, packet).event is None
        world.tables.configure(replace(world.tables.config, flags=at.ConfigFlag.EMIT_FORWARDED))
        other = frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4001, 80))
        event = world.from_pod(world.a, other).event
        assert event is not None
        assert (event.reason, event.direction, event.subject) == (
            DropReason.FORWARDED, Direction.INGRESS, world.b.identity,
        )  # fmt: skip
        assert world.from_pod(world.a, other).event is None, "a known flow is not told again"

    async def test_reader_on_the_loop(self, world: World) -> None:
        world.isolate(world.b.identity, ingress=True)
        got: list[at.Event] = []
        world.reader.drain(1 << 20)
        reader = EventReader(world.tables.events_fd, got.extend)
        reader.start()
        try:
            for port in range(1, 200):
                world.send(frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4000, port)))
            async with asyncio.timeout(60):
                while len(got) < 199:
                    await asyncio.sleep(0.01)
        finally:
            reader.stop()
        assert [event.destination_port for event in got] == list(range(1, 200))
        assert reader.seen == 199

    async def test_sink_that_fails_stops_nothing(self, world: World) -> None:
        def fails(events: list[at.Event]) -> None:
            raise RuntimeError("sink")

        world.isolate(world.b.identity, ingress=True)
        reader = EventReader(world.tables.events_fd, fails)
        reader.start()
        try:
            world.send(frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4000, 1)))
            async with asyncio.timeout(60):
                while not reader.faults:
                    await asyncio.sleep(0.01)
            assert reader.faults == 1
        finally:
            reader.stop()


class TestCollection:
    def count(self, world: World, endpoint: int) -> int:
        budget = world.tables.budgets.get(at.EndpointKey(endpoint=endpoint))
        assert budget is not None
        return budget.count

    def test_collects_what_is_idle_and_gives_the_budget_back(self, world: World) -> None:
        for pod in (world.a, world.b):
            world.limit(pod, 10_000)
        for port in range(1, 101):
            send(world, port)
        now = time.monotonic_ns()
        assert FlowCollector(world.datapath).collect(now) == 0
        assert self.count(world, 1) == 100
        assert FlowCollector(world.datapath).collect(now + 59 * SECOND) == 0
        assert FlowCollector(world.datapath).collect(now + 62 * SECOND) == 200
        assert world.tables.flows.items() == {}
        assert (self.count(world, 1), self.count(world, 2)) == (0, 0)

    def test_flow_seen_since_the_look_stays(self, world: World) -> None:
        send(world, 80)
        key, flow = next(iter(world.tables.flows.items().items()))
        (stale,) = batches([key.pack() + (flow.last_seen - 1).to_bytes(8, "little")])
        assert bpf.run_on(world.datapath.programs["collect"], stale).value == 0
        assert world.tables.flows.get(key) == flow

    def test_endpoint_that_is_gone_takes_its_flows_along(self, world: World) -> None:
        send(world, 80)
        assert FlowCollector(world.datapath).forget_endpoints({world.a.number}) == 1
        assert {flow.endpoint for flow in world.tables.flows.items().values()} == {world.b.number}
        assert world.tables.budgets.get(at.EndpointKey(endpoint=world.a.number)) is None

    def test_recount(self, world: World) -> None:
        send(world, 80)
        world.tables.budgets.put(at.EndpointKey(endpoint=1), budget(5, egress=4))
        assert FlowCollector(world.datapath).recount() == 1
        assert self.count(world, 1) == 1
        assert FlowCollector(world.datapath).recount() == 0

    def test_key_that_looks_like_a_frame(self, world: World) -> None:
        odd = at.FlowKey(
            local=IPv6Address("2001:db8::86dd:1"), remote=IPv6Address("::2"), local_port=1, remote_port=2, protocol=6
        )
        world.tables.flows.put(odd, at.Flow(last_seen=1, generation=0, endpoint=1, rule=0, seen=0, flags=0, side=0))
        assert FlowCollector(world.datapath).collect(62 * SECOND) == 1

    def test_full_table_drops(self, world: World) -> None:
        spec = world.tables.flows.spec
        filler = at.Flow(last_seen=0, generation=0, endpoint=99, rule=0, seen=0, flags=0, side=0)
        base = at.FlowKey(
            local=IPv4Address("1.1.1.1"), remote=IPv4Address("2.2.2.2"), local_port=0, remote_port=0, protocol=6
        )
        # A preallocated hash keeps a few spare entries for each processor: fill until it refuses.
        raw = bytearray(base.pack())
        keys = []
        for n in range(spec.entries + 4096):
            raw[0:4] = n.to_bytes(4, "big")
            keys.append(bytes(raw))
        assert bpf.update_batch(world.tables.flows.fd, b"".join(keys), filler.pack() * len(keys), len(keys))
        packet = frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4000, 80))
        assert str(world.from_pod(world.a, packet)) == "drop CONNTRACK_FULL"
        assert self.count(world, 1) == 0


def test_metrics_add_up(world: World) -> None:
    before = world.tables.metrics().get((DropReason.FORWARDED, Direction.EGRESS), at.Metric(packets=0, bytes=0))
    send(world, 80)
    after = world.tables.metrics()[DropReason.FORWARDED, Direction.EGRESS]
    assert (after.packets - before.packets, after.bytes - before.bytes) == (1, 54)
