"""`airmesh routes` against a real NATS server: routing agents tell of their pairs, each for itself alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import pytest

from kit.pairs import chosen
from proto import subjects
from proto.pairs import GivenUp, Pairs, PairsRequest, PairState
from proto.routes import NodeRoutes
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.shell.cli.test_commands import airmesh, environment, fill, serve

VIA = {"n1": ip_address("172.30.0.11"), "n2": ip_address("172.30.0.12")}


def pair(peer: str, model: str = "vxlan", **more: object) -> PairState:
    reported = {"family": 4, "asked": ("vxlan",), "device": "am-vxlan", "mtu": 1450, "state": "taken", "since": 1}
    return PairState(**{"peer": peer, "model": model, "via": VIA.get(peer), **reported, **more})  # type: ignore[arg-type]


async def agents(bus_for: BusFor, reported: Mapping[str, tuple[PairState, ...]], named: str = "") -> None:
    """Routing agents that answer as the real ones; ``named``: what they say that they are."""
    for node, pairs in reported.items():
        bus = await bus_for("routing", node)

        def answer(asked: PairsRequest, node: str = node, pairs: tuple[PairState, ...] = pairs) -> Pairs | None:
            return chosen(asked, named or node, pairs)

        await bus.serve_everyone(subjects.PAIRS, PairsRequest, answer)
        offer = NodeRoutes(node, (VIA[node],), (ip_network(f"10.244.0.{64 * int(node[1])}/26"),))
        await bus.bucket(subjects.ROUTES).put(node, offer)


@pytest.mark.usefixtures("buckets")
async def test_each_agent_reports_of_its_own_pairs(nats_server: NatsServer, bus_for: BusFor) -> None:
    await agents(bus_for, {"n1": (pair("n2"),), "n2": (pair("n1", pending="ipip", state="pending"),)}, named="n9")
    shown = await airmesh(environment(nats_server), "routes")
    assert shown.code == 0, shown.err
    assert "pending: ipip" in shown.out
    assert "10.244.0.128/26" in shown.out
    printed = json.loads((await airmesh(environment(nats_server), "routes", "--output", "json")).out)
    assert [(one["node"], one["peer"], one["model"], one["via"]) for one in printed["pairs"]] == [
        ("n1", "n2", "vxlan", "172.30.0.12"),
        ("n2", "n1", "vxlan", "172.30.0.11"),
    ], "each under the name of its key"
    assert printed["silent"] == []
    assert {one["prefix"] for one in printed["routes"]} == {"10.244.0.64/26", "10.244.0.128/26"}


@pytest.mark.usefixtures("buckets")
async def test_a_pair_without_a_way_is_reported_wherever_one_looks(nats_server: NatsServer, bus_for: BusFor) -> None:
    lost = pair("n2", model="", state="none", why="no address of the family")
    await agents(bus_for, {"n1": (lost,)})
    assert (await airmesh(environment(nats_server), "routes")).code == 1
    status = await airmesh(environment(nats_server), "status")
    assert "node n1 has no way to IPv4 pods of n2: no address of the family" in " ".join(status.out.split())


@pytest.mark.usefixtures("buckets")
async def test_a_pair_is_explained_by_both_of_its_ends(nats_server: NatsServer, bus_for: BusFor) -> None:
    lost = GivenUp("ipip", "5 probes in a row were not answered", 7)
    reported = {"n1": (pair("n2", state="given-up", given_up=(lost,)), pair("n3")), "n2": (pair("n1"),)}
    await agents(bus_for, reported)
    output = await airmesh(environment(nats_server), "routes", "explain", "n1", "n2", "-o", "json")
    assert output.code == 0, output.err
    ends = json.loads(output.out)["ends"]
    assert [(end["node"], [one["peer"] for one in end["pairs"]]) for end in ends] == [("n1", ["n2"]), ("n2", ["n1"])]
    assert ends[0]["pairs"][0]["given_up"] == [{"model": "ipip", "why": lost.why, "at": 7}]
    page = await airmesh(environment(nats_server), "routes", "explain", "n1", "n2")
    assert "5 probes in a row were not answered" in page.out


@pytest.mark.usefixtures("buckets")
async def test_who_does_not_answer_is_named(nats_server: NatsServer, bus_for: BusFor) -> None:
    await fill(bus_for)
    await serve(bus_for)
    await agents(bus_for, {"n2": (pair("n1"),)})
    assert "no routing agent answers for: n1" in (await airmesh(environment(nats_server), "routes")).out
    half = await airmesh(environment(nats_server), "routes", "explain", "n2", "n1")
    assert half.code == 1
    assert "its routing agent does not answer" in half.out


@pytest.mark.usefixtures("buckets")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("routes explain n7 n8", 4, "no routing agent of n7 or n8 answers"),
        ("routes explain n1 n1", 2, "n1 is named twice"),
        ("routes explain n1", 2, "Missing argument"),
        ("routes --node n7", 4, "no node n7 offers routes"),
    ],
)
async def test_what_cannot_be_shown_is_one_sentence(
    nats_server: NatsServer, arguments: str, code: int, says: str
) -> None:
    output = await airmesh(environment(nats_server), *arguments.split())
    assert output.code == code, output
    assert says in output.err
