"""Commands that the tour runs: kubectl, `shop` inside pods, and the observer, each as a person would run it.

Owns the processes it starts: every one has a deadline and none outlives the tour. Raises `LabError` with what a command
said. The observer speaks to the lab's bus through the loopback port; its exit code is part of what the tour shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from lab.cluster import launch, mesh, port_forward
from lab.paths import Paths
from lab.topology import Host, LabError
from linux.netns import command as namespace_command

_SECONDS = 30.0
_LINE = 1 << 20


class Hands:
    """Runs commands against one lab."""

    def __init__(self, where: Paths, columns: int, colour: bool) -> None:
        self._where = where
        self._kubectl = [launch.kubectl(), f"--kubeconfig={where.kubeconfig}"]
        looks = {"COLUMNS": str(columns), "TERM": "xterm-256color"} | ({"FORCE_COLOR": "1"} if colour else {})
        self._environment = launch.environment(
            **mesh.observer_environment(where, port_forward.read_ports(where.ports).nats),
            **looks,
        )

    async def kubectl(self, *arguments: str) -> str:
        """What kubectl printed. Raises `LabError`."""
        code, said, wrong = await self._run([*self._kubectl, *arguments])
        if code:
            raise LabError(f"kubectl {' '.join(arguments)}: {wrong.strip() or said.strip()}")
        return said

    async def objects(self, kind: str, *namespaces: str) -> list[dict[str, Any]]:
        """Objects of a kind in some namespaces."""
        output = json.loads(await self.kubectl("get", kind, "--all-namespaces", "--output=json"))
        return [item for item in output["items"] if item["metadata"]["namespace"] in namespaces]

    def inside(self, pod: str, *shop: str) -> list[str]:
        """The command that runs `shop …` inside `namespace/name`."""
        namespace, _, name = pod.partition("/")
        return [*self._kubectl, "exec", "--namespace", namespace, "--stdin", name, "--", "shop", *shop]

    async def probe(self, pod: str, urls: Iterable[str], timeout: str) -> list[dict[str, Any]]:
        """`shop probe` inside `namespace/name`: a line for each URL. Raises `LabError`."""
        code, said, wrong = await self._run(self.inside(pod, "probe", "--timeout", timeout, "-"), "\n".join(urls))
        if code:
            raise LabError(f"shop probe in {pod}: {wrong.strip()}")
        return [json.loads(line) for line in said.splitlines()]

    async def observe(self, *arguments: str, stdin: str = "") -> tuple[int, str]:
        """Exit code and output of `airmesh …`. Raises `LabError` when it complains (codes above 1)."""
        code, said, wrong = await self._run(mesh.python("cli", *arguments), stdin)
        if code > 1:
            raise LabError(f"airmesh {' '.join(arguments)}: {wrong.strip()}")
        return code, said

    async def route(self, host: Host, address: str) -> dict[str, Any]:
        """A host's route to an address, as `ip --json route get` says it; `error` alone: the kernel's refusal.

        Behind switches the table's route with all of its next hops, and not the one that a packet without ports takes.
        """
        whole = ["fibmatch"] if host.uplinks else []
        argv = namespace_command(host.netns, "ip", "--json", "route", "get", *whole, address)
        code, said, wrong = await self._run(argv)
        return {"error": wrong.strip() or said.strip()} if code else dict(json.loads(said)[0])

    async def _run(self, argv: list[str], stdin: str = "") -> tuple[int, str, str]:
        running = await asyncio.create_subprocess_exec(
            *argv,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_SECONDS):
                said, wrong = await running.communicate(stdin.encode())
        except TimeoutError as late:
            raise LabError(f"{' '.join(argv)}: no end within {_SECONDS:.0f} s") from late
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()
        return running.returncode or 0, said.decode(errors="replace"), wrong.decode(errors="replace")

    @asynccontextmanager
    async def following(self, *arguments: str) -> AsyncIterator[list[Mapping[str, Any]]]:
        """`airmesh …` that prints a JSON object a line, beside what the body does; the objects so far, in a list.

        The body begins once the observer listens (it says so on stderr). Raises `LabError` when it does not.
        """
        argv = mesh.python("cli", *arguments)
        async with self._stream(argv) as running:
            assert running.stderr is not None
            try:
                async with asyncio.timeout(_SECONDS):
                    said = (await running.stderr.readline()).decode().strip()
            except TimeoutError as late:
                raise LabError(f"airmesh {' '.join(arguments)} did not begin") from late
            if not said.startswith("listening"):
                raise LabError(f"airmesh {' '.join(arguments)}: {said}")
            heard: list[Mapping[str, Any]] = []
            ear = asyncio.create_task(_collect(running, heard))
            try:
                yield heard
            finally:
                ear.cancel()

    @asynccontextmanager
    async def beating(self, pod: str, target: str, seconds: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """`shop beat` inside a pod for at most so long; its lines are on the process's stdout."""
        beat = ("beat", "--interval", "5ms", "--report", "50ms", "--for", f"{seconds}s", target)
        async with self._stream(self.inside(pod, *beat)) as running:
            yield running

    @asynccontextmanager
    async def talking(
        self, pod: str, targets: Sequence[str], flows: int, seconds: int
    ) -> AsyncIterator[list[Mapping[str, Any]]]:
        """`shop talk` inside a pod for at most so long, beside what the body does; its lines so far, in a list."""
        talk = ("talk", "--flows", str(flows), "--for", f"{seconds}s", *targets)
        async with self._stream(self.inside(pod, *talk)) as running:
            heard: list[Mapping[str, Any]] = []
            ear = asyncio.create_task(_collect(running, heard))
            try:
                yield heard
            finally:
                ear.cancel()

    @asynccontextmanager
    async def _stream(self, argv: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
        running = await asyncio.create_subprocess_exec(
            *argv,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
        )
        try:
            yield running
        finally:
            if running.returncode is None:
                running.kill()
            await running.wait()


async def _collect(running: asyncio.subprocess.Process, heard: list[Mapping[str, Any]]) -> None:
    assert running.stdout is not None
    while line := await running.stdout.readline():
        heard.append(json.loads(line))
