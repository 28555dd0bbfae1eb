"""Three servers with TLS between them: who may join, and that buckets grow to as many copies as there are servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.bus.nats_config import Cluster, Server, server_part
from chassis.secret import Secret
from proto.events import ServiceFault
from proto.subjects import BLOCKS, BUCKETS, EVENTS
from tests.nats_cluster import NatsCluster, insist, until
from tests.natsd import NatsServer, bus_of, free_port, runtime_of
from tests.pki import Authority


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NatsCluster]:
    made = NatsCluster(tmp_path, signed=getattr(request, "param", False))
    made.start()
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [False, True], ids=["listed users", "signed accounts"], indirect=True)
async def test_a_bucket_gets_as_many_copies_as_there_are_servers_and_lives_without_one(cluster: NatsCluster) -> None:
    await cluster.ready()
    async with runtime_of(cluster.servers[0], "cluster", url=cluster.url) as runtime:
        epochs = await insist(lambda: runtime.bus.make_buckets(1))
        assert await insist(lambda: runtime.bus.make_buckets(3)) == epochs, "what it holds stays"
        assert await insist(lambda: runtime.bus.make_buckets(1)) == epochs, "and is not taken back by who forgets it"
        names = {bucket.stream for bucket in BUCKETS}

        def copied() -> bool:
            return all(
                len(found.get("cluster", {}).get("replicas", ())) == 2
                and all(one["current"] for one in found["cluster"]["replicas"])
                for name in names
                if (found := cluster.streams(cluster.number(cluster.leader(name))).get(name, {})) is not None
            )

        await until("all have three copies", copied)
        cluster.servers[cluster.number(cluster.leader(BLOCKS.stream))].kill()
        await until("another leads", lambda: cluster.leader(BLOCKS.stream) != "")
        await runtime.bus.wait_connected(30)
        assert await insist(lambda: runtime.bus.make_buckets(3)) == epochs


async def test_where_there_is_one_server_the_bucket_stays_and_it_is_said(nats_server: NatsServer) -> None:
    async with bus_of(nats_server, "cluster") as bus, bus_of(nats_server, "cli") as observer:
        heard: list[str] = []
        await observer.subscribe(f"{EVENTS}.cluster.fault", ServiceFault, lambda _, fault: heard.append(fault.fault))
        epochs = await bus.make_buckets(1)
        for _ in range(2):
            assert await bus.make_buckets(3) == epochs
        wanted = {f"{bucket.stream} has 1 of 3 copies" for bucket in BUCKETS}
        await until("each is told", lambda: {fault.partition(":")[0] for fault in heard} == wanted)
        assert len(heard) == len(wanted), "and once"


@pytest.mark.parametrize("lacks", ["the secret", "the authority"])
async def test_no_stranger_joins_the_servers(cluster: NatsCluster, tmp_path: Path, lacks: str) -> None:
    await cluster.ready()
    first = cluster.servers[0]
    tls = first.tls if lacks == "the secret" else Authority(tmp_path / "other").sign(tmp_path / "stranger-tls")
    where = tmp_path / "stranger"
    routes = [line for line in first.config.read_text().splitlines() if "nats://route" in line]
    ports = tuple(line.rsplit("@", 1)[1].strip(' ",') for line in routes)
    secret = Secret("another" if lacks == "the secret" else "a secret of this test")
    server = Server(
        store_dir=where / "store",
        port=free_port(),
        name="s4",
        tls=tls,
        cluster=Cluster(port=free_port(), routes=ports, secret=secret),
    )
    stranger = first.beside(where, server)
    assert "cluster" in server_part(server)
    try:
        stranger.start()
        words = "Authorization Violation" if lacks == "the secret" else "TLS handshake error"
        await until("it was refused", lambda: words.lower() in (where / "nats.log").read_text().lower())
        assert {route["remote_name"] for route in cluster.look(0, "routez")["routes"]} == {"s2", "s3"}
    finally:
        stranger.close()
