"""The images of this very tree: those of `make images` where they are of this source, else built now.

Built now are a few, so that `make test` tries them: which, says `SHORT`. They are known by their identity and have no
name afterwards, so two trees that are tested at once do not meet; layers stay in the engine, so the next time takes
seconds. What the machine lacks is said by :class:`Lacking`: an engine that works, or an answer of the archives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deploy.images import plan
from deploy.images.build import Commit, build_images
from deploy.images.engine import Engine, EngineError, find_engine, machine

IMAGES = {image.service: image for image in plan.images()}
SHORT = ("ipam", "policy", plan.BUS)
"""What is built when it is not there: two services share all but their own layer, and the bus is one program."""
DEBIAN = "http://deb.debian.org/debian/dists/bookworm/InRelease"
_COMMIT = Commit("tested", "2026-01-01T00:00:00Z")
_LOGS = plan.ROOT / "build" / "images"


class Lacking(Exception):
    """The machine lacks something; the sentence says what, and the remedy."""


@dataclass(frozen=True, slots=True)
class Built:
    """An image that is here: `said` is what the engine says of it."""

    image: plan.Image
    said: dict[str, Any]

    @property
    def identity(self) -> str:
        """What it is run by."""
        return str(self.said["Id"])


def engine_of_tests() -> Engine:
    """Podman: the tests give it flags of its own. Raises Lacking."""
    if shutil.which("podman") is None:
        raise Lacking("podman is not here (apt-get install podman): no image is tried")
    try:
        engine = find_engine()
        engine.run("info")
    except EngineError as error:
        raise Lacking(f"podman does not work here, so no image is tried: {error}") from error
    return engine


def find_or_build(engine: Engine, service: str) -> Built:
    """Raises Lacking when it is not here and cannot be built, EngineError when what can be built is not."""
    image = IMAGES[service]
    name = image.name(plan.tag())
    if engine.has(name):
        said = engine.inspect(name)
        if said["Labels"]["io.airmesh.source"] == plan.source_key(image):
            return Built(image, said)
    if service not in SHORT:
        raise Lacking("not every image of this tree is built here: `make images` builds them")
    tag = f"tested-{os.getpid()}"
    try:
        with _one_builder():
            build_images(engine, [image], arch=machine(), tag=tag, say=print, of=_COMMIT, logs=_LOGS)
        return Built(image, engine.inspect(image.name(tag)))
    except EngineError as error:
        if silent := _silent():
            raise Lacking(f"{' and '.join(silent)} cannot be reached from here: no image is built") from error
        raise
    finally:
        if engine.has(image.name(tag)):
            engine.run("untag", image.name(tag))


@contextmanager
def _one_builder() -> Iterator[None]:
    """Workers of this tree build one after the other, so that the second finds the first one's layers."""
    _LOGS.mkdir(parents=True, exist_ok=True)
    with (_LOGS / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _silent() -> list[str]:
    """What a build asks and that does not answer from here."""
    silent = []
    try:
        with urllib.request.urlopen(DEBIAN, timeout=20):
            pass
    except (OSError, ValueError):
        silent.append("Debian's archive")
    asked = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "pip"], capture_output=True, check=False)
    if asked.returncode:
        silent.append("Python's package index")
    return silent
