"""What a tenant goes on doing while others attack: new connections and look-ups of names. Standard library only.

Run inside a pod's network namespace and commanded over stdin as ``flows.py`` is: each line of input is answered with
one line of JSON, what was seen since the last; the end of input ends the program.

    visits.py visit PORT PER_SECOND SECONDS TARGET…   a new TCP connection each, a message there and back in so long
    visits.py resolve SERVER PER_SECOND NAME…   a query from a fresh port each, asked three times as resolvers do
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

MESSAGE = struct.Struct("!IQ")
KNOCK = 0xFFFF
"""The flow that ``flows.py`` answers and does not follow."""
TRIES, TRY_SECONDS = 3, 1.5


class Diary:
    """What became of each visit."""

    def __init__(self) -> None:
        self.done = 0
        self.failed: list[str] = []
        self.took: list[float] = []

    async def note(self, what: str, visit: Awaitable[None]) -> None:
        """Do it and remember how it went."""
        began = time.monotonic()
        try:
            await visit
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.failed.append(f"{what} at {time.time():.3f}: {error!r}")
            return
        self.done += 1
        self.took.append(time.monotonic() - began)

    def report(self) -> dict[str, Any]:
        """Since the last report; ``took`` in milliseconds, sorted."""
        took = sorted(round(seconds * 1000, 1) for seconds in self.took)
        said = {"done": self.done, "failed": self.failed, "took": took}
        self.done, self.failed, self.took = 0, [], []
        return said


async def visit(target: str, port: int, seconds: float) -> None:
    """A connection, a message, its echo. Raises TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(target, port)
        try:
            message = MESSAGE.pack(KNOCK, random.getrandbits(32))
            writer.write(message)
            if await reader.readexactly(MESSAGE.size) != message:
                raise ValueError("another answer than the echo")
        finally:
            writer.close()


async def resolve(server: str, name: str) -> None:
    """An address of a name; raises ValueError when there is none."""
    question = b"".join(bytes((len(part),)) + part.encode() for part in name.split(".") if part) + b"\0"
    loop = asyncio.get_running_loop()
    for _ in range(TRIES):
        number = random.getrandbits(16)
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setblocking(False)
            await loop.sock_connect(made, (server, 53))
            await loop.sock_sendall(made, struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + question + b"\0\1\0\1")
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer = await asyncio.wait_for(loop.sock_recv(made, 1500), TRY_SECONDS)
                reported, flags, _, answers = struct.unpack_from("!4H", answer)
                if reported != number or flags & 15 or not answers:
                    raise ValueError(f"{name}: flags {flags:04x}, {answers} answers")
                return
    raise TimeoutError(f"{name}: no answer of {server} to {TRIES} queries")


async def pace(per_second: float, step: Callable[[int], Awaitable[None]]) -> None:
    """So many a second, none waiting for another."""
    under_way: set[asyncio.Task[None]] = set()
    began, count = time.monotonic(), 0
    while True:
        await asyncio.sleep(max(0.0, began + count / per_second - time.monotonic()))
        task = asyncio.ensure_future(step(count))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        count += 1


async def main(arguments: list[str]) -> None:
    """See the module."""
    role, what, per_second, rest = arguments[0], arguments[1], float(arguments[2]), arguments[3:]
    diary = Diary()
    seconds = float(rest.pop(0)) if role == "visit" else 0.0

    async def step(count: int) -> None:
        one = rest[count % len(rest)]
        if role == "visit":
            await diary.note(f"connection to {one}", visit(one, int(what), seconds))
        else:
            await diary.note(f"name {one}", resolve(what, one))

    pacing = asyncio.create_task(pace(per_second, step))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        ended = [repr(pacing.exception())] if pacing.done() else []
        print(json.dumps({**diary.report(), "faults": ended}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
