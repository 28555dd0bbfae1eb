"""The unix socket that the CNI executable speaks to.

Owns the socket file (mode 0600, root only, peers checked by SO_PEERCRED), the frame (``core.cni.request.split_frame``;
answer: ``0`` or ``1``, newline, JSON) and the bounds: 96 KiB of request, five seconds to send it, a bounded number of
calls of each verb at once (the next is told to come again). Promises: every call is answered with JSON of the
specification, whatever happens in the agent; removals never wait for additions: ADDs that wait for a pod's policy take
no room from a DEL, and a DEL ends the ADD of its own attachment; a socket left by a dead agent is replaced, a living
agent's is not.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from services.dataplane.core.attachment import Attachment
from services.dataplane.core.cni.request import MAX_STDIN, CniError, Code, Request, Verb, parse, split_frame
from services.dataplane.core.cni.result import render_error, render_versions

MAX_FRAME = MAX_STDIN + (32 << 10) + 2
READ_SECONDS = 5.0
MAX_CALLS = {Verb.ADD: 64, Verb.DEL: 512, Verb.CHECK: 64, Verb.GC: 4, Verb.STATUS: 64}
"""Calls of a verb that are served at a time: none takes another's room."""
_PEER = struct.Struct("iII")

Answer = Callable[[Request], Awaitable[bytes]]


class SocketTaken(OSError):
    """Another agent answers on this socket."""


class CniServer:
    """Answers the calls of a runtime with what ``answer`` makes of them (JSON, or a CniError)."""

    def __init__(self, path: Path, answer: Answer, on_bug: Callable[[BaseException], None]) -> None:
        self._path = path
        self._answer = answer
        self._on_bug = on_bug
        self._calls: set[_Call] = set()
        self._served: Counter[Verb] = Counter()
        self._adds: dict[Attachment, set[asyncio.Task[bytes]]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen. Raises SocketTaken, or OSError when the folder cannot be written."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _claim(self._path)
            previous = os.umask(0o177)  # so that the file never exists with another mode
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(previous)
            listener.listen(128)
            listener.setblocking(False)
            self._server = await asyncio.get_running_loop().create_unix_server(self._call, sock=listener)
        except BaseException:
            listener.close()
            raise

    async def close(self, seconds: float = 3.0) -> None:
        """Takes no further calls and waits for those that were begun."""
        if self._server is None:
            return
        self._server.close()
        with suppress(FileNotFoundError):
            self._path.unlink()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _call(self) -> asyncio.Protocol:
        return _Call(self._serve, self._calls, self._idle)

    async def _serve(self, frame: bytes) -> bytes:
        version = "1.0.0"
        try:
            request = parse(*split_frame(frame))
            version = request.version
            return b"0\n" + await self._dispatch(request)
        except CniError as error:
            if error.version == "1.0.0":
                error.version = version
            return _refusal(error)
        except Exception as error:
            self._on_bug(error)
            return _refusal(CniError(Code.INTERNAL, f"{type(error).__name__} in the agent", str(error)))

    async def _dispatch(self, request: Request) -> bytes:
        if request.verb is Verb.VERSION:
            return render_versions(request.version)
        verb = request.verb
        if self._served[verb] >= MAX_CALLS[verb]:
            raise CniError(Code.TRY_AGAIN_LATER, f"{MAX_CALLS[verb]} calls of {verb.value} are being served already")
        self._served[verb] += 1
        try:
            if verb is Verb.ADD:
                return await self._add(request)
            if verb is Verb.DEL:
                for add in self._adds.get(request.attachment, ()):
                    if not add.cancelling():  # once: what it did is being undone
                        add.cancel()
            return await self._answer(request)
        finally:
            self._served[verb] -= 1

    async def _add(self, request: Request) -> bytes:
        """An ADD, which a DEL of the same attachment ends: whoever asks for that waits for it no more."""
        work: asyncio.Task[bytes] = asyncio.create_task(_awaited(self._answer(request)))
        begun = self._adds.setdefault(request.attachment, set())
        begun.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            if (own := asyncio.current_task()) and own.cancelling():
                raise
            raise CniError(Code.TRY_AGAIN_LATER, "a DEL of this attachment came while it was being added") from None
        finally:
            begun.discard(work)
            if not begun:
                self._adds.pop(request.attachment, None)


class _Call(asyncio.Protocol):
    """One connection: a frame until its end, one answer, closed. Streams would cost a tenth of an ADD."""

    def __init__(self, serve: Callable[[bytes], Awaitable[bytes]], calls: set[_Call], idle: asyncio.Event) -> None:
        self._serve = serve
        self._calls = calls
        self._idle = idle
        self._frame = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller; hung up on unless it is root."""
        stream = cast(asyncio.Transport, transport)  # uvloop's is one without being derived from it
        if not _is_root(stream):
            stream.abort()
            return
        self._transport = stream
        self._calls.add(self)
        self._idle.clear()
        self._give(READ_SECONDS, self._late)

    def data_received(self, data: bytes) -> None:
        """A part of the frame."""
        if self not in self._calls:
            return
        self._frame += data
        if len(self._frame) > MAX_FRAME:
            self._finish(_refusal(CniError(Code.DECODE, f"the call is larger than {MAX_FRAME} bytes")))

    def eof_received(self) -> bool:
        """The frame is whole; the connection stays open for the answer."""
        if self._timer is not None and self in self._calls:
            self._timer.cancel()
            self._task = asyncio.create_task(self._run(bytes(self._frame)))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The answer is out, or the caller went away: what it asked for is done or undone all the same."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None:
            self._served()

    def _late(self) -> None:
        self._finish(_refusal(CniError(Code.IO, f"the call did not arrive within {READ_SECONDS:.0f} seconds")))

    async def _run(self, frame: bytes) -> None:
        try:
            self._finish(await self._serve(frame))
        finally:
            self._served()

    def _finish(self, answer: bytes) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.write(answer)
            self._transport.close()
            self._give(READ_SECONDS, self._transport.abort)
        self._served()

    def _served(self) -> None:
        self._calls.discard(self)
        if not self._calls:
            self._idle.set()

    def _give(self, seconds: float, then: Callable[[], None]) -> None:
        """So long for the caller."""
        self._timer = asyncio.get_running_loop().call_later(seconds, then)


async def _awaited(answer: Awaitable[bytes]) -> bytes:
    """What a task takes."""
    return await answer


def _refusal(error: CniError) -> bytes:
    return b"1\n" + render_error(error)


def _is_root(transport: asyncio.Transport) -> bool:
    """True for a peer that is root: the mode of the file says it too, this holds where the folder was changed."""
    connection = transport.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, user, _ = _PEER.unpack(raw)
    return bool(user == 0 or user == os.geteuid())


def _claim(path: Path) -> None:
    """Removes a socket nobody listens on. Raises SocketTaken when somebody does."""
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise SocketTaken(f"{path}: another agent answers here; stop it, or set AIRMESH_CNI_SOCKET to another path")
