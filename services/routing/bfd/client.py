"""The agent's side of BFD: which sessions there are to be, and what became of them.

BFD runs in a process of its own, not in a thread of the agent. Measured with 16 sessions at 50 ms on two busy cores,
longest gap between two packets of one session, over 4 s: while the agent computes in Python a thread comes to 198 ms,
longer than the detection time, since it waits 5 ms for the interpreter's lock after each of its system calls; while a
call in C holds that lock it comes to 4 s, the whole call. A process comes to 60 ms in both cases.

The process is started when a session is first wanted, found again by its socket, and started again when it is gone. It
goes on without the agent for ``linger_seconds``, so sessions stay up while the agent restarts, where the process is not
ended with it: in a container of its own it is, and then the C bit is clear (RFC 5880 4.1, RFC 5882 4.3.2). One of
another version ends in AdminDown, which is no failure to the peers, before its successor starts.

When the process is lost, every session that was up is reported down as administratively so: nothing is known of the
path.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from chassis.telemetry.log import Log
from kit.backoff import delay
from services.routing.bfd.messages import (
    LOCK,
    LOG,
    LONGEST,
    SOCKET,
    Order,
    Report,
    Unreadable,
    Wanted,
    line,
    read_report,
)
from services.routing.core.bfd.packet import Diagnostic, State
from services.routing.core.bfd.session import Failure, Settings
from services.routing.core.bfd.sessions import MOST_CLOSING_US, Key
from services.routing.core.bfd.status import Status
from services.routing.core.faults import Fault

FOLDER = "bfd"
"""In the state folder of a node: the process' socket, its lock and its last words."""
DEADLINE = 10.0
"""Seconds for the process to start, and for it to say something."""
_ROOT = Path(__file__).parent.parent.parent.parent
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO (include/linux/proc_ns.h)."""

_LOST = Failure(diagnostic=Diagnostic.ADMIN_DOWN, remote_state=State.DOWN, independent=False)


class BfdLost(Exception):
    """The process cannot be started, or is gone."""


def outlives_agent() -> bool:
    """Whether a process that the agent starts goes on when the agent is killed: not in a container."""
    with suppress(OSError):
        contained = "kubepods" in Path("/proc/self/cgroup").read_text()
        return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE and not contained
    return False


def is_held(lock: int) -> bool:
    """Whether a process holds the lock that this descriptor is of: until the kernel has closed all that it had open."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def kill_holder(lock: Path) -> None:
    """Kills the process that holds a lock and has written its pid into it; nobody when the lock is free."""
    with suppress(OSError, ValueError), lock.open() as opened:
        if is_held(opened.fileno()):
            os.kill(int(opened.read()), signal.SIGKILL)


