"""The supervisor: one small process a lab that is the parent of all the lab's others, and starts the agents again
when they die.

Run as `python -m lab.cluster.supervisor <lab>`. It is asked over a root-only unix socket (one JSON object a line, one
answer a line): start, stop, restart, list. Promises that a process's intention is in the ledger before it is
started and its pid right after; that `always` processes come back with a back-off of 0.2 s doubling to 5 s (reset
after 10 s of life); that each child has a session of its own and its output in `logs/<name>.log`. Refuses a second
process of the same name. On TERM it leaves at once and leaves its children: ending them is `down`'s work, which
must manage without a supervisor anyway.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import Literal

import msgspec

from lab.cluster import ledger
from lab.paths import MARKER, Paths, paths, settings

_FIRST_PAUSE, _LONGEST_PAUSE, _LONG_RUN = 0.2, 5.0, 10.0
_LINE_LIMIT = 1 << 20
_TERM_SECONDS = 10.0
_UMASK = 0o022
"""Of children, as daemons have it: with a stricter one a pod that is not root cannot enter what containerd unpacks."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `environment` is whole: nothing is inherited from whoever asked."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    folder: str = "/"
    always: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One line from an asker: `spec` goes with start, `name` with stop and restart."""

    verb: Literal["start", "stop", "restart", "list"]
    spec: Spec | None = None
    name: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One process as the supervisor sees it. `code`: its last exit status, None while it never ended."""

    name: str
    pid: int
    running: bool
    restarts: int = 0
    code: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One line back. `error` empty: done."""

    error: str = ""
    states: tuple[State, ...] = ()


class Child:
    """One supervised process and the task that waits for it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.pid = 0
        self.started = 0
        self.code: int | None = None
        self.restarts = 0
        self.wanted = True
        self.task: asyncio.Task[None] | None = None
        self.up = asyncio.Event()

    def state(self) -> State:
        """As told to askers."""
        return State(name=self.spec.name, pid=self.pid, running=bool(self.pid), restarts=self.restarts, code=self.code)

    def entry(self) -> ledger.Entry:
        """As written down."""
        return ledger.Entry(name=self.spec.name, argv=self.spec.argv, pid=self.pid, started=self.started)


class Supervisor:
    """All children of one lab."""

    def __init__(self, where: Paths) -> None:
        self._where = where
        self._children: dict[str, Child] = {}

    def _record(self) -> None:
        me = os.getpid()
        own = ledger.Entry(name="supervisor", argv=tuple(sys.argv), pid=me, started=ledger.start_time_of(me))
        ledger.write(self._where.ledger, ledger.encode([own, *(c.entry() for c in self._children.values())]))

    async def answer(self, request: Request) -> Answer:
        """Carry out one request; a refusal is an answer with `error`."""
        if request.verb == "list":
            return Answer(states=tuple(child.state() for child in self._children.values()))
        if request.verb == "start":
            return await self._start(request.spec)
        child = self._children.get(request.name)
        if child is None:
            return Answer(error=f"no process {request.name!r}")
        await self._stop(child)
        if request.verb == "restart":
            return await self._start(child.spec)
        return Answer(states=(child.state(),))

    async def _start(self, spec: Spec | None) -> Answer:
        if spec is None:
            return Answer(error="start without a spec")
        old = self._children.get(spec.name)
        if old is not None and old.wanted and old.task and not old.task.done():
            return Answer(error=f"{spec.name} is started already")
        child = self._children[spec.name] = Child(spec)
        child.task = asyncio.create_task(self._keep(child))
        await child.up.wait()
        return Answer(states=(child.state(),))

    async def _keep(self, child: Child) -> None:
        pause = _FIRST_PAUSE
        while child.wanted:
            born = time.monotonic()
            try:
                await self._live(child)
            except OSError as refusal:
                with self._where.log(child.spec.name).open("a") as log:
                    log.write(f"cannot start: {refusal}\n")
                child.code = 127
            child.pid = 0
            child.up.set()
            self._record()
            if not child.spec.always or not child.wanted:
                return
            pause = _FIRST_PAUSE if time.monotonic() - born > _LONG_RUN else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)
            child.restarts += 1

    async def _live(self, child: Child) -> None:
        spec = child.spec
        self._record()  # the intention, before there is anything to find
        with self._where.log(spec.name).open("ab") as log:
            running = await asyncio.create_subprocess_exec(
                *spec.argv,
                env={**spec.environment, MARKER: self._where.lab},
                cwd=spec.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=_UMASK,
            )
        child.pid, child.started = running.pid, ledger.start_time_of(running.pid)
        self._record()
        child.up.set()
        child.code = await running.wait()

    async def _stop(self, child: Child) -> None:
        child.wanted = False
        if child.task is None or child.task.done():
            return
        self._signal(child, signal.SIGTERM)
        done, _ = await asyncio.wait([child.task], timeout=_TERM_SECONDS)
        if not done:
            self._signal(child, signal.SIGKILL)
            await child.task

    @staticmethod
    def _signal(child: Child, number: signal.Signals) -> None:
        # It may have died a moment ago, reaped already but not yet noticed by its task: then it is as asked for.
        if child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests until the other side closes."""
        try:
            while line := await reader.readline():
                try:
                    answer = await self.answer(msgspec.json.decode(line, type=Request))
                except (msgspec.DecodeError, UnicodeDecodeError) as bad:
                    answer = Answer(error=f"not a request: {bad}")
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # the asker went away, or sent a line beyond the limit
            return
        finally:
            writer.close()

    async def serve(self) -> None:
        """Listen until TERM."""
        socket = self._where.supervisor_socket
        socket.unlink(missing_ok=True)
        self._record()
        server = await asyncio.start_unix_server(self.converse, path=socket, limit=_LINE_LIMIT)
        socket.chmod(0o600)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with server:
            await stop.wait()


def main(argv: list[str]) -> int:
    """`python -m lab.cluster.supervisor <lab>`."""
    os.umask(0o077)
    where = paths(argv[0], settings())
    asyncio.run(Supervisor(where).serve())
    # The children stay: the interpreter must not wait for their transports.
    sys.stdout.flush()
    os._exit(0)


def started_by(lab: str) -> tuple[str, ...]:
    """The argv that starts the supervisor of `lab`."""
    return (sys.executable, "-P", "-m", "lab.cluster.supervisor", lab)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
