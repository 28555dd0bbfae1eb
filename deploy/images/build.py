"""Builds the images of a commit, one after the other, and says how it goes.

Owns what a commit is called in an image: its hash and its time. Two builds of one commit have one digest as long as
Debian's archive gives the same versions; the SBOM says which they were.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.images import plan
from deploy.images.base import base
from deploy.images.engine import Engine, Order

DOCKERFILE = "deploy/images/Dockerfile"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Commit:
    """What is built: the commit's hash (``-dirty`` when files differ from it) and its time (RFC 3339)."""

    revision: str
    created: str


def commit(root: Path) -> Commit:
    """The commit that is checked out; without git: unknown, and the epoch."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()

    try:
        revision, seconds = git("log", "-1", "--format=%H %ct").split()
        dirty = git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return Commit("unknown", "1970-01-01T00:00:00Z")
    created = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Commit(revision + ("-dirty" if dirty else ""), created)


@dataclass(frozen=True, slots=True)
class Built:
    """An image that was built: its name, its identity (digest of its configuration), bytes uncompressed, seconds."""

    name: str
    identity: str
    size: int
    seconds: float


def build_images(
    engine: Engine,
    images: Iterable[plan.Image],
    *,
    arch: str,
    tag: str,
    say: Say,
    fresh: bool = False,
    of: Commit | None = None,
    logs: Path = plan.ROOT / "build" / "images",
) -> list[Built]:
    """Builds images in their order, of the commit that is checked out unless ``of`` names it.

    Raises EngineError with the engine's last words at the first that fails.
    """
    of = of or commit(plan.ROOT)
    on = base(engine, say)
    done = []
    for image in images:
        began = time.monotonic()
        name = image.name(tag)
        say(f"{name} ({arch})")
        order = Order(
            root=plan.ROOT,
            dockerfile=DOCKERFILE,
            stage="image",
            name=name,
            arch=arch,
            base=on,
            arguments=plan.arguments(image, arch=arch, revision=of.revision, created=of.created),
            log=logs / f"{image.service}-{arch}.log",
            fresh=fresh,
        )
        engine.build(order, lambda line: say(f"  {line[:110]}"))
        said = engine.inspect(name)
        built = Built(name, said["Id"], said["Size"], time.monotonic() - began)
        say(f"{name}: {built.size / 1e6:.0f} MB, {built.identity[:19]}, {built.seconds:.0f} s")
        done.append(built)
    return done
