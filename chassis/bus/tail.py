"""An ordered consumer of a bucket: all present values, then every change, and detection of gaps.

nats-py's own ordered consumer and KV watcher lose messages for ever when a local queue is full, fall silent on a bucket
that was made again, and need 17 s after a server's death. This one counts: each message carries the consumer's own
sequence, each heartbeat the last one, so a message that is missing, or heartbeats that stay away, break the tail within
a few seconds; whoever owns it (``chassis.bus.view``) then lists again.

The consumer is an ephemeral in memory that the reader pulls from, since a server does not push across accounts
(``chassis.bus.accounts``): one request at a time, for a bounded number of messages and bytes, which bounds what is
under way, asked again as soon as it is used up or has run out. The consumer's name is a secret: who knows it could
pull from it. The server removes it 30 s after its reader is gone. Reply subjects are ``$JS.ACK…`` as in ADR-15, with or
without a domain; a request's end is told with a status (ADR-13).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from chassis.bus import jetstream
from chassis.bus.connection import Connection
from chassis.faults import Fault
from proto.subjects import Bucket

HEARTBEAT = 1.0
"""Seconds between the server's heartbeats when nothing else is sent."""
SILENCE = 3.5
"""Seconds without any word after which a tail is broken."""
INACTIVE = 30
"""Seconds after which the server removes a consumer that nobody listens to."""
BATCH = 8192
"""Messages that one request asks for at most."""
BATCH_BYTES = 8 << 20
"""Bytes of them."""
EXPIRES = 30
"""Seconds after which a request that is not used up is asked again."""
YIELD_EVERY = 128
"""Messages after which others get a turn on the loop."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key as the stream has it; ``body`` is None when it was deleted.

    ``forged``: it was not written by who may write it (``jetstream.authentic``); the body means nothing.
    """

    key: str
    revision: int
    body: bytes | None
    forged: bool = False
    traceparent: str = ""
    """Trace context of a deletion; that of a value is in the value."""


