"""The NATS connection: what cannot be sent now fails now, and a loss is reported.

Closes traps of nats-py 2.16 (each has a test in tests/shell/chassis/bus/test_nats_traps.py):
 1. writes while disconnected are buffered and sent much later → ``pending_size=-1``; what stood in the buffer when the
    connection broke is thrown away;
 2. the client closes for good after 60 attempts → it never stops trying; a close we did not ask for ends the service;
 3. constant reconnect wait → our own, with jitter;
 4. a half-open connection is noticed after minutes → pings every 5 s, two may be outstanding; a transport that cannot
    even be closed is aborted; calls in flight fail at once when the connection breaks;
 5. a refused publish is a mere time-out in the call and a line elsewhere → the two are joined into one ``Refused``;
 6. a server that ends the connection with a word (a key was revoked, a user taken out) makes it close for good → it
    connects again, by the key that stands in its file by then.

When the user's file gets another key, it is tried beside the connection that stands; once it is let in, we sign in by
it, so that the old one may be revoked and nobody is cut off. One that is refused changes nothing, and is said. The same
when the file of whom we trust names an authority more (``tls.py``).

Times are in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client, RawCredentials, Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from chassis.bus import nats_internals, tls
from chassis.bus.credentials import JWT_BEGINS, Credentials
from chassis.faults import Fault, Refused, Unavailable
from chassis.secret import Secret
from kit import backoff

if TYPE_CHECKING:
    from chassis.telemetry.log import Log

PING_INTERVAL = 5
OUTSTANDING_PINGS = 2
CONNECT_TIMEOUT = 2
WATCH_EVERY = 0.25
RENEW_EVERY = 5.0
"""Between two looks at the files; half of it to one and a half, so that a fleet does not come at once."""
RENEW_LATEST = 5.0
"""So long a renewed key waits for a moment in which no call is under way."""
ABORT_AFTER = 1.0
"""A broken connection whose transport is still open after this long is aborted."""
SUBSCRIPTION_MESSAGES = 65_536
SUBSCRIPTION_BYTES = 64 << 20

_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)
_SIGN_IN = re.compile(r"authori[sz]ation (violation|failed)|authentication (revoked|expired)", re.IGNORECASE)
GREETING = b"INFO "
"""How a NATS server begins (NATS client protocol, INFO)."""
_REFUSAL = re.compile(rb"^-ERR ([^\r\n]*)\r?\n", re.MULTILINE)


def sign_in(seed: Secret) -> dict[str, Any]:
    """How the client proves who we are: by the seed of an nkey, or by a JWT and its seed (a NATS credentials file)."""
    text = seed.reveal()
    return {"user_credentials": RawCredentials(text)} if text.startswith(JWT_BEGINS) else {"nkeys_seed_str": text}


def not_let_in(words: str) -> bool:
    """Whether a server's words, or a ``problem`` made of them, say that it does not let our key in."""
    return bool(_SIGN_IN.search(words))


def greeted(client: Client) -> bool:
    """Whether what was dialled spoke as a NATS server: it sent its INFO, with which the protocol begins."""
    return nats_internals.has_greeted(client) or nats_internals.unread(client).startswith(GREETING)


def refusal(words: bytes) -> str:
    """The ``-ERR`` among words that nats-py did not read (``nats_internals.unread``), empty when there is none.

    A server refuses a sign-in and closes. When its end comes as a reset, asyncio raises that before it gives out what
    came earlier, which then is still in the reader's buffer.
    """
    found = _REFUSAL.search(words)
    return found[1].decode("utf-8", "replace").strip() if found else ""


class ClosedForGood(Fault):
    """The client gave up although it must not; only a new process helps."""


class _Call:
    """One request in flight: can be ended before its time."""

    __slots__ = ("deadline", "refusal", "why")

    def __init__(self) -> None:
        self.deadline: asyncio.Timeout | None = None
        self.refusal = ""
        self.why = ""

    def end(self, why: str, refusal: str = "") -> None:
        self.why = why
        self.refusal = refusal
        if self.deadline is not None and not self.deadline.expired():
            self.deadline.reschedule(0)


