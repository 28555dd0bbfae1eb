"""The observer's connection to the bus: read a bucket, ask a question, find agents, listen.

Promises: every call ends within the command's deadline, and what is wrong is said in one sentence with the remedy
(`cli.faults`). It never writes: the server grants its user nothing to write. Unlike a service it does not reconnect
while it waits for the first answer; what follows a stream (`listen`) does, since a person looks at it.

A bucket is read by an ephemeral pull consumer that brings the last value of each key (JetStream ADR-8 KV, ADR-13), some
thousands at a time. What a message says of its key is the chassis' own reading (``chassis.bus.tail``): a value that was
not written by who may write it, one of another major version, or one that cannot be read is left out and counted, never
taken for absent.

A sign-in that fails is told by how far it came: no NATS server at all, a refusal in words (even one that the end of its
connection overtook), or a server that greets and hangs up without a word. A reset can overtake asyncio's connect, too:
then what came before it is read from a socket of our own (``_words_before_the_reset``).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import nats.errors
import nkeys
from nats.aio.client import Client
from nats.aio.msg import Msg

from chassis.bus import jetstream, tls
from chassis.bus.connection import GREETING, greeted, refusal, sign_in
from chassis.bus.nats_internals import unread
from chassis.bus.tail import change_of, positions
from chassis.faults import Fault
from chassis.secret import Secret
from cli.backlog import Backlog
from cli.faults import Declined, Unreachable
from cli.settings import BusSettings
from proto.bgp import BgpRoutes, BgpRoutesRequest, BgpSessions, BgpSessionsRequest
from proto.codec import Malformed, UnknownVersion, decode, encode, encode_segment, open_sealed
from proto.dns_pods import PodDnsReport, PodDnsRequest
from proto.findings import DoctorRequest, Findings
from proto.pairs import Pairs, PairsRequest
from proto.probes import ProbeAnswer, ProbeRequest
from proto.requests import Reply
from proto.subjects import BGP, BGP_ROUTES, DNS_PODS, FINDINGS, JETSTREAM, PAIRS, PROBES, SPANS, Bucket, discovery_inbox
from proto.traces import Spans, SpansRequest

A = TypeVar("A", bound=msgspec.Struct)
T = TypeVar("T")

_QUIET = 0.2
"""Discovery ends this many seconds after the last answer, or the first question when nobody is there."""
_DISCOVERY = 0.8
_BATCH = 8192
_BATCH_BYTES = 16 << 20
ATTEMPTS = 3
"""Sign-ins before a server that hangs up without a word is told as such."""
_MOST_WORDS = 16_384
_ONE_SECOND = struct.pack("ll", 1, 0)
_HOLD = 10_000
"""Answers that may wait for a slow terminal before the newest are refused (their numbers tell)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a bucket held: values by raw key, and how many could not be read."""

    values: dict[str, msgspec.Struct]
    unreadable: int = 0
    traceparents: dict[str, str] = field(default_factory=dict)
    """Trace context of each value's write, by raw key."""
    revisions: dict[str, int] = field(default_factory=dict)
    """Sequence of each value's write in the bucket, by raw key."""

    def of(self, kind: type[T]) -> dict[str, T]:
        """The values of one type, by raw key."""
        return {key: value for key, value in self.values.items() if isinstance(value, kind)}


