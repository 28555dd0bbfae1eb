"""The runtime of a service from start to exit: settings, bus, health, one task group, one final log line.

``__main__.py`` of each service is ``raise SystemExit(main("ipam", Settings, build))``. ``build(runtime)`` wires views,
servers and loops and returns; it runs whether or not NATS can be reached. A task that ends, well or badly, ends the
service with exit code 1: a supervisor starts it anew with a clean state. SIGTERM and SIGINT stop it gracefully: the
``on_stop`` callbacks in reverse order, five seconds in all, exit code 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, TypeVar

import uvloop
from prometheus_client import Histogram

from chassis.bus import tls
from chassis.bus.client import Bus, View
from chassis.bus.credentials import Credentials, parse
from chassis.faults import Fault, SettingsFault
from chassis.runtime import garbage
from chassis.runtime.checks import Checks
from chassis.runtime.settings import BaseSettings, default_instance, load
from chassis.runtime.standing import StandingCheck
from chassis.telemetry.health import Health
from chassis.telemetry.log import Log, bridge_libraries
from chassis.telemetry.loop_holds import LoopHolds
from chassis.telemetry.traces import Telemetry
from proto.findings import DoctorRequest
from proto.subjects import FINDINGS

STOP_SECONDS = 5.0
END_SECONDS = 1.0
"""What tasks have to end in before they are told again."""
LAG_EVERY = 0.25
LAG_LIMIT = 0.1
"""Seconds by which the loop may be late before that is logged."""

_LAG = Histogram("airmesh_loop_lag_seconds", "By how much the event loop was late", buckets=(0.005, 0.02, 0.1, 0.5, 2))

S = TypeVar("S", bound=BaseSettings)


class TaskEnded(Fault):
    """A task that must run for ever returned."""


class Runtime(Generic[S]):
    """What ``build`` gets: settings, bus, log, health, telemetry, and the task group by way of ``spawn``."""

    def __init__(self, name: str, settings: S, group: asyncio.TaskGroup, log: Log, telemetry: Telemetry) -> None:
        self.name = name
        self.settings = settings
        self.instance = settings.instance or default_instance(name)
        self.log = log
        self.telemetry = telemetry
        self.health = Health()
        self.holds = LoopHolds(log)
        self.checks = Checks(log)
        """What this service looks at when the mesh is asked what is wrong."""
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()
        self.ending = asyncio.Event()
        """Set when all tasks are to end."""
        self._stops: list[Callable[[], Awaitable[None]]] = []
        self._stopping = False
        self.bus = Bus(
            url=settings.nats_url,
            user=settings.bus_user,
            credentials=read_credentials(settings),
            service=name,
            instance=self.instance,
            log=log,
            telemetry=telemetry,
            spawn=self._spawn_quiet,
            stats=self._stats,
        )
        self.standing = StandingCheck(
            checks=self.checks,
            bus=self.bus,
            service=name,
            instance=self.instance,
            every=settings.checks_every,
            log=log,
        )

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run for as long as the service does; if it returns or raises, the service ends."""
        self._adopt(name, self._forever(name, coroutine))

    def on_stop(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call at a graceful stop, the last registered first."""
        self._stops.append(callback)

    async def stop(self) -> None:
        """Run the callbacks, at most STOP_SECONDS in all; a failing one does not keep the others from their turn."""
        self._stopping = True
        deadline = time.monotonic() + STOP_SECONDS
        for callback in reversed(self._stops):
            try:
                async with asyncio.timeout(max(0.1, deadline - time.monotonic())):
                    await callback()
            except Exception as error:
                self.log.warning("stop", callback=getattr(callback, "__qualname__", "?"), error=error)

    def _spawn_quiet(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        """Tasks of the bus: some of them end when their work is done."""
        self._adopt(name, coroutine)

    def _adopt(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.ending.set()

    async def insist(self) -> None:
        """Outside of the group, which cancels each task once: tells those again that missed it, until none is left.

        ``asyncio.wait_for``, by which the NATS client waits, drops a cancellation that meets the answer.
        """
        await self.ending.wait()
        while True:
            await asyncio.sleep(END_SECONDS)
            for task in self._tasks:
                self.log.warning("task-ends-late", task=task.get_name())
                task.cancel()

    async def _forever(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Exception as error:
            if not self._stopping:
                raise
            # What it stands on may have been let go of meanwhile: a stop in order is none that failed.
            self.log.warning("task-ended-by-stop", task=name, error=error)
        if not self._stopping:
            raise TaskEnded(f"task {name} ended although it should run for ever")

    def _stats(self) -> dict[str, object]:
        longest = self.holds.longest()
        return {
            "ready": self.health.ready,
            "rss_bytes": resident_bytes(),
            "loop_hold_us": round(longest.seconds * 1e6),
            "loop_held_by": longest.by,
            "missing": self.health.missing(),
            "notes": self.health.notes,
            "views": {view.name: _view_health(view) for view in self.bus.views},
            "events_dropped": self.bus.dropped,
        }


def _view_health(view: View) -> dict[str, object]:
    return {
        "synced": view.synced,
        "why": view.why(),
        "sequence": view.sequence,
        "lists": view.resyncs,
        "unreadable": dict(list(view.unreadable.items())[:10]),
    }


def resident_bytes() -> int:
    """Resident memory of this process (proc(5), statm), 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _is_private(seen: os.stat_result) -> bool:
    """Its owner alone may use the file; or root's file may be read by a group that this process, not being root, is in.

    The latter is a Secret of Kubernetes in a pod with an fsGroup: its files are root's, whoever the pod runs as.
    """
    shared = seen.st_mode & 0o077
    ours = seen.st_uid == 0 and os.geteuid() != 0 and seen.st_gid in {os.getegid(), *os.getgroups()}
    return shared == 0 or (shared == 0o040 and ours)


def read_credentials(settings: BaseSettings) -> Credentials:
    """Who we are on the bus; raises SettingsFault when a file cannot be used, or others may read the seed."""
    path, variable = settings.nats_seed_file, "AIRMESH_NATS_SEED_FILE"
    try:
        if not _is_private(path.stat()):
            raise SettingsFault(variable, str(path), "take away others' access: chmod 600")
        parse(path.read_text())
    except OSError as error:
        raise SettingsFault(variable, str(path), f"name a readable file ({error.strerror})") from error
    except ValueError as error:
        remedy = f"put the seed of a user nkey (SU…) or NATS credentials in it ({error})"
        raise SettingsFault(variable, str(path), remedy) from error
    if settings.nats_ca_file is not None:
        try:
            tls.trust(settings.nats_ca_file)
        except tls.TlsFault as error:
            remedy = f"name the file of the authority that signed the servers' certificates, as PEM ({error})"
            raise SettingsFault(tls.CA_VARIABLE, str(settings.nats_ca_file), remedy) from error
    return Credentials(path, settings.nats_ca_file)


def main(name: str, settings: type[S], build: Callable[[Runtime[S]], Awaitable[None]]) -> int:
    """Run a service until it is told to stop; returns its exit code."""
    try:
        loaded = load(settings, os.environ)
    except SettingsFault as fault:
        print(f"{name}: {fault}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 1
    log = Log(name, loaded.log_level)
    bridge_libraries(log)
    garbage.share_one_arena()
    telemetry = Telemetry(name, loaded.instance or default_instance(name), os.environ)
    garbage.freeze_survivors()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(name, loaded, build, log, telemetry))
    finally:
        telemetry.stop()


async def _run(
    name: str, settings: S, build: Callable[[Runtime[S]], Awaitable[None]], log: Log, telemetry: Telemetry
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runtime: Runtime[S] | None = None
    insisting: asyncio.Task[None] | None = None
    try:
        async with asyncio.TaskGroup() as group:
            runtime = Runtime(name, settings, group, log, telemetry)
            runtime.holds.watch(loop)
            insisting = asyncio.create_task(runtime.insist())
            group.create_task(_until_stopped(runtime, stop), name="stop")
            await _start(runtime, build)
    except BaseExceptionGroup as group_of:
        errors = [error for error in _leaves(group_of) if not isinstance(error, _Stopped)]
        for error in errors:
            log.error("failed", error=error, kind=type(error).__name__, where=_where(error))
        if errors:
            return 1
    finally:
        if insisting is not None:
            insisting.cancel()
        if runtime is not None:
            await _close(runtime)
    log.info("stopped")
    return 0


async def _close(runtime: Runtime[S]) -> None:
    """Leave nothing open, however the service ended; at most three seconds."""
    for close in (runtime.bus.close, runtime.health.stop):
        try:
            async with asyncio.timeout(1.5):
                await close()
        except (Fault, OSError, TimeoutError) as error:
            runtime.log.warning("close", error=error)


class _Stopped(Exception):
    """A graceful stop is over."""


async def _start(runtime: Runtime[S], build: Callable[[Runtime[S]], Awaitable[None]]) -> None:
    connected = runtime.health.require("bus")
    connected.set(ok=False, why=runtime.bus.connection.problem)
    await runtime.health.serve(runtime.settings.health_port)
    metadata = runtime.bus.registration.metadata
    metadata["health_port"] = str(runtime.health.port)
    metadata["node"] = str(getattr(runtime.settings, "node", ""))
    runtime.bus.start()
    runtime.spawn("watch-loop", _watch(runtime, connected.set))
    runtime.spawn("garbage", _look_for_cycles(runtime.log))
    runtime.spawn("free-pages", _give_back_free_pages())
    await build(runtime)
    await runtime.bus.serve_everyone(FINDINGS, DoctorRequest, runtime.standing.answer)
    runtime.spawn("standing-check", runtime.standing.run())
    runtime.log.info("started", instance=runtime.instance, health_port=runtime.health.port, pid=os.getpid())


async def _watch(runtime: Runtime[S], report_connected: Callable[[bool, str], None]) -> None:
    """Measure how late the loop is, and keep the bus condition true."""
    while True:
        report_connected(runtime.bus.connected, runtime.bus.connection.problem)
        before = time.monotonic()
        await asyncio.sleep(LAG_EVERY)
        lag = time.monotonic() - before - LAG_EVERY
        _LAG.observe(max(0.0, lag))
        if lag > LAG_LIMIT:
            runtime.log.warning("loop-late", seconds=round(lag, 3))


async def _look_for_cycles(log: Log) -> None:
    then = 0
    while True:
        await asyncio.sleep(garbage.LOOK_EVERY)
        if garbage.has_grown(resident_bytes(), then):
            freed = garbage.thaw()
            then = resident_bytes()
            log.info("cycles-looked-for", freed=freed, rss_bytes=then)


async def _give_back_free_pages() -> None:
    while True:
        await asyncio.sleep(garbage.GIVE_BACK_EVERY)
        garbage.give_back_free_pages()


async def _until_stopped(runtime: Runtime[S], stop: asyncio.Event) -> None:
    await stop.wait()
    runtime.log.info("stopping")
    await runtime.stop()
    await runtime.bus.close()
    runtime.ending.set()
    raise _Stopped


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _where(error: BaseException) -> str:
    """``file:line`` of the innermost frame."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else ""
