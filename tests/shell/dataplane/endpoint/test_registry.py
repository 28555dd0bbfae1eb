"""The node's endpoints in memory: rebuilt of journal and kernel, and one call at a time about each attachment."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from ipaddress import ip_address

import pytest

from proto.net import Address
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint import links as marks
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.endpoint.links import HOST_MAC, KernelLinks, Mark, SeenLink
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.core.ipam.journal_state import Ledger
from services.dataplane.endpoint.registry import Registry, orphans, rebuild

A, B, C = Attachment("aaa", "eth0"), Attachment("bbb", "eth0"), Attachment("aaa", "eth1")
V4, V6 = ip_address("10.244.0.1"), ip_address("fd00:10:244::1")


def lease(attachment: Attachment, address: Address) -> Lease:
    return Lease(
        address=address,
        container=attachment.container,
        interface=attachment.interface,
        namespace="shop",
        pod="web-0",
        pod_uid="uid",
        nonce="n",
        epoch=1,
        boot="boot",
        at=1.0,
        sequence=1,
    )


def link(attachment: Attachment, index: int, cookie: int = 7) -> SeenLink:
    return SeenLink(
        index=index,
        name=marks.host_name(attachment),
        alias=marks.alias(Mark(attachment, "uid", cookie)),
        group=marks.GROUP_LIVE,
        up=True,
        mtu=1500,
        mac=HOST_MAC,
    )


class Journal(Ledger):
    """What a journal says, without its records."""

    def __init__(self, **held: tuple[Lease, ...]) -> None:
        self.held = {tuple(key.split("_")): leases for key, leases in held.items()}

    @property
    def leases(self) -> dict[tuple[str, str], dict[Address, Lease]]:  # type: ignore[override]
        return {key: {one.address: one for one in leases} for key, leases in self.held.items()}  # type: ignore[misc]

    def held_by(self, key: tuple[str, str]) -> tuple[Lease, ...]:
        return self.held.get(key, ())


def endpoint(attachment: Attachment, index: int = 3) -> LocalEndpoint:
    return LocalEndpoint(attachment=attachment, leases=(lease(attachment, V4),), index=index, cookie=7)


def test_what_journal_and_kernel_agree_on_lives_on() -> None:
    journal = Journal(aaa_eth0=(lease(A, V4), lease(A, V6)), bbb_eth0=(lease(B, V4),))
    found = rebuild(journal, KernelLinks(links=(link(A, 3, cookie=99), link(C, 4))))
    (alive,) = found.alive
    assert (alive.attachment, alive.index, alive.cookie) == (A, 3, 99)
    assert [one.address for one in alive.leases] == [V4, V6]
    assert found.dead == (B,), "its pod is gone with its link"


def test_an_attachment_without_addresses_is_undone() -> None:
    assert rebuild(Journal(aaa_eth0=()), KernelLinks(links=(link(A, 3),))).dead == (A,)


def test_a_link_that_no_record_speaks_of_is_reported_with_what_is_routed_to_it() -> None:
    """A lost journal: its pods run on, and their addresses are learnt from the kernel."""
    routes = frozenset({(3, V6), (3, V4), (4, ip_address("10.244.0.9")), (9, ip_address("10.244.0.10"))})
    kernel = KernelLinks(links=(link(A, 3), link(B, 4), link(C, 5)), routes=routes)
    found = orphans(Journal(bbb_eth0=(lease(B, ip_address("10.244.0.9")),)), kernel)
    ((mark, (seen, addresses)),) = found.items()
    assert (mark.attachment, seen.index) == (A, 3)
    assert addresses == (V4, V6), "IPv4 first"


def test_who_listens_hears_of_each_change_once() -> None:
    registry = Registry()
    cursor = registry.signal.cursor()
    registry.fill([endpoint(A), endpoint(B)])
    assert cursor.take() == {"aaa", "bbb"}
    registry.put(endpoint(A, index=5))
    assert cursor.take() == {"aaa"}
    assert registry.up[A].index == 5
    removed = registry.remove(A)
    assert removed is not None
    assert removed.index == 5
    assert cursor.take() == {"aaa"}
    assert registry.remove(A) is None
    assert not cursor.pending, "nothing changed"
    assert list(registry.up) == [B]


async def test_calls_about_one_attachment_are_served_one_after_the_other() -> None:
    registry, order = Registry(), list[str]()

    async def call(name: str, attachment: Attachment) -> None:
        async with registry.alone(attachment):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(call("one", A), call("two", A), call("other", B))
    assert order.index("one ends") < order.index("two begins")
    assert order.index("other begins") < order.index("one ends"), "nobody waits for another attachment"
    assert registry.busy == frozenset()


@pytest.mark.parametrize("fails", [True, False])
async def test_an_attachment_is_busy_until_its_last_call_has_ended(fails: bool) -> None:
    registry, go_on = Registry(), asyncio.Event()

    async def call() -> None:
        async with registry.alone(A):
            await go_on.wait()
            if fails:
                raise OSError

    calls = [asyncio.create_task(call()) for _ in range(2)]
    await asyncio.sleep(0)
    assert registry.busy == {A}
    go_on.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(one, OSError) for one in results] == [fails, fails]
    assert registry.busy == frozenset(), "a lock that nobody holds is forgotten"


async def test_a_call_that_gives_up_waiting_leaves_the_others_in_order() -> None:
    registry, go_on, served = Registry(), asyncio.Event(), list[int]()

    async def call(number: int) -> None:
        async with registry.alone(A):
            served.append(number)
            await go_on.wait()

    first, second, third = (asyncio.create_task(call(number)) for number in range(3))
    await asyncio.sleep(0)
    second.cancel()
    with suppress(asyncio.CancelledError):
        await second
    assert registry.busy == {A}
    go_on.set()
    await asyncio.gather(first, third)
    assert served == [0, 2]
    assert registry.busy == frozenset()
