"""The API server over HTTP: pages of lists, lines of watches, typed writes. Kubernetes' JSON leaves here as bytes only.

Owns the connection and every deadline on it. A dead peer is found by TCP keepalive (30 s), a stopped one by the time
the server itself was given for the watch. Every refusal is a :class:`Refusal` with its status and, if the server said
so, when to come back. Writes are server-side apply under a field manager of their own, so that two writers of one
object never take each other's fields. Units: seconds, bytes.

Source: kubernetes.io/docs/reference/using-api/api-concepts and server-side-apply.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from chassis.faults import Retryable
from services.cluster.core.watching import Page, Status, WatchEvent, is_expired
from services.cluster.kubeconfig import Credentials

CONNECT = 5.0
ANSWER = 30.0
"""Deadline of any request that is no watch."""
GRACE = 15.0
"""How much longer than the server's own time a silent watch may last."""
MAX_BODY = 256 << 20
MAX_LINE = 8 << 20


class Refusal(Retryable):
    """The API server said no, or could not be reached (``status`` 0)."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def expired(self) -> bool:
        """The resource version or continue token is no longer known: list again."""
        return is_expired(self.status, self.reason)


class Kube:
    """One session. ``open`` before use, ``close`` after."""

    def __init__(self, credentials: Credentials, *, grace: float = GRACE) -> None:
        self._credentials = credentials
        self._grace = grace
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the session; connects to nothing yet."""
        connector = aiohttp.TCPConnector(ssl=self._credentials.tls(), limit=0, socket_factory=_socket)
        self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": "airmesh-cluster"})

    async def close(self) -> None:
        """End every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def page(self, path: str, *, limit: int, more: str = "", fields: str = "") -> Page:
        """One page of a list, as new as the store is (no resourceVersion: a quorum read). Raises Refusal."""
        params = {"limit": str(limit)}
        if more:
            params["continue"] = more
        if fields:
            params["fieldSelector"] = fields
        async with self._request("GET", path, params=params) as response:
            body = await _body(response)
        try:
            return msgspec.json.decode(body, type=Page)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Refusal(0, "", f"{path}: not a list: {error}") from None

    async def watch(
        self, path: str, *, version: str, seconds: int, fields: str = ""
    ) -> AsyncGenerator[WatchEvent, None]:
        """Events after ``version`` until the server's time is over. Raises Refusal, also for a silent peer."""
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        if fields:
            params["fieldSelector"] = fields
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=seconds + self._grace)
        async with self._request("GET", path, params=params, timeout=timeout) as response:
            async for line in _lines(response):
                try:
                    yield msgspec.json.decode(line, type=WatchEvent)
                except (msgspec.MsgspecError, RecursionError) as error:
                    raise Refusal(0, "", f"{path}: not a watch event: {error}") from None

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str) -> None:
        """Server-side apply: we own exactly the fields of ``body``. Raises Refusal."""
        params = {"fieldManager": manager, "force": "true"}
        headers = {"Content-Type": "application/apply-patch+yaml"}
        async with self._request("PATCH", path, params=params, headers=headers, content=body) as response:
            await _body(response)

    async def merge(self, path: str, body: Mapping[str, Any], *, manager: str) -> None:
        """JSON merge patch (RFC 7386), for a field that the API takes as a whole. Raises Refusal.

        ``body`` names the resourceVersion it was made of, so a later one is a conflict (409).
        """
        params = {"fieldManager": manager}
        headers = {"Content-Type": "application/merge-patch+json"}
        async with self._request("PATCH", path, params=params, headers=headers, content=body) as response:
            await _body(response)

    async def ask(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Create what is a question (a review), and is kept by nobody; the object with its answer. Raises Refusal."""
        async with self._request("POST", path, params={}, content=body) as response:
            return await _body(response)

    async def create(self, path: str, body: Mapping[str, Any], *, manager: str) -> None:
        """Create an object. Raises Refusal (409 AlreadyExists when it is there)."""
        params = {"fieldManager": manager}
        async with self._request("POST", path, params=params, content=body) as response:
            await _body(response)

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        content: Mapping[str, Any] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "open() first"
        sent = {"Content-Type": "application/json", **(headers or {}), **self._credentials.headers()}
        limits = timeout or aiohttp.ClientTimeout(total=ANSWER, sock_connect=CONNECT)
        encoded = None if content is None else msgspec.json.encode(content)
        url = self._credentials.server + path
        try:
            async with self._session.request(
                method, url, params=params, headers=sent, data=encoded, timeout=limits, allow_redirects=False
            ) as response:
                if response.status >= 300:
                    raise await _refusal(response)
                yield response
        except TimeoutError:
            raise Refusal(0, "", f"{method} {path}: no answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Refusal(0, "", f"{method} {path}: {type(error).__name__}: {error}") from None


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices within half a minute that its peer is gone."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


async def _body(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_BODY:
            raise Refusal(0, "", f"{response.url.path}: an answer of more than {MAX_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines; a last one that was cut off is dropped, the watch begins again before it."""
    rest = b""
    async for part in response.content.iter_any():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line:
                yield line
        if len(rest) > MAX_LINE:
            raise Refusal(0, "", f"{response.url.path}: a watch event of more than {MAX_LINE} bytes")
        await asyncio.sleep(0)


async def _refusal(response: aiohttp.ClientResponse) -> Refusal:
    text = (await response.content.read(1 << 16)).strip()
    try:
        status = msgspec.json.decode(text, type=Status)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        status = Status(message=text[:200].decode(errors="replace"))
    return Refusal(
        response.status,
        status.reason or response.reason or "",
        (status.message or "no message")[:500],
        _retry_after(response, status),
    )


def _retry_after(response: aiohttp.ClientResponse, status: Status) -> float | None:
    header = response.headers.get("Retry-After", "")
    if header.isascii() and header.isdecimal() and len(header) < 6:
        return float(header)
    details = status.details
    if details is not None and details.retry_after_seconds is not None and details.retry_after_seconds >= 0:
        return float(details.retry_after_seconds)
    return None