class Tail:
    """Follows ``filters`` (full subjects) of a bucket; ``on_change`` and ``on_event`` are called on the loop and must
    not block. ``broken`` is empty while all is well, else why it must be opened anew.
    """

    def __init__(
        self,
        connection: Connection,
        bucket: Bucket,
        filters: tuple[str, ...],
        name: str,
        on_change: Callable[[Change], None],
        on_event: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._stream = bucket.stream
        self._strip = len(bucket.subject(""))
        self._filters = filters
        self._name = f"{name}-{secrets.token_hex(16)}"
        self._on_change = on_change
        self._on_event = on_event
        self._subscription: Subscription | None = None
        self._expected = 1
        self._heard = 0.0
        self._idle = 0
        self._inbox = ""
        self._request = 0
        """Number of the present request; it is the last token of its reply subject."""
        self._left = 0
        """Messages that the present request may still bring."""
        self.caught_up = False
        self.broken = ""
        self.orphaned = False
        """It broke because the server that held its consumer is gone, as with every other reader of that server."""
        self.failure: Exception | None = None
        """What ``on_change`` raised: a bug, the owner raises it."""

    async def open(self) -> None:
        """Subscribe, make the consumer, ask for its messages; raises Missing, Unavailable, Refused."""
        self._inbox = self._connection.client().new_inbox()
        self._subscription = await self._connection.listen(f"{self._inbox}.*", self._on_message, self._lost)
        self._heard = time.monotonic()
        config: dict[str, object] = {
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": INACTIVE * 1_000_000_000,
            "mem_storage": True,
            "num_replicas": 1,
        }
        pending = await jetstream.create_consumer(self._connection, self._stream, self._name, self._filters, config)
        await self._ask()
        if pending == 0:
            self._caught_up()

    async def _ask(self) -> None:
        """Ask for the next messages, for as long as the request lives; raises Unavailable."""
        self._request += 1
        self._left = BATCH
        await jetstream.pull(
            self._connection,
            self._stream,
            self._name,
            f"{self._inbox}.{self._request}",
            {
                "batch": BATCH,
                "max_bytes": BATCH_BYTES,
                "expires": EXPIRES * 1_000_000_000,
                "idle_heartbeat": int(HEARTBEAT * 1e9),
            },
        )

    async def close(self) -> None:
        """Stop listening and remove the consumer as well as that can be done now."""
        if self._subscription is not None:
            await self._connection.unlisten(self._subscription)
            self._subscription = None
        if self._connection.connected:
            with contextlib.suppress(Fault):
                await jetstream.delete_consumer(self._connection, self._stream, self._name)

    async def verify(self) -> None:
        """After a reconnect: ask again. A consumer that is gone says so, a lost message shows at the first heartbeat.

        Raises Unavailable.
        """
        await self._ask()
        self._heard = time.monotonic()

    def check_silence(self, now: float) -> None:
        """Break the tail when it has heard nothing for too long."""
        if now - self._heard > SILENCE:
            self.orphaned = True
            self._break(f"no heartbeat for {SILENCE} s")

    def forgive(self, held: float) -> None:
        """For so many seconds the event loop was held: nobody listened, whatever was said."""
        self._heard += held

    def forgive_silence(self, now: float) -> None:
        """The connection is down: nothing can be heard."""
        self._heard = now

    def _break(self, why: str) -> None:
        if not self.broken:
            self.broken = why
            self._on_event()

    def _lost(self) -> None:
        self._break("messages were dropped: the local queue was full")

    def _caught_up(self) -> None:
        if not self.caught_up:
            self.caught_up = True
            self._on_event()

    async def _on_message(self, message: Msg) -> None:
        if self.broken:
            return
        self._heard = time.monotonic()
        headers = message.headers or {}
        if "Status" in headers:
            await self._on_status(message, headers)
            return
        revision, count, pending = positions(message.reply)
        if count != self._expected:
            self._break(f"message {self._expected} is missing, {count} came")
            return
        self._expected = count + 1
        self._idle = 0
        try:
            self._on_change(change_of(message, self._stream, self._strip, revision))
        except Exception as error:  # nats-py would only report it, and the change would be missing for ever
            self.failure = error
            self._break(f"taking in {message.subject} failed")
            return
        if pending == 0:
            self._caught_up()
        self._left -= 1
        if self._left == 0:
            await self._again()
        if count % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def _on_status(self, message: Msg, headers: dict[str, str]) -> None:
        """Heartbeats, and the end of a request (ADR-13): everything before this message has been taken in."""
        status = headers["Status"]
        if status == "100":
            self._on_heartbeat(headers)
        elif status == "503":
            self.orphaned = True
            self._break("the server lost the consumer")
        elif message.subject != f"{self._inbox}.{self._request}":
            return  # an earlier request has ended, which no longer matters
        elif status == "408" or (status == "409" and self._left < BATCH):
            await self._again()  # its time is over, or what it may bring in all
        else:
            self._break(f"the server ended a request: {status} {headers.get('Description', '')}")

    def _on_heartbeat(self, headers: dict[str, str]) -> None:
        last = headers.get("Nats-Last-Consumer")
        if last is None:
            return
        if int(last) != self._expected - 1:
            self._break(f"messages up to {last} were sent, {self._expected - 1} came")
            return
        self._idle += 1
        if self._idle >= 2:  # nothing to send for two intervals: whatever "pending" says, this is all
            self._caught_up()

    async def _again(self) -> None:
        with contextlib.suppress(Fault):  # else the silence tells
            await self._ask()


def change_of(message: Msg, stream: str, strip: int, revision: int) -> Change:
    """What a stored message says of its key, which is its subject without the first ``strip`` characters."""
    headers = message.headers or {}
    gone = jetstream.is_tombstone(headers)
    traceparent = headers.get("traceparent", "") if gone else ""
    forged = not jetstream.authentic(headers, stream)
    return Change(message.subject[strip:], revision, None if gone else message.data, forged, traceparent)


def positions(reply: str) -> tuple[int, int, int]:
    """Stream sequence, consumer sequence and messages still pending of a ``$JS.ACK`` subject (v1 or v2)."""
    tokens = reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    return int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 3])
