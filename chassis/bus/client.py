"""The bus: requests, answers, events and buckets over one NATS connection, in the messages of ``proto``.

Nothing here waits for NATS at start: whatever is asked for before the first connect (endpoints, subscriptions, views)
is remembered and made when the connection stands; a reconnect brings it back. Requests and KV calls have a deadline
and raise ``Unavailable``; events are lossy, bounded and never block.

Trace context travels in the header ``traceparent`` (W3C), the major version of the language in ``Airmesh-Version``.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from nats.aio.msg import Msg
from prometheus_client import Counter

from chassis.bus import buckets
from chassis.bus.accounts import meet
from chassis.bus.connection import Connection
from chassis.bus.credentials import Credentials
from chassis.bus.entry import Entry
from chassis.bus.kv import KV, Conflict
from chassis.bus.micro import DISCOVERERS, EACH_NODE, VERSION_HEADER, Answer, Registration, refusal
from chassis.bus.view import Cursor, View
from chassis.faults import Bug, Refused, Unavailable
from chassis.telemetry.spans import current_traceparent
from chassis.telemetry.traces import Telemetry
from proto import codec
from proto.events import ServiceFault
from proto.requests import Reply
from proto.subjects import BUCKETS, DISCOVERY, SPANS, Bucket, event_subject, role_of_user, without_node
from proto.traces import SpansRequest

if TYPE_CHECKING:
    from chassis.telemetry.log import Log

__all__ = ["KV", "Bus", "Conflict", "Cursor", "Entry", "View", "role_of_user"]

EVENT_QUEUE = 4096
"""Events that wait to be sent; one more pushes the oldest out."""
EVENT_GATHER = 0.01
"""Seconds that an event waits for others: events come in crowds, and each write wakes the server."""
MAX_OUTBOUND = 8 << 20
"""Bytes not yet on the socket above which events are dropped."""

_STEERED_EVENTS = Counter("airmesh_events_steered", "Messages that came as events and are none", ["service"])
_DROPPED = Counter("airmesh_events_dropped", "Events that were not sent", ["service"])

A = TypeVar("A", bound=msgspec.Struct)
M = TypeVar("M", bound=msgspec.Struct)
T = TypeVar("T")
Spawn = Callable[[str, Coroutine[Any, Any, None]], None]
AnswerEveryone = Callable[[M], msgspec.Struct | None] | Callable[[M], Awaitable[msgspec.Struct | None]]


class Bus:
    """See the module. ``start`` once, then everything else; ``close`` at the end."""

    def __init__(  # noqa: PLR0913 - a service has these parts, each by name
        self,
        *,
        url: str,
        user: str,
        credentials: Credentials,
        service: str,
        instance: str,
        log: Log,
        telemetry: Telemetry,
        spawn: Spawn,
        stats: Callable[[], object] = dict,
    ) -> None:
        self._role, self._node = role_of_user(user)
        self._service = service
        self._log = log
        self._telemetry = telemetry
        self._spawn = spawn
        self.connection = Connection(url, user, credentials, instance, log)
        self.registration = Registration(service, {"instance": instance}, telemetry, log, stats, self.report_fault)
        unique = hashlib.blake2b(instance.encode(), digest_size=6).hexdigest()
        self._consumer_prefix = f"{codec.encode_segment(user).replace('=', '_')}-{unique}"
        self._events: asyncio.Queue[tuple[str, bytes, dict[str, str]]] = asyncio.Queue(EVENT_QUEUE)
        self._unheard: list[tuple[str, Callable[[Msg], Coroutine[Any, Any, None]]]] = []
        if DISCOVERY not in self._role.requests:
            self._unheard.append((SPANS, partial(self._answer_everyone, SPANS, SpansRequest, telemetry.ring.find)))
        self._registering = asyncio.Lock()
        self._views: list[View] = []
        self._lacking: dict[str, str] = {}
        """Why a bucket has fewer copies than it should, as it was told last."""
        self._epochs: dict[str, str] = {}
        """Of the buckets, by name, as they were made or found last."""
        self.dropped = 0
        """Events that were not sent."""

    @property
    def connected(self) -> bool:
        """True while requests can be sent."""
        return self.connection.connected

    @property
    def node(self) -> str:
        """Encoded node of our user; empty for a service that is not of a node."""
        return self._node

    @property
    def views(self) -> tuple[View, ...]:
        """Every mirror that was asked for."""
        return tuple(self._views)

    def start(self) -> None:
        """Start connecting (and never stop); returns at once."""
        self.connection.on_connected(self._on_connected)
        self._spawn("bus", self.connection.run())
        self._spawn("bus-events", self._send_events())

    async def close(self) -> None:
        """Send the events that wait, then close; at most three seconds."""
        try:
            async with asyncio.timeout(1):
                if self.connected:
                    await self._events.join()
        except TimeoutError:
            self._log.warning("events-left", count=self._events.qsize())
        await self.connection.close()

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Wait for the connection; raises Unavailable after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.connection.wait_connected()
        except TimeoutError:
            raise Unavailable(f"not connected after {timeout} s") from None

    def bucket(self, bucket: Bucket) -> KV:
        """The bucket, read as far as our role may."""
        grants = [grant for grant in self._role.reads if grant.bucket == bucket]
        owned = [prefix for grant in self._role.writes if grant.bucket == bucket for prefix in grant.prefixes]
        return KV(
            self.connection,
            bucket,
            whole=any(grant.prefixes == (">",) for grant in grants),
            owned=tuple(prefix.replace("{node}", self._node) for prefix in owned),
            consumer_prefix=self._consumer_prefix,
            register_view=self._register_view,
        )

    async def make_buckets(self, replicas: int = 1) -> dict[str, str]:
        """Make every bucket that is not there; returns their epochs by name. Only a role with ``makes_buckets`` may."""
        for bucket in BUCKETS:
            known = self._epochs.get(bucket.name, "")
            made = await buckets.make_bucket(self.connection, self.bucket(bucket), replicas, known)
            self._epochs[bucket.name] = made.epoch
            if made.lacking != self._lacking.get(bucket.name, ""):
                self._lacking[bucket.name] = made.lacking
                if made.lacking:
                    self.report_fault(made.lacking, f"start the NATS servers that lack: {replicas} must hold streams")
        return dict(self._epochs)

    async def request(self, subject: str, message: msgspec.Struct, answer: type[A], *, timeout: float) -> A:
        """Ask and wait; raises Refused (the other side's code and words), Unavailable, codec.Malformed."""
        return await self._ask(subject, message, lambda body: codec.decode(answer, body), timeout)

    async def send(self, subject: str, message: msgspec.Struct, *, timeout: float) -> None:
        """Like :meth:`request`, for a request whose answer has no body."""
        await self._ask(subject, message, lambda _body: None, timeout)

    async def _ask(self, subject: str, message: msgspec.Struct, read: Callable[[bytes], T], timeout: float) -> T:
        """Its span's name has no node in it: there are few names of spans."""
        with self._telemetry.span(
            f"ask {without_node(subject)}",
            kind="CLIENT",
            messaging__system="nats",
            messaging__operation__name="ask",
            messaging__destination__name=subject,
        ) as span:
            headers = {VERSION_HEADER: str(codec.VERSION), "traceparent": span.traceparent}
            said = await self.connection.call(subject, codec.encode(message), timeout=timeout, headers=headers)
            reply = codec.decode(Reply, said.data)
            if not reply.ok:
                span.event("refused", airmesh__code=reply.code, airmesh__reason=reply.message)
                raise Refused(reply.code, reply.message, reply.retry)
            return read(reply.body)

    async def serve(
        self, subject: str, kind: type[M], answer: Callable[[M], Coroutine[Any, Any, msgspec.Struct | None]]
    ) -> None:
        """Answer requests as one of the service's queue group; see ``chassis.bus.micro``."""

        async def alone(message: Any, _node: str) -> msgspec.Struct | None:
            return await answer(message)

        await self.registration.add(subject, kind, alone)

    async def serve_nodes(
        self, subject: str, kind: type[M], answer: Callable[[M, str], Coroutine[Any, Any, msgspec.Struct | None]]
    ) -> None:
        """Answer ``<subject>.<node>``; ``answer`` takes the message and the node whose key sent it."""
        wrapped: Answer = answer
        await self.registration.add(subject + EACH_NODE, kind, wrapped)

    def publish(self, subject: str, event: msgspec.Struct) -> None:
        """Send an event if that is possible; never blocks, never raises for the network."""
        headers = {VERSION_HEADER: str(codec.VERSION)}
        traceparent = current_traceparent()
        if traceparent:
            headers["traceparent"] = traceparent
        if self._events.full():
            self._events.get_nowait()
            self._events.task_done()
            self._drop()
        self._events.put_nowait((subject, codec.encode(event), headers))

    def report_fault(self, fault: str, remedy: str, node: str | None = None) -> None:
        """Says what a person should know, on ``<service>.fault``; ``node``: whom it is about, if not our own node."""
        if node is None:
            node = codec.decode_segment(self._node) if self._node else ""
        self.publish(event_subject(self._service, "fault"), ServiceFault(self._service, node, fault, remedy))

    async def subscribe(self, subject: str, kind: type[M], on_message: Callable[[str, M], None]) -> None:
        """Hear events (lossy); ``on_message(subject, message)`` must not block. Unreadable ones are logged and left."""

        async def on_raw(message: Msg) -> None:
            if message.reply or meet(subject, message.subject) != message.subject:
                _STEERED_EVENTS.labels(self._service).inc()
                return  # a stored message that a consumer delivered here, under the subject it was stored with
            headers = message.headers or {}
            with self._telemetry.following(headers.get("traceparent", "")):
                try:
                    _check_version(headers.get(VERSION_HEADER, str(codec.VERSION)))
                    event = codec.decode(kind, message.data)
                except (codec.Malformed, codec.UnknownVersion) as error:
                    self._log.warning("event-unreadable", subject=message.subject, error=error)
                    return
                try:
                    on_message(message.subject, event)
                except Exception as error:
                    self._log.error("event-failed", subject=message.subject, error=error, bug=True)

        self._unheard.append((subject, on_raw))
        if self.connected:
            await self._register()

    async def serve_everyone(self, subject: str, kind: type[M], answer: AnswerEveryone[M]) -> None:
        """Answer what is asked of all agents at once, on one of the role's ``discovered`` subjects; the server names
        who answers. ``answer`` must not block; None says nothing. One that waits holds up later questions on its
        subject, and has a deadline of its own.
        """
        self._unheard.append((subject, partial(self._answer_everyone, subject, kind, answer)))
        if self.connected:
            await self._register()

    async def _answer_everyone(self, subject: str, kind: type[Any], answer: Callable[[Any], Any], message: Msg) -> None:
        """As an endpoint of ``chassis.bus.micro`` does, without a queue group: each agent answers for itself."""
        if self.registration.drop(message, DISCOVERERS, subject):
            return
        try:
            found = answer(codec.decode(kind, message.data))
            if isawaitable(found):
                found = await found
            if found is None:
                return
            reply = Reply(ok=True, body=codec.encode(found))
        except codec.Malformed as error:
            reply = refusal("malformed", str(error))
        except Exception as error:
            self._log.error("answer-failed", subject=subject, error=error, bug=True)
            reply = Reply(ok=False, code="internal", message="the service failed; its log says why", retry=True)
        with suppress(Unavailable):
            await self.connection.send(message.reply, codec.encode(reply), {VERSION_HEADER: str(codec.VERSION)})

    def _register_view(self, view: View) -> None:
        if any(other.name == view.name for other in self._views):
            raise Bug(f"two views are named {view.name}: their consumers would push each other out")
        view.log = self._log
        view.report = self.report_fault
        self._views.append(view)
        self._spawn(f"view {view.name}", view.run())

    def _on_connected(self, again: bool) -> None:
        self._spawn("bus-register", self._register())

    async def _register(self) -> None:
        """Make what was asked for before the connection stood; what is made outlives reconnects."""
        async with self._registering:
            try:
                await self.registration.start(self.connection.client())
                while self._unheard:
                    subject, on_raw = self._unheard[0]
                    await self.connection.listen(subject, on_raw, self._lost(subject))
                    self._unheard.pop(0)
            except Unavailable as error:
                self._log.debug("bus-register", error=error)  # the next connect comes here again

    def _lost(self, subject: str) -> Callable[[], None]:
        return lambda: self._log.warning("events-lost", subject=subject)

    async def _send_events(self) -> None:
        while True:
            first = await self._events.get()
            await asyncio.sleep(EVENT_GATHER)
            await self._send_event(*first)
            while not self._events.empty():
                await self._send_event(*self._events.get_nowait())

    async def _send_event(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        connection = self.connection
        try:
            if connection.client().pending_data_size > MAX_OUTBOUND:
                self._drop()
            else:
                await connection.send(subject, body, headers)
        except Unavailable:
            self._drop()
        finally:
            self._events.task_done()

    def _drop(self) -> None:
        self.dropped += 1
        _DROPPED.labels(self._service).inc()


def _check_version(version: str) -> None:
    if version != str(codec.VERSION):
        raise codec.UnknownVersion(f"version {version}; this release knows {codec.VERSION}")
