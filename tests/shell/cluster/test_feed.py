"""List and watch: whatever the server does, the cache ends as the server is."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from chassis.telemetry.log import Log
from proto.objects import KIND_OF, ConfigMap, IPPool, Kind, Namespace, NetworkPolicy
from services.cluster.core.cache import Cache
from services.cluster.feed import Feed, Pace
from services.cluster.kube import Kube, Refusal
from services.cluster.kubeconfig import Credentials
from tests.natsd import Lines
from tests.shell.cluster.apiserver import ApiServer

QUICK = Pace(page=3, watch=60, first_wait=0.02, longest_wait=0.1)
NAMESPACES = KIND_OF[Namespace]


@asynccontextmanager
async def following(
    api: ApiServer, kind: Kind = NAMESPACES, pace: Pace = QUICK, grace: float = 15.0
) -> AsyncIterator[Feed]:
    kube = Kube(Credentials(server=api.url), grace=grace)
    await kube.open()
    log = Log("cluster", stream=Lines())  # type: ignore[arg-type]
    feed = Feed(kube, Cache(kind), log=log, pace=pace, on_change=lambda: None)
    task = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


def labels(feed: Feed) -> dict[str, str]:
    """Name → label ``v`` of every namespace the cache knows."""
    return {name: dict(known.value.labels)["v"] for (_, name), known in feed.cache.known.items()}  # type: ignore[union-attr]


def _has(feed: Feed, name: str, v: str) -> bool:
    return labels(feed).get(name) == v


def truth(api: ApiServer) -> dict[str, str]:
    return {name: o["metadata"]["labels"]["v"] for (_, name), o in api.objects["Namespace"].items()}


async def put(api: ApiServer, name: str, v: str) -> None:
    await api.put("Namespace", {"metadata": {"labels": {"v": v}}}, name=name)


async def test_pages_make_one_list(api: ApiServer) -> None:
    for number in range(10):
        await put(api, f"a{number}", "1")
    async with following(api) as feed:
        await until(lambda: feed.cache.synced)
        assert labels(feed) == truth(api)
        assert sum("continue=" in line for line in api.requests) == 3


async def test_follows_what_is_made_changed_and_deleted(api: ApiServer) -> None:
    async with following(api) as feed:
        await until(lambda: feed.cache.synced)
        await put(api, "a", "1")
        await put(api, "b", "1")
        await put(api, "a", "2")
        await api.delete("Namespace", name="b")
        await until(lambda: labels(feed) == {"a": "2"})
        assert feed.lists == 1


async def gone_by_status(api: ApiServer) -> None:
    api.drop()


async def gone_by_event(api: ApiServer) -> None:
    await api.send_error(410, "Expired")


async def gone_by_event_without_a_code(api: ApiServer) -> None:
    await api.send_error(0, "Gone")


@pytest.mark.parametrize("hurt", [gone_by_status, gone_by_event, gone_by_event_without_a_code])
async def test_expired_means_list_again_and_find_what_was_deleted(
    api: ApiServer, hurt: Callable[[ApiServer], object]
) -> None:
    await put(api, "stays", "1")
    await put(api, "goes", "1")
    async with following(api) as feed:
        await until(lambda: len(labels(feed)) == 2)
        history = len(api.history)
        await api.delete("Namespace", name="goes")
        del api.history[history:]
        api.compact()
        await hurt(api)  # type: ignore[misc]
        await until(lambda: labels(feed) == {"stays": "1"})
        assert feed.lists == 2


async def test_a_server_that_only_ever_says_gone_is_not_asked_in_a_tight_loop(api: ApiServer) -> None:
    api.refuse(10**6, 410, "Expired", when="watch=true")
    async with following(api):
        await until(lambda: api.lists("Namespace") >= 3)
        before = api.lists("Namespace")
        await asyncio.sleep(1.0)
        assert api.lists("Namespace") - before <= 25


async def test_an_expired_continue_begins_the_list_again(api: ApiServer) -> None:
    for number in range(7):
        await put(api, f"a{number}", "1")
    seen: list[str] = []

    def expire_once(request: object) -> None:
        line = api.requests[-1]
        if "continue=" in line and not seen:
            seen.append(line)
            api.compact()

    api.faults.append(expire_once)
    async with following(api) as feed:
        await until(lambda: feed.cache.synced)
        assert labels(feed) == truth(api)
        assert seen
        assert api.lists("Namespace") == 2
        assert feed.lists == 1


async def test_a_cut_watch_goes_on_from_where_it_stood(api: ApiServer) -> None:
    async with following(api) as feed:
        await until(lambda: feed.cache.synced)
        for round_ in range(3):
            await put(api, "a", str(round_))
            await until(partial(_has, feed, "a", str(round_)))
            api.drop()
            await put(api, f"b{round_}", "1")
        await until(lambda: labels(feed) == truth(api))
        assert feed.lists == 1


async def test_an_event_twice_changes_nothing(api: ApiServer) -> None:
    api.duplicate = True
    async with following(api) as feed:
        await until(lambda: feed.cache.synced)
        await put(api, "a", "1")
        await put(api, "b", "1")
        await api.delete("Namespace", name="a")
        await put(api, "b", "2")
        await until(lambda: labels(feed) == {"b": "2"})


async def test_a_silent_server_is_left(api: ApiServer) -> None:
    """Connected, and not a byte more, not even the end of the watch."""
    async with following(api, pace=Pace(watch=0.5, first_wait=0.02, longest_wait=0.1), grace=0.5) as feed:
        await until(lambda: feed.cache.synced)
        api.silent = True
        api.drop()
        await until(lambda: sum("watch=true" in line for line in api.requests) >= 2)
        await put(api, "a", "1")
        await asyncio.sleep(0.2)
        assert labels(feed) == {}
        await until(lambda: feed.trouble != "")
        await api.speak()
        await until(lambda: labels(feed) == {"a": "1"})


async def test_retry_after_is_honoured(api: ApiServer) -> None:
    api.refuse(1, 429, "TooManyRequests", retry_after="1")
    began = time.monotonic()
    async with following(api) as feed:
        await until(lambda: "429" in feed.trouble)
        await until(lambda: feed.cache.synced)
        assert time.monotonic() - began >= 1.0
        assert feed.trouble == ""


async def test_bookmarks_spare_a_list(api: ApiServer) -> None:
    api.bookmarks = "always"
    async with following(api) as feed:
        await until(lambda: feed.cache.synced)
        await put(api, "a", "1")
        await until(lambda: labels(feed) == {"a": "1"})
        for number in range(20):
            await api.put("Pod", {"spec": {}}, "prod", f"p{number}")
        await asyncio.sleep(0.1)
        api.compacted = api.version
        api.drop()
        await put(api, "b", "1")
        await until(lambda: labels(feed) == truth(api))
        assert feed.lists == 1


async def test_without_bookmarks_it_lists_when_it_must(api: ApiServer) -> None:
    api.bookmarks = "never"
    async with following(api) as feed:
        await until(lambda: feed.cache.synced)
        for number in range(5):
            await api.put("Pod", {"spec": {}}, "prod", f"p{number}")
        api.compact()
        api.drop()
        await put(api, "b", "1")
        await until(lambda: labels(feed) == truth(api))
        assert feed.lists == 2


async def test_a_kind_that_comes_later(api: ApiServer) -> None:
    api.absent.add("IPPool")
    async with following(api, KIND_OF[IPPool]) as feed:
        await until(lambda: feed.absent)
        assert not feed.cache.synced
        await api.put("IPPool", {"spec": {"cidr": "10.0.0.0/16"}})
        api.absent.clear()
        await until(lambda: feed.cache.synced)
        assert len(feed.cache.known) == 1


async def test_only_coredns_own_config_map_is_asked_for(api: ApiServer) -> None:
    await api.put("ConfigMap", {"data": {"Corefile": "x"}}, "kube-system", "coredns")
    await api.put("ConfigMap", {"data": {"secret": "x"}}, "kube-system", "other")
    await api.put("ConfigMap", {"data": {"Corefile": "y"}}, "prod", "coredns")
    async with following(api, KIND_OF[ConfigMap]) as feed:
        await until(lambda: feed.cache.synced)
        assert set(feed.cache.known) == {("kube-system", "coredns")}


async def test_the_last_good_version_stays(api: ApiServer) -> None:
    good = {"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    broken: dict[str, Any] = {"spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}}
    async with following(api, KIND_OF[NetworkPolicy]) as feed:
        await api.put("NetworkPolicy", good, "prod", "p")
        await until(lambda: feed.cache.known)
        await api.put("NetworkPolicy", broken, "prod", "p")
        await api.put("NetworkPolicy", broken, "prod", "never-good")
        await api.put("NetworkPolicy", good, "prod", "other")
        await until(lambda: len(feed.cache.known) == 3)
        assert set(feed.cache.faults) == {("prod", "p"), ("prod", "never-good")}
        assert feed.cache.known["prod", "p"].value is not None
        assert feed.cache.known["prod", "never-good"].value is None
        await api.put("NetworkPolicy", good, "prod", "p")
        await api.delete("NetworkPolicy", "prod", "never-good")
        await until(lambda: not feed.cache.faults)


async def test_the_server_goes_away_and_comes_back(api: ApiServer) -> None:
    async with following(api) as feed:
        await put(api, "a", "1")
        await until(lambda: feed.cache.synced)
        await api.stop()
        await until(lambda: feed.trouble != "")
        assert labels(feed) == {"a": "1"}
        await api.delete("Namespace", name="a")
        await put(api, "b", "1")
        await api.start()
        await until(lambda: labels(feed) == {"b": "1"})


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_the_end_is_the_same(api: ApiServer, seed: int) -> None:
    chance = random.Random(seed)
    api.bookmarks = chance.choice(["never", "always", "sometimes"])
    api.duplicate = chance.random() < 0.5
    async with following(api) as feed:
        for _ in range(150):
            name = f"a{chance.randrange(8)}"
            match chance.randrange(12):
                case 0:
                    api.drop()
                case 1:
                    api.compact()
                case 2:
                    await api.send_error(410, "Expired")
                case 3:
                    api.refuse(1, chance.choice([500, 503, 410]), "Expired")
                case 4 if ("", name) in api.objects["Namespace"]:
                    await api.delete("Namespace", name=name)
                case _:
                    await put(api, name, str(chance.randrange(1000)))
            await asyncio.sleep(chance.choice([0, 0, 0.005]))
        await until(lambda: feed.cache.synced and labels(feed) == truth(api))


async def test_refusals_carry_what_the_server_said(api: ApiServer) -> None:
    kube = Kube(Credentials(server=api.url))
    await kube.open()
    api.refuse(1, 403, "Forbidden")
    with pytest.raises(Refusal) as caught:
        await kube.page("/api/v1/namespaces", limit=1)
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    await api.stop()
    with pytest.raises(Refusal) as caught:
        await kube.page("/api/v1/namespaces", limit=1)
    assert caught.value.status == 0
    await kube.close()
