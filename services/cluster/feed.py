"""The reflector of one kind: list, then watch, and list again when the API server says so.

Promises that a cache is only ever replaced by a whole list, that a broken watch goes on from where it stood, and that a
kind the server does not have (404: its CRD is not there) is asked for quietly until it is. Decides nothing about
objects: they go to the cache as they came. Waits are in seconds, with jitter, and honour Retry-After.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import msgspec
from prometheus_client import Counter, Gauge

from chassis.telemetry.log import Log
from kit import backoff
from proto.objects import ConfigMap, Deployment, Kind
from services.cluster.core.cache import Cache
from services.cluster.core.spellings import label
from services.cluster.core.watching import (
    FIRST_WAIT,
    LONGEST_WAIT,
    Patience,
    Status,
    WatchEvent,
    is_expired,
    version_of,
)
from services.cluster.core.workloads import COREDNS
from services.cluster.kube import Kube, Refusal

MAX_PAGES = 100_000
HASTE = 1.0
"""A watch that ends sooner than this ended badly."""

_EVENTS = Counter("airmesh_kube_events", "Watch events", ["kind", "type"])
_LISTS = Counter("airmesh_kube_lists", "Whole lists", ["kind"])
_OBJECTS = Gauge("airmesh_kube_objects", "Objects known", ["kind"])
_HEARD = Gauge("airmesh_kube_last_heard_seconds", "Unix time of the last answer", ["kind"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much is asked at once and for how long."""

    page: int = 500
    """Objects a page."""
    watch: float = 300.0
    """Shortest time of one watch in seconds; the longest is twice that."""
    first_wait: float = FIRST_WAIT
    longest_wait: float = LONGEST_WAIT


class Feed:
    """Keeps ``cache`` as the API server has it; ``on_change`` is called on the loop after each change."""

    def __init__(self, kube: Kube, cache: Cache, *, log: Log, pace: Pace, on_change: Callable[[], None]) -> None:
        self._kube = kube
        self.cache = cache
        self._kind = label(cache.kind)
        self._log = log.bind(kind=self._kind)
        self._pace = pace
        self._on_change = on_change
        self._path, self._fields = source_of(cache.kind)
        self.trouble = ""
        """Why it does not follow at the moment; empty while it does."""
        self.absent = False
        """The server does not have this kind."""
        self.lists = 0
        self._patience = Patience()

    async def run(self) -> None:
        """For ever."""
        version = ""
        while True:
            self._patience = self._patience.began(time.monotonic())
            try:
                if not version:
                    version = await self._list()
                listed = time.monotonic()
                version = await self._follow(version)
                if time.monotonic() - listed < HASTE:
                    # What was just listed is gone already: a server in trouble, which lists would only add to.
                    await self._wait(Refusal(410, "Expired", f"{self._path}: the watch expired at once"))
            except Refusal as refusal:
                if refusal.expired:
                    version = ""
                await self._wait(refusal)
            except msgspec.MsgspecError as error:
                version = ""
                await self._wait(Refusal(0, "", f"unreadable answer: {error}"))

    async def _list(self) -> str:
        """Take a whole list; its version. An expired ``continue`` is a Refusal like any other 410."""
        items: list[bytes] = []
        more = version = ""
        for _ in range(MAX_PAGES):
            page = await self._kube.page(self._path, limit=self._pace.page, more=more, fields=self._fields)
            items += [bytes(item) for item in page.items or ()]
            more, version = page.metadata.more, page.metadata.resource_version
            if not more:
                break
        if more or not version:
            raise Refusal(0, "", f"{self._path}: a list without end or without a version")
        for _ in self.cache.replacing(items):
            await asyncio.sleep(0)
        self.lists += 1
        self._heard()
        self._log.info("listed", objects=len(items), broken=len(self.cache.faults))
        _LISTS.labels(self._kind).inc()
        self._on_change()
        return version

    async def _follow(self, version: str) -> str:
        """Watch until something ends it; the version to go on from, empty to list again."""
        while True:
            began = time.monotonic()
            seconds = max(1, round(self._pace.watch * (1 + random.random())))  # noqa: S311 - spreads load
            heard = False
            stream = self._kube.watch(self._path, version=version, seconds=seconds, fields=self._fields)
            try:
                async with aclosing(stream):
                    async for event in stream:
                        heard = True
                        if event.type == "ERROR":
                            return self._failed(event)
                        self._heard()
                        self._patience = self._patience.succeeded()
                        version = self._take(event) or version
            except Refusal as refusal:
                if refusal.expired:
                    return ""
                await self._wait(refusal)
                continue
            if not heard and time.monotonic() - began < HASTE:
                # A server (or a proxy before it) that closes at once must not be asked in a tight loop.
                await self._wait(Refusal(0, "", f"{self._path}: the watch was closed at once"))

    def _take(self, event: WatchEvent) -> str:
        raw = bytes(event.object)
        if event.type == "DELETED":
            self.cache.remove(raw)
        elif event.type != "BOOKMARK":
            self.cache.upsert(raw)
        _EVENTS.labels(self._kind, event.type).inc()
        if event.type != "BOOKMARK":
            self._on_change()
        return version_of(raw)

    def _failed(self, event: WatchEvent) -> Literal[""]:
        """An ERROR event: expired means list again at once; anything else is a Refusal, then list again too."""
        status = msgspec.json.decode(event.object, type=Status)
        if is_expired(status.code, status.reason):
            self._log.info("watch-expired", reason=status.reason)
            return ""
        # client-go lists again after any ERROR: what the stream left out cannot be known.
        raise Refusal(status.code or 0, "Expired", f"{self._path}: {status.message}")

    def _heard(self) -> None:
        self.trouble = ""
        self.absent = False
        _HEARD.labels(self._kind).set(time.time())
        _OBJECTS.labels(self._kind).set(len(self.cache.known))

    async def _wait(self, refusal: Refusal) -> None:
        self._patience = self._patience.failed(time.monotonic())
        attempt = self._patience.failures - 1
        chance = random.random()  # noqa: S311 - spreads load
        wait = backoff.delay(attempt, chance, first=self._pace.first_wait, longest=self._pace.longest_wait)
        if refusal.retry_after is not None:
            wait = min(max(refusal.retry_after, 0.05) * (1 + chance / 4), 300.0)
        was_absent, self.absent = self.absent, refusal.status == 404
        self.trouble = str(refusal)
        if not (self.absent and was_absent):
            say = self._log.info if self.absent else self._log.warning
            say("feed-waits", why=refusal, attempt=attempt, seconds=round(wait, 2))
        if self.absent and not was_absent:
            self._on_change()  # whoever waits to know what there is knows now
        if self.absent:
            wait = min(wait, 2.0)
        await asyncio.sleep(wait)


def source_of(kind: Kind) -> tuple[str, str]:
    """API path of a kind's list, and the field selector: of ConfigMaps and Deployments only CoreDNS' own are ours."""
    if kind.type in (ConfigMap, Deployment):
        namespace, name = COREDNS
        return f"{kind.api}/namespaces/{namespace}/{kind.plural}", f"metadata.name={name}"
    return f"{kind.api}/{kind.plural}", ""