async def connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the process of a folder; raises OSError.

    By the folder's descriptor: the whole path may be too long for a unix socket.
    """
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        async with asyncio.timeout(DEADLINE):
            return await asyncio.open_unix_connection(f"/proc/self/fd/{opened}/{SOCKET}", limit=LONGEST)
    finally:
        os.close(opened)


async def end(folder: Path) -> bool:
    """Ends the process of a folder with all sessions, in AdminDown, and waits until it is gone: for an uninstall.

    Whether there was one. A restart of the agent needs no call. Raises OSError, also when it goes on for too long.
    """
    try:
        _, writer = await connect(folder)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    try:
        writer.write(line(Order()))
        with (folder / LOCK).open() as lock:  # its connection ends before it does
            async with asyncio.timeout(MOST_CLOSING_US / 1e6 + DEADLINE):
                while is_held(lock.fileno()):  # noqa: ASYNC110 - nothing tells of a lock that becomes free
                    await asyncio.sleep(0.01)
    finally:
        writer.close()
    return True


class Bfd:
    """``run`` for ever; ``sessions`` says what is wanted, at any time. Until it has, what an agent before this one
    wanted goes on.
    """

    def __init__(
        self,
        folder: Path,
        log: Log,
        *,
        up: Callable[[Key], None],
        down: Callable[[Key, Failure], None],
        namespace: Path | None = None,
        linger_seconds: float = 120.0,
        independent: bool | None = None,
    ) -> None:
        """``folder``: of the process' socket, for this node alone; ``up`` and ``down`` are called in the loop, ``down``
        only after ``up``; ``independent``: what :func:`outlives_agent` says unless the caller knows better.
        """
        self._folder = folder
        self._log = log
        self._up = up
        self._down = down
        self._namespace = namespace
        self._linger = linger_seconds
        self._independent = outlives_agent() if independent is None else independent
        self._wanted: dict[Key, Settings] = {}
        self._instance = 0
        self._attempt = 0
        """Times in a row that the process was not reached, or was of another version."""
        self._ordered = asyncio.Event()
        self._needed = asyncio.Event()
        self._reported: dict[Key, int] = {}
        """Sessions that were reported up, and how often they had left Up by then."""
        self.statuses: dict[Key, Status] = {}
        """Of the wanted sessions, as of the last second; those of which nothing is known yet are missing."""
        self.fault: Fault | None = None
        """Why there is no BFD at all on this node."""

    def sessions(self, wanted: Mapping[Key, Settings]) -> None:
        """Exactly these from now on. One that is wanted no longer is neither shown nor reported any more."""
        self._wanted = dict(wanted)
        for known in (self.statuses, self._reported):
            for key in known.keys() - wanted.keys():
                del known[key]
        self._ordered.set()
        self._needed.set()

    async def run(self) -> None:
        """Keeps the process running while sessions are wanted, and in agreement with them."""
        while True:
            await self._needed.wait()
            try:
                if (connected := await self._connected()) is None:
                    self._needed.clear()
                    continue
                reader, writer = connected
                try:
                    await self._serve(reader, writer)
                finally:
                    writer.close()
            except (OSError, BfdLost, ValueError) as error:
                self._lose(error)
            await asyncio.sleep(delay(self._attempt, random.random(), first=0.05))  # noqa: S311 - spreads attempts
            self._attempt += 1

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the process, started unless it runs; None where none runs and nothing is wanted."""
        try:
            return await connect(self._folder)
        except (FileNotFoundError, ConnectionRefusedError):
            if not self._wanted:
                return None
            await asyncio.to_thread(self._start)
            return await connect(self._folder)

    def _start(self) -> None:
        """Starts the process, which returns when its socket listens. Raises BfdLost."""
        command = [sys.executable, "-P", "-m", "services.routing.bfd", str(self._folder)]
        command += [f"--netns={self._namespace}"] if self._namespace is not None else []
        command += ["--independent"] if self._independent else []
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                timeout=DEADLINE,
            )
        except subprocess.TimeoutExpired as error:
            raise BfdLost(f"it has not started in {DEADLINE:.0f} s") from error
        if done.returncode:
            raise BfdLost(_last_words(done.stderr) or f"it ended with {done.returncode}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Orders and reports over one connection, until nothing is wanted or it is lost."""
        orders = asyncio.create_task(self._order(writer))
        try:
            while True:
                octets = await self._read(reader)
                if not octets:
                    if not self._wanted:
                        return
                    raise BfdLost(_last_words(self._words()) or "it is gone")
                try:
                    self._learn_all(read_report(octets))
                except Unreadable:
                    writer.write(line(Order()))  # ends it, whichever version it is
                    raise
        finally:
            orders.cancel()
            await asyncio.gather(orders, return_exceptions=True)

    async def _order(self, writer: asyncio.StreamWriter) -> None:
        while True:
            self._ordered.clear()
            wanted = tuple(
                Wanted(local=key.local, peer=key.peer, interface=key.interface, settings=settings)
                for key, settings in self._wanted.items()
            )
            if not wanted:
                self._needed.clear()
            writer.write(line(Order(wanted=wanted, linger_seconds=self._linger)))
            await writer.drain()
            await self._ordered.wait()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """A line of the process, which says something each second: one that does not is killed, to be started again.
        A loop that was held so long itself looks once more before.
        """
        for last in (False, True):
            try:
                async with asyncio.timeout(DEADLINE):
                    return await reader.readline()
            except TimeoutError:
                if last:
                    kill_holder(self._folder / LOCK)
        raise BfdLost("it said nothing and was killed")

    def _learn_all(self, report: Report) -> None:
        if report.instance != self._instance:
            self._instance = report.instance
            self._forget()
        self._attempt, self.fault = 0, None
        for status in report.statuses:
            if status.key in self._wanted:
                self._learn(status)

    def _learn(self, status: Status) -> None:
        """Reports what a session has gone through since the last report: states may have been passed over."""
        key = status.key
        self.statuses[key] = status
        if (downs := self._reported.get(key)) is not None and status.downs != downs and status.failure is not None:
            del self._reported[key]
            self._log.info(
                "bfd-down", peer=key.peer, interface=key.interface, diagnostic=status.failure.diagnostic.name
            )
            self._down(key, status.failure)
        if status.state is State.UP and key not in self._reported and key in self._wanted:
            self._reported[key] = status.downs
            self._log.info("bfd-up", peer=key.peer, interface=key.interface)
            self._up(key)

    def _lose(self, error: Exception) -> None:
        words = "it says nothing" if isinstance(error, TimeoutError) else str(error)
        self.fault = Fault(f"BFD does not run: {words}", f"look at {self._folder / LOG}; it is started again")
        self._log.warning("bfd-lost", error=words)
        self._forget()

    def _forget(self) -> None:
        """Nothing is known of any session any more."""
        self.statuses.clear()
        for key in list(self._reported):
            if self._reported.pop(key, None) is not None:  # what is called may want others
                self._down(key, _LOST)

    def _words(self) -> bytes:
        try:
            return (self._folder / LOG).read_bytes()
        except OSError:
            return b""


def _last_words(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
