"""What a person sees of the models, by the real agents: `airmesh routes`, its explanation, and Events on pools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proto.events import ObjectFault
from proto.subjects import object_fault_subject
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.netns.routing.test_tunnels import Pair, pair, pods, until
from tests.shell.cli.test_commands import airmesh, environment

__all__ = ["pair", "pods"]

pytestmark = pytest.mark.privileged


async def printed(server: NatsServer, *arguments: str) -> Any:
    output = await airmesh(environment(server), *arguments, "-o", "json")
    assert output.code == 0, output.err
    return json.loads(output.out)


async def test_the_command_says_what_the_kernels_do(pair: Pair, nats_server: NatsServer) -> None:
    everyone = {(node, family) for node in ("n1", "n2") for family in (4, 6)}
    await pair.pools(vxlan_mode="Always")
    await pair.start()
    await until(lambda: pair.taken("vxlan") == everyone, 60)
    report = await printed(nats_server, "routes")
    assert report["silent"] == []
    found = {(one["node"], one["peer"], one["family"]): one for one in report["pairs"]}
    assert found.keys() == {(node, peer, family) for node, peer in (("n1", "n2"), ("n2", "n1")) for family in (4, 6)}
    for (_, peer, family), one in found.items():
        assert (one["model"], one["device"], one["mtu"], one["state"]) == ("vxlan", "am-vxlan", 1450, "taken"), one
        via = {("n1", 4): "172.30.0.11", ("n2", 4): "172.30.0.12"}.get((peer, family), one["via"])
        assert one["via"] == via
        assert one["asked"] == ["vxlan"]

    async def measured() -> set[tuple[str, bool]]:
        ends = (await printed(nats_server, "routes", "explain", "n1", "n2"))["ends"]
        assert [end["node"] for end in ends] == ["n1", "n2"]
        return {(one["what"], one["answered"]) for end in ends for pair in end["pairs"] for one in pair["measured"]}

    while not await measured() >= {("small", True), ("largest", True)}:
        continue


async def test_agents_answer_that_nobody_asks_them_to_speak_bgp(pair: Pair, nats_server: NatsServer) -> None:
    await pair.pools(vxlan_mode="Always")
    await pair.start()
    report = await printed(nats_server, "bgp")
    assert (report["without"], report["sessions"], report["faults"]) == (["n1", "n2"], [], [])
    refused = await airmesh(environment(nats_server), "bgp", "routes", "--node", "n1")
    assert refused.code == 4, refused
    assert "node n1 speaks no BGP" in refused.err


async def test_a_pool_that_a_pair_cannot_have_says_so(pair: Pair, bus_for: BusFor) -> None:
    """IPIP of an IPv6 pool: the API server refuses it, unless somebody else's CRD lets it pass."""
    said: list[ObjectFault] = []
    listener = await bus_for("cluster")
    await listener.subscribe(object_fault_subject("routing", "*"), ObjectFault, lambda _, fault: said.append(fault))
    await pair.pools(ipip_mode="Always")
    await pair.start()
    await until(lambda: {(fault.kind, fault.name) for fault in said} >= {("IPPool", "six")}, 60)
    fault = next(fault for fault in said if fault.name == "six")
    assert (fault.reason, fault.group) == ("ModelUnavailable", "crd.projectcalico.org")
    assert fault.fault.startswith(f"on node {fault.node}, ")
    assert fault.remedy