class Link:
    """An open connection; use it as an async context manager."""

    def __init__(self, settings: BusSettings) -> None:
        self._settings = settings
        self._client = Client()
        self._fault: Exception | None = None
        self._connected = False
        self._left = False
        """It is being closed."""
        self._denied = asyncio.Event()

    async def __aenter__(self) -> Link:
        seed = self._seed()
        try:
            async with asyncio.timeout(self._settings.deadline - 0.5):
                for left in reversed(range(ATTEMPTS)):
                    try:
                        await self._connect(seed)
                        break
                    except (nats.errors.Error, OSError) as error:
                        why = self._fault or error
                        hung_up = isinstance(why, ConnectionError) and greeted(self._client)
                        if not ((hung_up or tls.is_in_the_clear(why)) and left) or refusal(unread(self._client)):
                            raise
                        # What it says may have been overtaken by the end of its connection, or the handshake have
                        # come too late for it: ask again what is wrong.
                        await self._abandon()
                        self._client, self._fault = Client(), None
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            unreachable = await self._not_signed_in(self._fault or error)
            await self._abandon()
            raise unreachable from error
        self._connected = True
        return self

    async def _connect(self, seed: Secret) -> None:
        await self._client.connect(
            self._settings.url,
            name="airmesh-cli",
            **sign_in(seed),
            **tls.options(self._settings.ca_file),
            inbox_prefix=f"_INBOX.{self._settings.user}".encode(),
            connect_timeout=2,
            allow_reconnect=False,
            error_cb=self._on_error,
        )
        if not self._client.is_connected:  # nats-py takes the end of the stream for an answer
            raise ConnectionResetError("the server closed the connection")

    async def _not_signed_in(self, why: Exception) -> Unreachable:
        """How far it came, in one sentence."""
        url, seed = self._settings.url, self._settings.seed_file
        wrong = tls.explain(why, self._settings.ca_file)
        if wrong:
            return Unreachable(
                f"the NATS server at {url} is not to be trusted: {wrong}",
                "see that AIRMESH_NATS_CA_FILE names the mesh's own authority (airmesh lab env)",
            )
        words = unread(self._client)
        if isinstance(why, ConnectionResetError) and not greeted(self._client):
            words = await asyncio.to_thread(_words_before_the_reset, url) or words
        said = refusal(words)
        if said:
            return self._unreachable(nats.errors.Error(f"nats: {said}"))
        if greeted(self._client) or words.startswith(GREETING):
            if not isinstance(why, ConnectionError):
                return self._unreachable(why)
            return Unreachable(
                f"the NATS server at {url} hangs up at each sign-in without a word:"
                f" it is going down, or does not know the user of {seed}",
                'see that the mesh is up (airmesh lab status), and use its own seed: eval "$(airmesh lab env)"',
            )
        if isinstance(why, (ConnectionRefusedError, TimeoutError)) or not isinstance(
            why, (ConnectionError, nats.errors.Error)
        ):
            return self._unreachable(why)
        return Unreachable(
            f"what answers at {url} is no NATS server: it does not greet as one ({str(why) or type(why).__name__})",
            "see that AIRMESH_NATS names the mesh's NATS server (airmesh lab env) and no other port",
        )

    def _seed(self) -> Secret:
        path = self._settings.seed_file
        try:
            text = path.read_text().strip()
            if not text.startswith("-----BEGIN NATS USER JWT"):
                nkeys.from_seed(bytearray(text.encode()))
        except OSError as error:
            raise Unreachable(f"{path} cannot be read: {error.strerror}", "run as the user who may read it") from error
        except (nkeys.NkeysError, ValueError) as error:
            wrong = f"{path} holds no nkey seed: {error}"
            raise Unreachable(wrong, "point AIRMESH_NATS_SEED_FILE at one") from error
        return Secret(text)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._left = True
        await self._abandon()

    async def _abandon(self) -> None:
        try:
            async with asyncio.timeout(0.5):
                await self._client.close()
        except (nats.errors.Error, OSError, TimeoutError):
            return

    async def _on_error(self, error: Exception) -> None:
        self._fault = error
        if not self._connected:
            raise error  # ends connect() at once, which else waits and tries again
        if "ermissions" in str(error):
            self._denied.set()

    def _unreachable(self, error: Exception) -> Unreachable:
        url = self._settings.url
        words = str(error) or type(error).__name__
        if "uthorization" in words or "uthentication" in words:
            return Unreachable(
                f"the NATS server at {url} does not know the user of {self._settings.seed_file}",
                'use this mesh\'s own seed: eval "$(airmesh lab env)" sets AIRMESH_NATS_SEED_FILE',
            )
        if isinstance(error, TimeoutError):
            words = f"no answer within {self._settings.deadline:.0f} s"
        return Unreachable(
            f"NATS at {url} cannot be reached: {words}",
            "see that the mesh is up (airmesh lab status; airmesh lab up) and that AIRMESH_NATS names its server",
        )

    async def read(self, bucket: Bucket, kind_of: Callable[[str], type[Any] | None], prefix: str = ">") -> Contents:
        """Last values of the keys below ``prefix`` whose key has a type by ``kind_of``.

        Raises :class:`Declined` when the bucket is not there (yet) or may not be read.
        """
        stream = bucket.stream
        subject = bucket.subject("")
        name = f"cli-{secrets.token_hex(16)}"
        pending = await self._consumer(stream, name, subject + prefix, bucket)
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
        values: dict[str, msgspec.Struct] = {}
        traceparents: dict[str, str] = {}
        revisions: dict[str, int] = {}
        unreadable = 0
        left = 0
        while pending:
            if not left:
                await self._client.publish(f"{JETSTREAM}.CONSUMER.MSG.NEXT.{stream}.{name}", self._next(), reply=inbox)
                left = _BATCH
            message = await self._within(subscription.next_msg(self._settings.deadline), f"bucket {bucket.name}")
            if "Status" in (message.headers or {}):
                left = 0  # so many bytes were asked for, and no more of them fit; or the time is over
                continue
            left -= 1
            revision, _, pending = positions(message.reply)
            change = change_of(message, stream, len(subject), revision)
            kind = kind_of(change.key)
            if kind is None or (change.body is None and not change.forged):
                continue
            try:
                if change.forged:
                    unreadable += 1
                else:
                    values[change.key], traceparents[change.key] = open_sealed(kind, change.body or b"")
                    revisions[change.key] = revision
            except (Malformed, UnknownVersion):
                unreadable += 1
        await subscription.unsubscribe()
        return Contents(values=values, unreadable=unreadable, traceparents=traceparents, revisions=revisions)

    def _next(self) -> bytes:
        deadline = int(self._settings.deadline * 1e9)
        return msgspec.json.encode({"batch": _BATCH, "max_bytes": _BATCH_BYTES, "expires": deadline})

    async def _consumer(self, stream: str, name: str, filter_subject: str, bucket: Bucket) -> int:
        config = {
            "name": name,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "filter_subject": filter_subject,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 5_000_000_000,
        }
        ask = msgspec.json.encode({"stream_name": stream, "config": config})
        replied = await self._call(
            f"{JETSTREAM}.CONSUMER.CREATE.{stream}.{name}.{filter_subject}", ask, f"bucket {bucket.name}"
        )
        try:
            return jetstream.parse_answer(replied.data).num_pending
        except Fault as fault:
            remedy = "cluster makes the buckets when it starts: see airmesh status"
            raise Declined(f"bucket {bucket.name} cannot be read: {fault}", remedy) from fault

    async def ask(self, subject: str, message: msgspec.Struct, answer: type[A]) -> A:
        """A request and its typed answer; raises :class:`Declined` when refused or when nobody serves it."""
        replied = await self._call(subject, encode(message), subject)
        try:
            reply = decode(Reply, replied.data)
            if reply.ok:
                return decode(answer, reply.body)
        except Malformed as error:
            raise Declined(
                f"the answer on {subject} cannot be read: {error}", "run the release that the mesh runs"
            ) from error
        again = "try again in a moment" if reply.retry else "change what the message names"
        raise Declined(f"{reply.message} ({reply.code})", again)

    async def _call(self, subject: str, body: bytes, what: str) -> Msg:
        return await self._within(self._client.request(subject, body, timeout=self._settings.deadline), what)

    async def _within(self, call: Coroutine[Any, Any, Msg], what: str) -> Msg:
        asked = asyncio.create_task(call)
        denied = asyncio.create_task(self._denied.wait())
        try:
            await asyncio.wait({asked, denied}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise Declined(f"this user may not read or ask {what}", self._why())
            return asked.result()
        except nats.errors.NoRespondersError as error:
            raise Declined(f"nobody answers {what}", "start the service that serves it: see airmesh status") from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            raise Unreachable(f"no answer from {what} within {self._settings.deadline:.0f} s", self._why()) from error
        except (nats.errors.Error, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            denied.cancel()
            asked.cancel()

    def _why(self) -> str:
        if self._denied.is_set():
            return f"use the seed of the user cli (the server says: {self._fault})"
        return "see airmesh status; if it hangs too, the NATS server does"

    async def discover(self) -> tuple[tuple[str, bytes], ...]:
        """Users and their answers to NATS micro STATS (ADR-32), raw JSON, as many as come before it gets quiet.

        The server says whose answer it is (``proto.subjects.discovery_inbox``).
        """
        return await self._ask_all("$SRV.STATS", b"")

    async def spans(self, asked: SpansRequest) -> tuple[tuple[str, Spans], ...]:
        """Users and what agents with their keys keep of these spans; an answer that cannot be read is left out."""
        return await self._everyone(SPANS, asked, Spans)

    async def pairs(self, asked: PairsRequest) -> tuple[tuple[str, Pairs], ...]:
        """Users and the pairs that routing agents with their keys tell; an answer that cannot be read is left out."""
        return await self._everyone(PAIRS, asked, Pairs)

    async def bgp_sessions(self, asked: BgpSessionsRequest) -> tuple[tuple[str, BgpSessions], ...]:
        """Users and the BGP sessions that routing agents with their keys report, likewise."""
        return await self._everyone(BGP, asked, BgpSessions)

    async def bgp_routes(self, asked: BgpRoutesRequest) -> tuple[tuple[str, BgpRoutes], ...]:
        """Users and the BGP routes that routing agents with their keys report, likewise."""
        return await self._everyone(BGP_ROUTES, asked, BgpRoutes)

    async def dns_pods(self, asked: PodDnsRequest) -> tuple[tuple[str, PodDnsReport], ...]:
        """Users and the pods' DNS that dataplane agents with their keys measured, likewise."""
        return await self._everyone(DNS_PODS, asked, PodDnsReport)

    async def probe(self, asked: ProbeRequest, seconds: float) -> ProbeAnswer | None:
        """What the dataplane agent of the node that is asked says; None when no answer within ``seconds`` is its."""
        user, heard = f"dataplane-{encode_segment(asked.node)}", dict[str, bytes]()
        async for whose, data in self._answers(PROBES, encode(asked), seconds, lambda: user not in heard):
            heard[whose] = data
        return _answer(ProbeAnswer, heard[user]) if user in heard else None

    async def findings(
        self, asked: DoctorRequest, expected: Collection[str], seconds: float
    ) -> tuple[tuple[str, Findings, int], ...]:
        """Users, what agents with their keys find, and when each answer came (milliseconds of this machine since
        1970): until all of ``expected`` have answered and it gets quiet, ``seconds`` at most.
        """
        found: list[tuple[str, Findings, int]] = []
        missing = set(expected)
        async for user, data in self._answers(FINDINGS, encode(asked), seconds, lambda: bool(missing)):
            missing.discard(user)
            if (answer := _answer(Findings, data)) is not None:
                found.append((user, answer, time.time_ns() // 1_000_000))
        return tuple(found)

    async def _everyone(self, subject: str, asked: msgspec.Struct, kind: type[A]) -> tuple[tuple[str, A], ...]:
        read = [(user, _answer(kind, data)) for user, data in await self._ask_all(subject, encode(asked))]
        return tuple((user, answer) for user, answer in read if answer is not None)

    async def _ask_all(self, subject: str, body: bytes) -> tuple[tuple[str, bytes], ...]:
        return tuple([one async for one in self._answers(subject, body, _DISCOVERY, lambda: False)])

    async def _answers(
        self, subject: str, body: bytes, seconds: float, waits: Callable[[], bool]
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Users and their answers as they come, until it gets quiet while nothing ``waits``, ``seconds`` at most."""
        inbox, token = discovery_inbox(self._settings.user), secrets.token_hex(12)
        subscription = await self._client.subscribe(f"{inbox}.>")
        await self._client.publish(subject, body, reply=f"{inbox}.{token}")
        loop = asyncio.get_running_loop()
        end, heard = loop.time() + seconds, False
        while (left := min(_QUIET if heard and not waits() else seconds, end - loop.time())) > 0:
            try:
                message = await subscription.next_msg(left)
            except (nats.errors.TimeoutError, TimeoutError):
                break
            except nats.errors.Error as error:
                if not self._left:
                    raise self._unreachable(error) from error
                break  # what was asked beside this was refused, and nobody waits any more
            user, _, of = message.subject.removeprefix(f"{inbox}.").partition(".")
            if user == token:  # the server's "no responders"
                break
            if of == token:  # else it is for another copy of this command
                heard = True
                yield user, message.data
        if not self._left:
            await subscription.unsubscribe()

    async def repeat(
        self, subject: str, asked: msgspec.Struct, kind: type[A], every: float
    ) -> AsyncIterator[tuple[str, A] | None]:
        """Ask all agents again and again: users and their answers as they come, for ever; None each time it was asked.

        An answer that cannot be read is left out. Raises :class:`Unreachable` when the connection ends,
        :class:`Declined` when the server forbids it.
        """
        inbox, token, body = discovery_inbox(self._settings.user), secrets.token_hex(12), encode(asked)
        subscription = await self._client.subscribe(f"{inbox}.>", pending_msgs_limit=_HOLD)
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                if (left := due - loop.time()) <= 0:
                    await self._client.publish(subject, body, reply=f"{inbox}.{token}")
                    due = loop.time() + every
                    yield None
                    continue
                message = await subscription.next_msg(left)
            except (nats.errors.TimeoutError, TimeoutError):
                self._check(f"ask {subject}")
                continue
            except (nats.errors.Error, OSError) as error:
                raise _ended() from error
            user, _, of = message.subject.removeprefix(f"{inbox}.").partition(".")
            if of == token and (answer := _answer(kind, message.data)) is not None:
                yield user, answer

    def _check(self, what: str) -> None:
        """Raises Declined when the server has forbidden something, Unreachable when the connection has ended."""
        if self._denied.is_set():
            raise Declined(f"may not {what}", self._why()) from self._fault
        if not self._client.is_connected:
            raise _ended() from None

    async def listen(self, subject: str, begun: Callable[[], None], lost: Callable[[int], None]) -> AsyncIterator[Msg]:
        """Messages as they come, for ever; ``begun`` is called when the server has heard of us, ``lost`` with how many
        were given up since newer ones came (``cli.backlog``).

        Raises :class:`Unreachable` when the connection ends, :class:`Declined` when the server forbids the subject.
        """
        backlog = Backlog[Msg]()
        await self._client.subscribe(subject, cb=backlog.put)
        await self._client.flush(2)
        begun()
        async for message in backlog.follow(lambda: self._check(f"listen to {subject}"), lost):
            yield message


def _words_before_the_reset(url: str) -> bytes:
    """What a peer that resets at once says first, read by a thread.

    asyncio connects without blocking, asks the socket for its error, and closes it: a reset that came in between ends
    the connection with all that was received unread. A connect that blocks has returned by then, and ``recv`` gives
    what was queued before it gives the error.
    """
    at, words, end = urlsplit(url), b"", time.monotonic() + 1
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            at.hostname, at.port or 4222, type=socket.SOCK_STREAM
        ):
            with suppress(OSError), socket.socket(family, kind, protocol) as peer:
                for limit in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # bounds connect too, which stays a blocking one
                    peer.setsockopt(socket.SOL_SOCKET, limit, _ONE_SECOND)
                peer.connect(address)
                while len(words) < _MOST_WORDS and time.monotonic() < end and (more := peer.recv(_MOST_WORDS)):
                    words += more
            if words:
                break
    return words


def _answer(kind: type[A], data: bytes) -> A | None:
    """What an agent answered; None when it refused, or it cannot be read."""
    with suppress(Malformed):
        reply = decode(Reply, data)
        if reply.ok:
            return decode(kind, reply.body)
    return None


def _ended() -> Unreachable:
    return Unreachable("the connection to NATS ended", "see airmesh status, then run this again")
