"""The NATS micro service (ADR-32): discoverable by PING, INFO and STATS, its endpoints in one queue group.

nats-py's ``nats.micro`` answers one request after the other on each endpoint; here each request is a task of its own,
at most ``AT_ONCE`` of them, and one more is refused with ``busy`` (try again): a slow one never holds up the rest, and
a flood is bounded. Where each node asks on a subject of its own, a node has ``EACH`` of these places and ``WAITING``
behind them (``chassis.bus.fair_queue``): one that asks for more is busy for itself alone. A service without endpoints
is registered too.

Whoever asks is known by the subject, which the server grants (``chassis.bus.accounts``), never by the body: an endpoint
of ``<subject>.*`` hears each node on a subject of its own and hands the decoded node to the answering function.

A server does not check where a request wants its answer, and JetStream can bring any stored bytes to any subject that
may be published. Both can be seen (:func:`steered`): the reply of a request from another account is the server's own
(``_R_…``) and leads to where the asker may publish anyway, that of a discovery lies under the asker's inbox; what
JetStream brings has its headers, or no reply. Anything else is dropped before it is looked at, counted, and told once.

A request's body is a message of ``proto.requests``; the reply is a ``Reply``. ``Refused`` raised by the answering
function becomes a refusal with its code, bytes that cannot be read become ``malformed``, anything else ``internal``
(logged with its cause, which does not leave the process).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, EndpointStats, Service, ServiceConfig
from prometheus_client import Counter

from chassis.bus.accounts import SERVICE_REPLY, meet
from chassis.bus.fair_queue import FairQueue
from chassis.bus.nats_internals import AnsweringEndpoint, DiscoverableService
from chassis.faults import Refused, Retryable
from chassis.telemetry.traces import Telemetry
from kit.once import Once
from proto import codec
from proto.requests import Reply
from proto.subjects import DISCOVERY, ROLES, discovery_inbox, without_node

if TYPE_CHECKING:
    from chassis.telemetry.log import Log
    from chassis.telemetry.spans import Span

VERSION = "0.1.0"
AT_ONCE = 64
EACH = 8
"""Requests of one node that one endpoint answers at a time."""
WAITING = 64
"""Requests of one node that wait at one endpoint: as many as the runtime's ADDs that one node lets in."""
WAITING_BYTES = 2 << 20
FLUSH_SECONDS = 2
VERSION_HEADER = "Airmesh-Version"
ANSWER_DEADLINE = 30.0
MAX_REFUSAL = 400
"""Characters of a refusal's sentence."""

REPORTED_AT_MOST = 256
"""Senders of steered requests that are remembered as told."""
_REQUEST_INFO = "nats-request-info"
"""The one header of the server's that a request has by right: the account it came from."""
DISCOVERERS = tuple(f"{discovery_inbox(role.name)}." for role in ROLES if DISCOVERY in role.requests)
"""What the reply subject of a discovery begins with."""

_STEERED = Counter("airmesh_requests_steered", "Requests dropped: no plain request of whom it came from", ["service"])

Answer = Callable[[Any, str], Awaitable[msgspec.Struct | None]]
"""Takes the message and the node that sent it: the last token of the subject, which the bus lets that node alone
publish. Empty where a subject is not one for each node.
"""
EACH_NODE = ".*"
"""Ends a subject that is one for each node."""


def steered(message: Msg, replies: tuple[str, ...], heard: str = ">") -> str:
    """Why a request is none: its answer would go elsewhere than to its sender, or JetStream brought it. Else empty.

    ``replies``: what its reply subject may begin with; ``heard``: the subject that was subscribed to, under which a
    message that a consumer delivers does not come.
    """
    if meet(heard, message.subject) != message.subject:
        return "it is a stored message, steered here by a consumer"
    for name in message.headers or {}:
        lower = name.lower()
        if lower.startswith("nats-") and lower != _REQUEST_INFO:
            return f"it has JetStream's header {name[:40]}: it is a stored message, steered here"
    if not message.reply.startswith(replies):
        return f"its reply subject {message.reply[:80]!r} is not an inbox of its sender"
    return ""


def refusal(code: str, sentence: str, *, retry: bool = False) -> Reply:
    """A refusal on one line and cut: its sentence may quote what the asker sent, whatever that was."""
    shown = "".join(character if character.isprintable() else "?" for character in sentence[: MAX_REFUSAL + 1])
    if len(shown) > MAX_REFUSAL:
        shown = shown[: MAX_REFUSAL - 1] + "…"
    return Reply(ok=False, code=code, message=shown, retry=retry)


