"""The status of CalicoNodeStatus objects: who is heard, what is written, and how often."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from chassis.bus.client import Bus
from proto.bgp import BgpStatus, PeerStatus
from proto.subjects import event_subject
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.shell.cluster.apiserver import ApiServer
from tests.shell.cluster.test_mirror import cluster, until

ALL = {"classes": ["Agent", "BGP", "Routes"], "updatePeriodSeconds": 1}
PEER = PeerStatus(ip_address("10.0.0.9"), "GlobalPeer", "Active")


def report(agent: Bus, reported: BgpStatus) -> None:
    agent.publish(event_subject("routing", "bgp-status"), reported)


def written(api: ApiServer, path: str) -> list[dict[str, Any]]:
    """What was applied to an object's status, in order."""
    return [body["status"] for where, _, body in api.applied if where == f"/apis/{path}/status"]


async def test_what_a_nodes_own_key_says_is_written_as_often_as_asked(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    of_one = "crd.projectcalico.org/v1/caliconodestatuses/one"
    again = "projectcalico.org/v3/caliconodestatuses/again"
    await api.put("CalicoNodeStatus", {"spec": {"node": "n1", **ALL}}, name="one")
    await api.put("CalicoNodeStatus", {"spec": {"node": "n1", **ALL, "updatePeriodSeconds": 0}}, name="never")
    await api.put("CalicoNodeStatus", {"spec": {"node": "n2", **ALL}}, name="two")
    await api.put("CalicoNodeStatus.v3", {"spec": {"node": "n1", **ALL, "classes": ["BGP"]}}, name="again")
    agent = await bus_for("routing", "n1")
    reported = BgpStatus("n2", speaks=True, peers=(PEER,), established=(1, 0))  # it lies about whose it is
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)

        def both() -> bool:
            report(agent, reported)
            return bool(written(api, of_one) and written(api, again))

        await until(both)
        status = written(api, of_one)[0]
        assert status.keys() == {"lastUpdated", "agent", "bgp", "routes"}
        assert status["agent"]["birdV4"]["version"].startswith("airmesh v")
        assert [one["peerIP"] for one in status["bgp"]["peersV4"]] == ["10.0.0.9"]
        assert written(api, again)[0].keys() == {"lastUpdated", "bgp"}

        reported = replace(reported, established=(2, 0))

        def again_with_what_changed() -> bool:
            report(agent, reported)
            return any(one["bgp"]["numberEstablishedV4"] == 2 for one in written(api, of_one))

        await until(again_with_what_changed)
        paths = {where for where, _, _ in api.applied if "caliconodestatuses" in where}
        assert paths == {f"/apis/{of_one}/status", f"/apis/{again}/status"}, "never another node's, nor what is off"
        assert {manager for where, manager, _ in api.applied if "caliconodestatuses" in where} == {"airmesh-cluster"}


async def test_a_node_that_is_silent_leaves_its_object_as_it_is(
    nats_server: NatsServer, api: ApiServer, bus_for: BusFor, tmp_path: Path
) -> None:
    path = "crd.projectcalico.org/v1/caliconodestatuses/one"
    await api.put("CalicoNodeStatus", {"spec": {"node": "n1", **ALL}}, name="one")
    agent = await bus_for("routing", "n1")
    async with cluster(nats_server, api, tmp_path) as runtime:
        await until(lambda: runtime.health.ready)

        def first() -> bool:
            report(agent, BgpStatus("n1", speaks=True))
            return bool(written(api, path))

        await until(first)
        last = len(written(api, path))
        await api.put("CalicoNodeStatus", {"spec": {"node": "n1", **ALL, "classes": ["BGP"]}}, name="one")
        await api.put("CalicoNodeStatus", {"spec": {"node": "n9", **ALL}}, name="other")
        report(agent, BgpStatus("n1", speaks=False))
        await until(lambda: len(written(api, path)) > last)
        assert written(api, path)[-1].keys() == {"lastUpdated", "bgp"}
        assert not written(api, "crd.projectcalico.org/v1/caliconodestatuses/other"), "of whom nobody has reported"
