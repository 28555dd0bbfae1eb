"""A container engine by its command line: podman, or docker where that alone is there.

Owns how the two differ. Whatever an engine refuses is an EngineError with its last words.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIME = 1767225600
"""Time of all files of an image (2026-01-01), as in stages/settle.py: a layer changes only with what is in it."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_QUERY_SECONDS = 60.0
_BUILD_SECONDS = 1800.0


class EngineError(RuntimeError):
    """The engine is not there or refused; the sentence says what, and the remedy where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One image to build. ``fresh``: no layer of an earlier build is taken. ``log`` gets every word of the engine."""

    root: Path
    dockerfile: str
    stage: str
    name: str
    arch: str
    base: str
    arguments: Mapping[str, str]
    log: Path
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine: its command, and flags that go before every verb."""

    command: tuple[str, ...]

    @property
    def is_podman(self) -> bool:
        """Docker otherwise."""
        return Path(self.command[0]).name == "podman"

    def run(self, *arguments: str, seconds: float = _QUERY_SECONDS) -> str:
        """What a verb prints. Raises EngineError."""
        done = self._run(arguments, seconds)
        if done.returncode:
            raise EngineError(f"{self.command[0]} {' '.join(arguments[:2])}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def _run(self, arguments: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, timeout=seconds, check=False
            )
        except FileNotFoundError as error:
            raise EngineError(f"{self.command[0]} is not here: make images-setup") from error
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{self.command[0]} {arguments[0]}: no answer within {seconds:.0f} s") from error

    def has(self, name: str) -> bool:
        """Whether an image of that name is here."""
        return self._run(("image", "inspect", name), _QUERY_SECONDS).returncode == 0

    def pull(self, name: str, seconds: float) -> bool:
        """Whether it could be pulled within so many seconds."""
        try:
            return self._run(("pull", "--quiet", name), seconds).returncode == 0
        except EngineError:
            return False

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine says of an image. Raises EngineError."""
        said: list[dict[str, Any]] = json.loads(self.run("image", "inspect", name))
        return said[0]

    def import_tree(self, root: Path, name: str) -> None:
        """Makes an image of one layer of a folder. Raises EngineError."""
        tar = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        try:
            done = subprocess.run(
                [*self.command, "import", "-", name], stdin=tar.stdout, capture_output=True, text=True, check=False
            )
        finally:
            tar.kill()
            tar.wait()
        if done.returncode:
            raise EngineError(f"{self.command[0]} import: {done.stderr.strip()[-2000:]}")

    def build(self, order: Order, step: Callable[[str], None]) -> None:
        """Builds one image; ``step`` hears of each instruction. Raises EngineError."""
        self._follow(self._build_command(order), order, step)
        if self.is_podman:
            self._settle(order.name)

    def _settle(self, name: str) -> None:
        """Leaves out of an image's configuration what is another at each build: podman writes a random container and
        host name into it, and into its history the identities of the steps' images, which have these too.
        """
        with tempfile.TemporaryDirectory(prefix="airmesh-image-") as folder:
            saved = Path(folder) / "image"
            said = ("save", "--quiet", "--format", "docker-dir", "--output", str(saved), name)
            self.run(*said, seconds=_BUILD_SECONDS)
            manifest = json.loads((saved / "manifest.json").read_text())
            old = saved / manifest["config"]["digest"].removeprefix("sha256:")
            body = settled(old.read_bytes())
            old.unlink()
            new = hashlib.sha256(body).hexdigest()
            (saved / new).write_bytes(body)
            manifest["config"] |= {"digest": f"sha256:{new}", "size": len(body)}
            (saved / "manifest.json").write_text(json.dumps(manifest))
            self.run("pull", "--quiet", f"dir:{saved}", seconds=_BUILD_SECONDS)
            self.run("tag", new, name)

    def _build_command(self, order: Order) -> list[str]:
        command = [*self.command, "build", "--file", order.dockerfile, "--target", order.stage, "--tag", order.name]
        command += ["--platform", f"linux/{order.arch}", "--network", "host"]
        given = {"BASE": order.base, **order.arguments}
        if self.is_podman:
            # chroot: a build needs no runtime, nor any right that the engine itself lacks.
            command += ["--format", "docker", "--isolation", "chroot", "--timestamp", str(TIME)]
            given["BUILDPLATFORM"] = f"linux/{machine()}"
        else:
            given["SOURCE_DATE_EPOCH"] = str(TIME)
        if order.fresh:
            command.append("--no-cache")
        if AUTHORITIES.is_file():
            command += ["--secret", f"id=ca,src={AUTHORITIES}"]
        for key, value in given.items():
            command += ["--build-arg", f"{key}={value}"]
        return [*command, str(order.root)]

    def _follow(self, command: Sequence[str], order: Order, step: Callable[[str], None]) -> None:
        order.log.parent.mkdir(parents=True, exist_ok=True)
        with order.log.open("w") as written:
            running = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "BUILDAH_LAYERS": "true", "DOCKER_BUILDKIT": "1"},
            )
            assert running.stdout is not None
            last: list[str] = []
            for line in running.stdout:
                written.write(line)
                last = [*last[-30:], line]
                if line.startswith(("STEP", "[", "#")):
                    step(line.strip())
            code = running.wait(_BUILD_SECONDS)
        if code:
            raise EngineError(f"{order.name} was not built (exit {code}):\n{''.join(last)}")


def settled(config: bytes) -> bytes:
    """A Docker image's configuration without what is another at each build."""
    said = json.loads(config)
    for field in ("container", "container_config", "parent"):
        said.pop(field, None)
    said["config"].pop("Hostname", None)
    for step in said["history"]:
        step.pop("comment", None)
    return json.dumps(said, sort_keys=True).encode()


def machine() -> str:
    """The machine's processor, as engines spell it. Raises EngineError for one that no image is made for."""
    spelled = {"x86_64": "amd64", "aarch64": "arm64"}
    found = os.uname().machine
    if found not in spelled:
        raise EngineError(f"images are built on {' or '.join(spelled)}, not on {found}")
    return spelled[found]


def _engines() -> Iterator[str]:
    wanted = os.environ.get("AIRMESH_ENGINE", "")
    yield from (wanted,) if wanted else ("podman", "docker")


def find_engine() -> Engine:
    """The engine of this machine, or that of AIRMESH_ENGINE. Raises EngineError."""
    for name in _engines():
        if (found := shutil.which(name)) is not None:
            return Engine((found,))
    raise EngineError("neither podman nor docker is here: make images-setup")
