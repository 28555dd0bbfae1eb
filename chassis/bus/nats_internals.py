"""The adapter of nats-py: every private part of it that we read or replace, and why; no other module reaches one.

A house test keeps that. Checked with nats-py 2.16; an update of it is to be read against this page. What each part is
needed for has a test against a real server in tests/shell/chassis/bus.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error
from nats.micro.service import Endpoint, Service, ServiceStats

from chassis import asyncio_internals
from chassis.bus import tls

_CONNECT = b"CONNECT "
_TRUSTS = " trusts "
_FORBIDDEN = "permissions violation"


class Proof(Protocol):
    """What a client signs in with."""

    @property
    def public(self) -> str:
        """Its public nkey."""

    @property
    def jwt(self) -> str:
        """What an account signed about that key; may be empty."""

    def sign(self, nonce: str) -> bytes:
        """The server's nonce, signed with that key, in base64."""


class RenewingClient(Client):
    """A client that asks at each connect who it is and whom it trusts; nats-py keeps what it was told at the first.

    It sends its public nkey with its JWT, too, where nats-py sends the one or the other. An ``-ERR`` that ends the
    connection (a key revoked, a user taken out) makes it connect again, where nats-py closes for good. Its name on the
    server ends with whom it trusts (:func:`trusting`).
    """

    def __init__(self, proof: Callable[[], Proof], trust: Callable[[], ssl.SSLContext]) -> None:
        super().__init__()
        self._proof = proof
        self._trust = trust
        self.public = ""
        """The public nkey that it signed in with last."""
        self.trusted: tuple[str, ...] = ()
        """Fingerprints of the authorities that it trusted then; none without TLS."""

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Whom it trusts in the connect that is under way."""
        context = self._trust()
        self.trusted = tls.authorities(context)
        return context

    async def _process_err(self, err_msg: str) -> None:
        if _FORBIDDEN in err_msg.lower() or self.is_connecting:
            await super()._process_err(err_msg)
            return
        error = Error(f"nats: {err_msg}")
        self._err = error
        await self._error_cb(error)
        await self._process_op_err(error)

    def _connect_command(self) -> bytes:
        proof = self._proof()
        self._signature_cb = proof.sign
        self._public_nkey = self.public = proof.public
        said = json.loads(super()._connect_command().removeprefix(_CONNECT))
        said["name"] = trusting(said.get("name", ""), self.trusted)
        if proof.jwt:
            said |= {"jwt": proof.jwt}
        return _CONNECT + json.dumps(said, sort_keys=True).encode() + b"\r\n"


def trusting(name: str, authorities: tuple[str, ...]) -> str:
    """A connection's name on the server: of ``name``, which trusts these authorities (fingerprints)."""
    return f"{name}{_TRUSTS}{','.join(authorities)}" if authorities else name


def trusted_by(name: str) -> frozenset[str]:
    """Fingerprints of whom a connection trusts, by its name on the server."""
    return frozenset(name.rpartition(_TRUSTS)[2].split(",")) if _TRUSTS in name else frozenset()


def has_greeted(client: Client) -> bool:
    """Whether a server's INFO was read, of this attempt to connect or an earlier one."""
    return bool(client._server_info)


def unread(client: Client) -> bytes:
    """What was received and not read: a server's last words, which the end of its connection overtook."""
    return asyncio_internals.unread(getattr(client._transport, "_io_reader", None))


def number_of(subscription: Subscription) -> int:
    """The ``sid`` by which errors name a subscription."""
    return subscription._id


def close_transport(client: Client) -> None:
    """Close the socket of a connect that failed, which nats-py leaves open."""
    if client._transport:
        client._transport.close()  # type: ignore[no-untyped-call]


def abort(client: Client) -> None:
    """End its connection without a goodbye: over TLS the answer to one may never come, and a close waits for it."""
    writer = getattr(client._transport, "_io_writer", None)
    if isinstance(writer, asyncio.StreamWriter):
        writer.transport.abort()


def has_stopped_reconnecting(client: Client) -> bool:
    """The task that is to connect again has ended, which it must not."""
    task = client._reconnection_task
    return task is not None and task.done()


def abort_before_reconnecting(client: Client) -> None:
    """Abort a broken transport that cannot be closed, unless the client is past that and connects again."""
    if client._reconnection_task_future is None:
        abort(client)


def forget_pending(client: Client) -> None:
    """Throw away what stands in the buffer and would be sent after a reconnect."""
    client._pending.clear()
    client._pending_data_size = 0


class AnsweringEndpoint(Endpoint):
    """An endpoint whose messages come to :meth:`hear` first, which may have them answered, at once or later."""

    @property
    def subject(self) -> str:
        """The subject that it hears."""
        return self._subject

    @abstractmethod
    async def hear(self, msg: Msg) -> None:
        """A message came; those after it wait until this returns."""

    async def answer(self, msg: Msg) -> None:
        """Call the handler, and count it in the statistics."""
        await super()._handle_request(msg)

    async def _handle_request(self, msg: Msg) -> None:
        await self.hear(msg)


class DiscoverableService(Service):
    """A service that is asked whether a request for its discovery is one, and for metadata of the moment."""

    @abstractmethod
    def accepts(self, msg: Msg) -> bool:
        """Whether a PING, INFO or STATS is answered."""

    @abstractmethod
    def metadata_now(self) -> dict[str, str]:
        """What is added to the metadata of the registration."""

    async def add(self, endpoint: Endpoint) -> None:
        """Register an endpoint of our own making (``add_endpoint`` makes its own)."""
        await endpoint._start()
        self._endpoints.append(endpoint)

    def stats(self) -> ServiceStats:
        """As nats-py has it, with metadata of this moment."""
        self._metadata = {**(self._metadata or {}), **self.metadata_now()}
        return super().stats()

    async def _handle_ping_request(self, msg: Msg) -> None:
        if self.accepts(msg):
            await super()._handle_ping_request(msg)

    async def _handle_info_request(self, msg: Msg) -> None:
        if self.accepts(msg):
            await super()._handle_info_request(msg)

    async def _handle_stats_request(self, msg: Msg) -> None:
        if self.accepts(msg):
            await super()._handle_stats_request(msg)