def unknown_version(headers: Mapping[str, str]) -> Reply | None:
    """The refusal of a request that speaks a version we do not know; None where we know it."""
    version = headers.get(VERSION_HEADER, str(codec.VERSION))
    if version == str(codec.VERSION):
        return None
    return refusal("unknown-version", f"the request speaks version {version[:16]}; this service knows {codec.VERSION}")


async def reply_of(
    answered: Callable[[], Awaitable[msgspec.Struct | None]],
    subject: str,
    log: Log,
    *,
    deadline: float,
    span: Span | None = None,
) -> Reply:
    """What a request's answering ends in, within ``deadline`` seconds; a failure of ours is logged with its cause."""
    try:
        async with asyncio.timeout(deadline):
            body = await answered()
        return Reply(ok=True, body=b"" if body is None else codec.encode(body))
    except Refused as refused:
        if span is not None:
            span.event("refused", airmesh__code=refused.code, airmesh__reason=refused.message)
        return refusal(refused.code, refused.message, retry=refused.retry)
    except (Retryable, TimeoutError) as error:  # first: a damaged value of ours is no malformed request
        return refusal("unavailable", str(error) or f"no answer within {deadline:.0f} s", retry=True)
    except codec.Malformed as error:
        return refusal("malformed", str(error))
    except Exception as error:
        log.error("answer-failed", subject=subject, error=error, bug=True)
        return Reply(ok=False, code="internal", message="the service failed; its log says why", retry=True)


