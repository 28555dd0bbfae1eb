"""What measuring DNS costs a packet, by test runs: a loose bound that only a blunder passes; figures are printed (-s).

Each run has a query of its own, so it takes a free cell, and its answer finds it. The same frames are run with the
switch off and on in rounds; the least of many is compared, for what else the machine does only ever adds to a run.
"""

from __future__ import annotations

import struct

import pytest

from linux import bpf
from tests.bpf import frames
from tests.bpf.frames import UDP
from tests.bpf.test_dns import SERVERS, answer, measure, question
from tests.bpf.world import OUR_MAC, World, empty, inside

pytestmark = pytest.mark.privileged

BOUND_NS = 2000
RUNS = 600
NAMES = {"short": "web.shop.svc.cluster.local", "long": "api-gateway.production.example.com.shop.svc.cluster.local"}


def frame_of(world: World, version: int, message: bytes, *, out: bool, port: int = 53) -> bytes:
    pod, server = world.a.address(version), SERVERS[version]
    body = frames.udp(40000, port, message) if out else frames.udp(port, 40000, message)
    raw = frames.ip(pod, server, UDP, body) if out else frames.ip(server, pod, UDP, body)
    kind = 0x0800 if version == 4 else 0x86DD
    return frames.eth(raw, source=world.a.mac if out else OUR_MAC, kind=kind)


def costs(world: World, version: int, name: str, port: int) -> tuple[int, int]:
    """Nanoseconds of a query's run and of its answer's, the least of many."""
    contexts = {True: struct.pack("<36xII", *[world.a.ifindex] * 2), False: struct.pack("<36xII", *[world.wire] * 2)}
    programs = {True: world.datapath.programs["from_pod"], False: world.datapath.programs["from_wire"]}
    spent: dict[bool, list[int]] = {True: [], False: []}
    with inside(world.netns):
        for number in range(RUNS):
            for out, message in ((True, question(name, ident=number)), (False, answer(name, ident=number))):
                frame = frame_of(world, version, message, out=out, port=port)
                spent[out].append(bpf.run_on(programs[out], frame, context=contexts[out]).nanoseconds)
    return min(spent[True]), min(spent[False])


@pytest.mark.parametrize("version", [4, 6])
def test_what_measuring_costs(world: World, version: int) -> None:
    empty(world.tables, ("dns_pods",))
    figures: dict[str, tuple[int, ...]] = {}
    for label, (name, port) in {
        **{key: (name, 53) for key, name in NAMES.items()},
        "another port": (NAMES["short"], 5353),
    }.items():
        rounds: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for _ in range(3):
            for on in (False, True):
                measure(world, on=on)
                rounds[on].append(costs(world, version, name, port))
        off, on_ = (tuple(map(min, zip(*rounds[on], strict=True))) for on in (False, True))
        figures[label] = (off[0], on_[0] - off[0], off[1], on_[1] - off[1])
    measure(world, on=False)
    asked = sum(one.queries for one in world.tables.dns_pods.items().values())
    assert asked == 2 * 3 * RUNS
    empty(world.tables, ("dns_pods",))
    print(f"\nIPv{version}, ns: query without, more with; answer without, more with: {figures}")
    assert max(more for _, query, _, reply in figures.values() for more in (query, reply)) < BOUND_NS


def test_a_query_again_and_again(world: World) -> None:
    """In a row, as `test_speed` runs packets: each is a retry, and sampled."""
    empty(world.tables, ("dns_pods",))
    frame = frame_of(world, 4, question(NAMES["short"]), out=True)
    context = struct.pack("<36xII", *[world.a.ifindex] * 2)
    spent = {}
    with inside(world.netns):
        for on in (False, True):
            measure(world, on=on)
            runs = [
                bpf.run_on(world.datapath.programs["from_pod"], frame, repeat=20_000, context=context) for _ in range(7)
            ]
            spent[on] = min(run.nanoseconds for run in runs)
    measure(world, on=False)
    empty(world.tables, ("dns_pods",))
    print(f"\nns in a row: {spent}")
    assert spent[True] - spent[False] < BOUND_NS