class Connection:
    """Connects, for ever; ``run`` is its one task. Callbacks are called in order of registration and must not block."""

    def __init__(self, url: str, user: str, credentials: Credentials, name: str, log: Log) -> None:
        self._servers = [part.strip() for part in url.split(",") if part.strip()]
        self._user = user
        self._credentials = credentials
        self._name = name
        self._log = log
        self._client: nats_internals.RenewingClient | None = None
        self._ready = asyncio.Event()
        self._closed = asyncio.Event()
        self._stopping = False
        self._calls: dict[str, set[_Call]] = {}
        self._quiet = asyncio.Event()
        """No call is under way."""
        self._quiet.set()
        self._slow: dict[int, Callable[[], None]] = {}
        self._on_connected: list[Callable[[bool], None]] = []
        self.denied: dict[str, str] = {}
        """Subjects that the server refused us, and its words: a hole in the allow-list or in the code."""
        self.reconnects = 0
        self.problem = "not connected to NATS yet"
        """Why there is no connection, in one sentence."""

    @property
    def connected(self) -> bool:
        """True while requests can be sent."""
        return self._client is not None and self._client.is_connected

    @property
    def user(self) -> str:
        """Name of our user."""
        return self._user

    def client(self) -> Client:
        """The connected client; raises :class:`Unavailable`."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable(f"not connected to {', '.join(self._servers)}")
        return self._client

    async def wait_connected(self) -> Client:
        """Wait, for as long as it takes, until connected."""
        while True:
            await self._ready.wait()
            if self._client is not None and self._client.is_connected:
                return self._client
            await asyncio.sleep(WATCH_EVERY)

    def on_connected(self, callback: Callable[[bool], None]) -> None:
        """``callback(again)`` after each connect; ``again`` is False for the first. Called now if connected already."""
        self._on_connected.append(callback)
        if self.connected:
            callback(False)

    def off_connected(self, callback: Callable[[bool], None]) -> None:
        """Forget a callback of :meth:`on_connected`."""
        if callback in self._on_connected:
            self._on_connected.remove(callback)

    async def run(self) -> None:
        """Connect and stay so until :meth:`close`; raises :class:`ClosedForGood` if the client closes by itself."""
        self._client = await self._connect_first()
        self._arrived(again=False)
        renewing = asyncio.create_task(self._renew())
        try:
            await self._stand(self._client)
        finally:
            while not renewing.done():  # ``asyncio.wait_for``, by which the client waits, may drop a cancellation
                renewing.cancel()
                await asyncio.wait([renewing], timeout=1)
            await asyncio.gather(renewing, return_exceptions=True)

    async def _stand(self, client: Client) -> None:
        broken_for = 0.0
        while not self._closed.is_set():
            try:
                async with asyncio.timeout(WATCH_EVERY):
                    await self._closed.wait()
            except TimeoutError:
                broken_for = self._watch(broken_for)
        if not self._stopping:
            raise ClosedForGood(f"the NATS client closed for good: {client.last_error!r}")

    async def _renew(self) -> None:
        """Sign in again when the files hold another key or authority, which is tried first; as long as it takes."""
        due, refused = True, ""
        while True:
            await asyncio.sleep(RENEW_EVERY * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, no secret
            client, due = self._client, self._credentials.replaced() or due
            if not due or client is None or not client.is_connected:
                continue
            try:
                if self._credentials.are_those_of(client.public, client.trusted):
                    due = False
                elif (public := await self._refused(refused)) is None:
                    await self._sign_in_again(client)  # the next look says whether by what stands in the files now
                else:
                    refused = public
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._log.debug("bus-key-not-tried", error=error)

    async def _refused(self, said: str) -> str | None:
        """The public key that was in the file, when the servers do not let it in; None when they do.

        Asked by a connection of its own; raises when no server is there to ask. That ``said`` is refused has been said.
        """
        client = nats_internals.RenewingClient(self._credentials.identity, self._credentials.trust)

        async def on_error(error: Exception) -> None:
            raise error

        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                await client.connect(
                    self._servers,
                    name=f"{self._name} tries a key",
                    error_cb=on_error,
                    tls_handshake_first=self._credentials.ca_file is not None,
                    connect_timeout=CONNECT_TIMEOUT,
                    allow_reconnect=False,
                )
        except nats.errors.Error as error:
            if not _not_let_in(error):
                raise
            if client.public != said:
                self._log.warning("bus-key-refused", user=self._user, public=client.public, error=error)
            return client.public
        finally:
            nats_internals.abort(client)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await client.close()
        return None

    async def _sign_in_again(self, client: Client) -> None:
        """By the key of the file; at a moment without calls, for theirs would have to be made again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RENEW_LATEST):
                await self._quiet.wait()
        self._log.info("bus-key-renewed", user=self._user)
        await client.flush(CONNECT_TIMEOUT)
        await client.force_reconnect()

    async def close(self) -> None:
        """Send what is queued and close; at most two seconds."""
        self._stopping = True
        if self._client is not None and not self._client.is_closed:
            try:
                async with asyncio.timeout(2):
                    if self._client.is_connected:
                        await self._client.flush(1)
                    await self._client.close()
            except (TimeoutError, nats.errors.Error, OSError) as error:
                self._log.debug("bus-close", error=error)
        self._closed.set()

    async def call(self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None) -> Msg:
        """Request and reply; raises :class:`Unavailable`, or :class:`Refused` when the server forbids the subject."""
        client = self.client()
        call = _Call()
        key = subject.lower()
        self._calls.setdefault(key, set()).add(call)
        self._quiet.clear()
        try:
            async with asyncio.timeout(timeout) as call.deadline:
                return await client.request(subject, payload, timeout=timeout + 5, headers=headers)
        except nats.errors.NoRespondersError:
            raise Unavailable(f"nobody answers on {subject}") from None
        except TimeoutError:
            if call.refusal:
                raise Refused("not-permitted", f"{self._user} may not publish to {subject}") from None
            raise Unavailable(f"{subject}: {call.why or f'no answer within {timeout} s'}") from None
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"{subject}: {error!r}") from error
        finally:
            calls = self._calls.get(key, set())
            calls.discard(call)
            if not calls:
                self._calls.pop(key, None)
            if not self._calls:
                self._quiet.set()

    async def send(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Publish without waiting for an answer; raises :class:`Unavailable`."""
        try:
            await self.client().publish(subject, payload, reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"{subject}: {error!r}") from error

    async def listen(
        self, subject: str, on_message: Callable[[Msg], Awaitable[None]], on_lost: Callable[[], None]
    ) -> Subscription:
        """Subscribe; ``on_lost`` is called when messages were dropped because ``on_message`` was too slow."""
        try:
            subscription = await self.client().subscribe(
                subject,
                cb=on_message,
                pending_msgs_limit=SUBSCRIPTION_MESSAGES,
                pending_bytes_limit=SUBSCRIPTION_BYTES,
            )
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"{subject}: {error!r}") from error
        self._slow[nats_internals.number_of(subscription)] = on_lost
        return subscription

    async def unlisten(self, subscription: Subscription) -> None:
        """End a subscription of :meth:`listen`; harmless when it is over already."""
        self._slow.pop(nats_internals.number_of(subscription), None)
        try:
            await subscription.unsubscribe()
        except (nats.errors.Error, OSError):
            return

    async def _connect_first(self) -> nats_internals.RenewingClient:
        attempt = 0
        while True:
            try:
                return await self._connect()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                why = tls.explain(error, self._credentials.ca_file) or repr(error)
                self.problem = f"cannot connect to NATS at {', '.join(self._servers)} as {self._user}: {why}"
                level = self._log.warning if attempt in (0, 5) or attempt % 60 == 0 else self._log.debug
                level("bus-unreachable", servers=self._servers, attempt=attempt, error=why)
            await asyncio.sleep(backoff.delay(attempt, random.random()))  # noqa: S311 - spreads load, no secret
            attempt += 1

    async def _connect(self) -> nats_internals.RenewingClient:
        client = nats_internals.RenewingClient(self._credentials.identity, self._credentials.trust)
        first = True

        async def on_error(error: Exception) -> None:
            if first:
                raise error  # ends connect() at its first failure: the waiting in between is ours
            self._on_error(error)

        try:
            await client.connect(
                self._servers,
                name=self._name,
                error_cb=on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
                tls_handshake_first=self._credentials.ca_file is not None,
                inbox_prefix=f"_INBOX.{self._user}",
                connect_timeout=CONNECT_TIMEOUT,
                ping_interval=PING_INTERVAL,
                max_outstanding_pings=OUTSTANDING_PINGS,
                max_reconnect_attempts=-1,
                pending_size=-1,
                reconnect_to_server_handler=_next_server,
            )
        except BaseException:
            nats_internals.close_transport(client)
            raise
        first = False
        return client

    def _arrived(self, *, again: bool) -> None:
        self._ready.set()
        for callback in list(self._on_connected):
            callback(again)

    def _watch(self, broken_for: float) -> float:
        """Abort what cannot be closed; returns how long the connection has been broken."""
        client = self._client
        if client is None or not client.is_reconnecting:
            return 0.0
        if nats_internals.has_stopped_reconnecting(client):
            self._log.error("bus-reconnect-died", error=client.last_error)
            self._closed.set()
        if broken_for >= ABORT_AFTER:
            nats_internals.abort_before_reconnecting(client)
        return broken_for + WATCH_EVERY

    async def _on_disconnected(self) -> None:
        self._ready.clear()
        if self._client is not None:
            nats_internals.forget_pending(self._client)
        for calls in list(self._calls.values()):
            for call in calls:
                call.end("the connection broke before the answer came")
        self.problem = f"the connection to NATS at {', '.join(self._servers)} broke; trying again"
        if not self._stopping:
            self._log.warning("bus-disconnected", servers=self._servers)

    async def _on_reconnected(self) -> None:
        self.reconnects += 1
        self._log.info("bus-reconnected", reconnects=self.reconnects)
        self._arrived(again=True)

    async def _on_closed(self) -> None:
        self._closed.set()

    def _on_failed(self, why: str) -> None:
        """A reconnect failed for what a person has to mend; told when it is another reason than before."""
        problem = f"cannot connect to NATS at {', '.join(self._servers)} again: {why}"
        if problem != self.problem:
            self.problem = problem
            self._log.warning("bus-not-let-in", servers=self._servers, user=self._user, error=why)

    def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            lost = self._slow.get(error.sid)
            self._log.warning("bus-slow-consumer", subject=error.subject)
            if lost is not None:
                lost()
            return
        violation = _VIOLATION.search(str(error))
        if violation is None:
            why = tls.explain(error, self._credentials.ca_file) or _not_let_in(error)
            if why and not self.connected:
                self._on_failed(why)
            # while it is away, each failed attempt comes by here; that it is away has been said
            say = self._log.warning if self.connected else self._log.debug
            say("bus-error", error=error)
            return
        subject = violation[2].lower()
        self.denied[subject] = str(error)
        for call in list(self._calls.get(subject, ())):
            call.end("refused", refusal=str(error))
        self._log.error(
            "bus-not-permitted",
            user=self._user,
            subject=violation[2],
            verb=violation[1],
            remedy="the allow-list in proto/subjects.py does not grant this",
        )


def _not_let_in(error: Exception) -> str:
    """Why a server refuses our key, in its words; empty when the error is of another kind."""
    return f"it does not let us in: {error}" if not_let_in(str(error)) else ""


def _next_server(servers: list[Server], _info: dict[str, object]) -> tuple[Server | None, float]:
    """Any server, after a wait that grows with how often it failed."""
    server = random.choice(servers)  # noqa: S311 - spreads load, no secret
    chance = random.random()  # noqa: S311
    return server, backoff.delay(server.reconnects, chance, first=0.1, longest=5.0)