class _ConcurrentEndpoint(AnsweringEndpoint):
    """An endpoint whose requests do not wait for each other."""

    def __init__(
        self,
        service: Service,
        config: EndpointConfig,
        busy: Callable[[Msg], Awaitable[None]],
        drop: Callable[..., bool],
    ) -> None:
        super().__init__(service, config)
        self._busy = busy
        self._drop = drop
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_nodes = self.subject.endswith(EACH_NODE)
        own = (EACH, WAITING) if self._of_nodes else (AT_ONCE, 0)
        self._fair_queue: FairQueue[Msg] = FairQueue(
            at_once=AT_ONCE, each=own[0], waiting=own[1], waiting_bytes=WAITING_BYTES
        )

    async def hear(self, msg: Msg) -> None:
        """Answer it when its sender's turn comes; refuse it when too many wait."""
        if self._drop(msg, (f"{SERVICE_REPLY}.",), self.subject):
            return
        asker = msg.subject.rsplit(".", 1)[-1] if self._of_nodes else ""
        if self._fair_queue.offer(asker, msg, len(msg.data)):
            self._begin()
        else:
            await self._busy(msg)

    def _begin(self) -> None:
        while (one := self._fair_queue.next()) is not None:
            asker, msg = one
            task = asyncio.create_task(self.answer(msg), name=f"answer {msg.subject}")
            self._tasks.add(task)
            task.add_done_callback(partial(self._done, asker))

    def _done(self, asker: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fair_queue.done(asker)
        self._begin()
        if not task.cancelled():
            task.exception()  # looked at: the requester has timed out, and the failure was logged where it arose


class _ReportingService(DiscoverableService):
    """A service that says how it is in its metadata too: one without endpoints has no other place in STATS."""

    def __init__(
        self,
        client: Client,
        config: ServiceConfig,
        report: Callable[[], dict[str, str]],
        drop: Callable[..., bool],
    ) -> None:
        super().__init__(client, config)
        self._report = report
        self._drop = drop

    def accepts(self, msg: Msg) -> bool:
        """Only where the answer reaches who asks."""
        return not self._drop(msg, DISCOVERERS)

    def metadata_now(self) -> dict[str, str]:
        """How the service is."""
        return self._report()


def health_metadata(stats: object) -> dict[str, str]:
    """Health as metadata (texts): ``ready``, ``why`` (empty when ready), ``notes``, and three as the data has them."""
    if not isinstance(stats, dict):
        return {}
    why = "; ".join(f"{name}: {reason}" for name, reason in dict(stats.get("missing", {})).items())
    same = {name: str(stats.get(name, "")) for name in ("rss_bytes", "loop_hold_us", "loop_held_by")}
    notes = "; ".join(dict(stats.get("notes", {})).values())
    return {"ready": "true" if stats.get("ready") else "false", "why": why, "notes": notes, **same}


class Registration:
    """Endpoints of one service; kept until the bus is connected, then registered."""

    def __init__(
        self,
        service: str,
        metadata: dict[str, str],
        telemetry: Telemetry,
        log: Log,
        stats: Callable[[], object],
        report: Callable[[str, str], None],
    ) -> None:
        self._name = service
        self.metadata = metadata
        self._telemetry = telemetry
        self._log = log
        self._stats = stats
        self._report = report
        self._once: Once[str] = Once(most=REPORTED_AT_MOST)
        self.dropped = 0
        """Requests that were none."""
        self._wanted: list[tuple[str, type[msgspec.Struct], Answer]] = []
        self._service: _ReportingService | None = None
        self._client: Client

    async def add(self, subject: str, kind: type[msgspec.Struct], answer: Answer) -> None:
        """Answer requests on ``subject`` (``.*``: one for each node), from now or from the first connect on.

        When it returns and the bus is connected, the server knows it: whoever asks from then on is answered.
        """
        self._wanted.append((subject, kind, answer))
        if self._service is not None:
            await self._register(self._service, subject, kind, answer)
            with contextlib.suppress(TimeoutError, nats.errors.Error):
                await self._client.flush(FLUSH_SECONDS)  # a reconnect makes good what fails here

    async def start(self, client: Client) -> None:
        """Register the service and its endpoints; once, since subscriptions outlive a reconnect."""
        if self._service is not None:
            return
        config = ServiceConfig(
            name=self._name,
            version=VERSION,
            metadata=self.metadata,
            queue_group=self._name,
            stats_handler=self._endpoint_stats,
        )
        self._client = client
        service = _ReportingService(client, config, lambda: health_metadata(self._stats()), self.drop)
        self._service = service
        with contextlib.suppress(TimeoutError, nats.errors.Error):
            await service.start()  # only its flush can fail, and a reconnect makes that good
        for subject, kind, answer in list(self._wanted):
            await self._register(service, subject, kind, answer)

    async def _register(
        self, service: _ReportingService, subject: str, kind: type[msgspec.Struct], answer: Answer
    ) -> None:
        async def on_request(request: Request) -> None:
            node = request.subject.rsplit(".", 1)[-1] if subject.endswith(EACH_NODE) else ""
            reply = await self._answer(request, kind, answer, node)
            await request.respond(codec.encode(reply), headers={VERSION_HEADER: str(codec.VERSION)})

        config = EndpointConfig(
            name=subject.removesuffix(EACH_NODE).rsplit(".", 1)[-1],
            subject=subject,
            handler=on_request,
            queue_group=self._name,
        )
        endpoint = _ConcurrentEndpoint(service, config, self._refuse_busy, self.drop)
        await service.add(endpoint)

    def drop(self, message: Msg, replies: tuple[str, ...], heard: str = ">") -> bool:
        """True for what is no request: counted, and told once for each subject, which names who may send there."""
        why = steered(message, replies, heard)
        if not why:
            return False
        self.dropped += 1
        _STEERED.labels(self._name).inc()
        if self._once.happens(message.subject, time.monotonic()):
            self._log.error("request-steered", subject=message.subject, why=why)
            self._report(
                f"a message on {message.subject} was dropped: {why}",
                "only who may publish there can have sent it: replace the key of that user",
            )
        return True

    async def _answer(self, request: Request, kind: type[msgspec.Struct], answer: Answer, segment: str) -> Reply:
        headers = request.headers or {}
        if (unknown := unknown_version(headers)) is not None:
            return unknown

        async def answered() -> msgspec.Struct | None:
            return await answer(codec.decode(kind, request.data), codec.decode_segment(segment) if segment else "")

        with self._telemetry.span(
            f"answer {without_node(request.subject)}",
            headers.get("traceparent", ""),
            kind="SERVER",
            messaging__system="nats",
            messaging__operation__name="answer",
            messaging__destination__name=request.subject,
        ) as span:
            return await reply_of(answered, request.subject, self._log, deadline=ANSWER_DEADLINE, span=span)

    async def _refuse_busy(self, msg: Msg) -> None:
        text = "as many requests as this may be are being answered or wait already; try again"
        await msg.respond(codec.encode(Reply(ok=False, code="busy", message=text, retry=True)))

    def _endpoint_stats(self, _stats: EndpointStats) -> object:
        return self._stats()
