"""The unix socket that the CNI executable speaks to.

Owns the socket file (mode 0600, root only, peers checked by SO_PEERCRED), the frame (``core.cni.split_frame``; answer:
``0`` or ``1``, newline, JSON) and the bounds: 96 KiB of request, five seconds to send it, a bounded number of calls at
once (the next is told to come again). Promises: every call is answered with JSON of the specification, whatever
happens in the agent; a socket left by a dead agent is replaced, a living agent's is not.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from services.dataplane.core.cni import MAX_STDIN, CniError, Code, Request, Verb, parse, split_frame
from services.dataplane.core.cni_result import render_error, render_versions

MAX_FRAME = MAX_STDIN + (32 << 10) + 2
READ_SECONDS = 5.0
MAX_CALLS = 64
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
        self._calls = 0
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
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_FRAME)
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._calls += 1
        self._idle.clear()
        try:
            if not _is_root(writer):
                return
            code, body = await self._outcome(reader)
            writer.write(b"%d\n" % code + body)
            async with asyncio.timeout(READ_SECONDS):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # the caller went away: what it asked for is done or undone all the same
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    async def _outcome(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        version = "1.0.0"
        try:
            request = parse(*split_frame(await _read(reader)))
            version = request.version
            return 0, await self._dispatch(request)
        except CniError as error:
            if error.version == "1.0.0":
                error.version = version
            return 1, render_error(error)
        except Exception as error:
            self._on_bug(error)
            return 1, render_error(CniError(Code.INTERNAL, f"{type(error).__name__} in the agent", str(error)))

    async def _dispatch(self, request: Request) -> bytes:
        if request.verb is Verb.VERSION:
            return render_versions(request.version)
        if self._calls > MAX_CALLS:
            raise CniError(Code.TRY_AGAIN_LATER, f"{MAX_CALLS} calls are being served already")
        return await self._answer(request)


async def _read(reader: asyncio.StreamReader) -> bytes:
    frame = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            while chunk := await reader.read(MAX_FRAME + 1 - len(frame)):
                frame += chunk
                if len(frame) > MAX_FRAME:
                    raise CniError(Code.DECODE, f"the call is larger than {MAX_FRAME} bytes")
    except TimeoutError as error:
        raise CniError(Code.IO, f"the call did not arrive within {READ_SECONDS:.0f} seconds") from error
    return bytes(frame)


def _is_root(writer: asyncio.StreamWriter) -> bool:
    """True for a peer that is root: the mode of the file says it too, this holds where the folder was changed."""
    connection = writer.get_extra_info("socket")
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
