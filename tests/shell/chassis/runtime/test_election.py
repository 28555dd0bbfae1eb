"""Leases on a real server: one active copy, whatever is done to the record or to the store."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import Any

import msgspec
import pytest

from chassis.bus import jetstream
from chassis.bus.client import Bus
from chassis.faults import SettingsFault
from chassis.runtime.election import Election
from proto import leases, subjects
from tests.conftest import BusFor, RuntimeFor
from tests.natsd import Lines, NatsServer, bus_of, runtime_of

NEWER = msgspec.msgpack.encode((2, "", {"holder": "of a later release"}))


RESTS = 8.0
"""Seconds of a lease that is tried for each third of them."""


async def until(holds: Any, seconds: float) -> float:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not so after {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - started


async def overwrite(bus: Bus, body: bytes, *, forged: bool = False) -> None:
    """Bytes under ``leases.dns`` by who may write there; forged: as an answer steered there would look."""
    headers = None if forged else {jetstream.EXPECTED_STREAM: subjects.LEASES.stream}
    key = f"$KV.{subjects.LEASES.on_server}.dns"
    assert jetstream.parse_answer((await bus.connection.call(key, body, timeout=2, headers=headers)).data).seq


async def test_one_copy_is_active_and_the_next_takes_over(
    nats_server: NatsServer, runtime_for: RuntimeFor, buckets: dict[str, str]
) -> None:
    async with runtime_of(nats_server, "dns") as first:
        one = Election(first, "dns", seconds=RESTS)
        await until(lambda: one.held, 20)
        second = await runtime_for("dns")
        other = Election(second, "dns", seconds=RESTS)
        for _ in range(60):
            assert not (one.held and other.held)
            await asyncio.sleep(0.05)
        assert one.held
    took = await until(lambda: other.held, 30)
    assert took < RESTS, "given up at a graceful stop, so nobody waits for it to rest"
    assert other.epoch > one.epoch


async def test_a_silent_holder_is_replaced_and_knows_it_before(
    nats_server: NatsServer, runtime_for: RuntimeFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Election(await runtime_for("dns"), "dns", seconds=1.5) for _ in range(2)), None
    leases_held = [lease async for lease in one]
    await until(lambda: any(lease.held for lease in leases_held), 20)
    holder = next(lease for lease in leases_held if lease.held)
    other = next(lease for lease in leases_held if lease is not holder)

    holder_epoch = holder.epoch

    async def silent() -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(holder, "_attempt", silent)
    lost = await until(lambda: not holder.held, 3)
    assert not other.held
    taken = await until(lambda: other.held, 4)
    assert lost <= 1.6
    assert lost + taken <= 4
    entry = await (await runtime_for("dns")).bus.bucket(subjects.LEASES).get("dns", leases.Lease)
    assert entry is not None
    assert entry.value.epoch == other.epoch > holder_epoch


async def test_a_lease_whose_record_is_gone_comes_back_with_a_later_epoch(
    runtime_for: RuntimeFor, buckets: dict[str, str]
) -> None:
    runtime = await runtime_for("dns")
    lease = Election(runtime, "dns", seconds=1.5)
    await until(lambda: lease.held, 20)
    first = lease.epoch
    await runtime.bus.bucket(subjects.LEASES).delete("dns")
    await until(lambda: lease.held and lease.epoch > first, 20)


async def test_a_node_holds_its_own_lease_and_no_other(
    nats_server: NatsServer, runtime_for: RuntimeFor, buckets: dict[str, str]
) -> None:
    runtime = await runtime_for("dataplane", "n1")
    own, foreign = Election(runtime, "node.n1", seconds=3), Election(runtime, "node.n2", seconds=3)
    await until(lambda: own.held, 20)
    assert not foreign.held
    assert await asyncio.wait_for(own.changed(), 20)


async def test_seconds_that_no_copy_would_accept_are_refused(runtime_for: RuntimeFor) -> None:
    with pytest.raises(SettingsFault, match="lease dns"):
        Election(await runtime_for("dns"), "dns", seconds=7200)


@pytest.mark.parametrize(("body", "forged"), [(b"\xc1 no msgpack", False), (b"", False), (NEWER, True)])
async def test_what_nobody_can_read_is_taken_after_its_rest(
    runtime_for: RuntimeFor, bus_for: BusFor, buckets: dict[str, str], body: bytes, forged: bool
) -> None:
    lines = Lines()
    await overwrite(await bus_for("dns"), body, forged=forged)
    started = time.monotonic()
    lease = Election(await runtime_for("dns", lines=lines), "dns", seconds=1.5)
    await until(lambda: lease.held, 20)
    assert time.monotonic() - started >= 1.5
    (reported,) = lines.named("lease-unreadable")
    assert (reported["key"], reported["bucket"]) == ("dns", subjects.LEASES.on_server)
    assert "takes it after 1.5 s" in reported["remedy"]


@pytest.mark.parametrize("forged", [False, True])
async def test_the_holder_mends_what_nobody_can_read(
    runtime_for: RuntimeFor, bus_for: BusFor, buckets: dict[str, str], forged: bool
) -> None:
    holder = Election(await runtime_for("dns"), "dns", seconds=3)
    await until(lambda: holder.held, 20)
    other = Election(await runtime_for("dns"), "dns", seconds=3)
    epoch, bus = holder.epoch, await bus_for("dns")
    await overwrite(bus, b"\xc1", forged=forged)
    await until(lambda: holder.epoch > epoch and holder.held, 20)
    assert not other.held
    entry = await bus.bucket(subjects.LEASES).get("dns", leases.Lease)
    assert entry is not None
    assert entry.value.epoch == holder.epoch


async def test_what_a_newer_release_holds_is_left_to_it_and_reported_once(
    runtime_for: RuntimeFor, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    lines, bus = Lines(), await bus_for("dns")
    holder = Election(await runtime_for("dns", lines=lines), "dns", seconds=1.5)
    await until(lambda: holder.held, 20)
    epoch = holder.epoch
    await overwrite(bus, NEWER)
    await until(lambda: not holder.held, 1.5)
    await asyncio.sleep(3)
    assert not holder.held
    found = await bus.bucket(subjects.LEASES).look("dns", leases.Lease)
    assert found is not None
    assert "version 2" in str(getattr(found, "why", ""))
    (reported,) = lines.named("lease-unreadable")
    assert "delete this key" in reported["remedy"]
    await bus.bucket(subjects.LEASES).delete("dns")
    await until(lambda: holder.held, 20)
    assert holder.epoch > epoch


async def lose_the_store(server: NatsServer) -> None:
    server.kill()
    shutil.rmtree(server.folder / "store")
    server.start()
    async with bus_of(server, "cluster") as cluster:
        await cluster.make_buckets()


async def test_a_lost_store_does_not_set_the_epoch_back_for_copies_that_never_saw_it(
    nats_server: NatsServer, buckets: dict[str, str]
) -> None:
    epochs = []
    for _ in range(3):
        async with runtime_of(nats_server, "dns") as runtime:
            lease = Election(runtime, "dns", seconds=1.5)
            await until(lambda: lease.held, 20)  # noqa: B023 - waited for here
            epochs.append(lease.epoch)
        await lose_the_store(nats_server)
    assert epochs == sorted(set(epochs))


async def test_a_lost_store_changes_hands_to_no_second_holder(
    nats_server: NatsServer, runtime_for: RuntimeFor, buckets: dict[str, str]
) -> None:
    holder = Election(await runtime_for("dns"), "dns", seconds=3)
    await until(lambda: holder.held, 20)
    other = Election(await runtime_for("dns"), "dns", seconds=3)
    await until(lambda: other.epoch == holder.epoch, 20)
    epoch = holder.epoch
    await lose_the_store(nats_server)
    deadline = time.monotonic() + 8
    while not ((holder.held or other.held) and max(holder.epoch, other.epoch) > epoch):
        assert time.monotonic() < deadline, "nobody holds it any more"
        assert not (holder.held and other.held)
        await asyncio.sleep(0.01)
