"""The base that images are built on: pulled where a registry answers, else made of the same Debian packages.

Nothing of it is in an image; it only has to be a Debian 12 with apt.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploy.images.engine import Engine, EngineError

PULLED = "docker.io/library/debian:bookworm-slim"
MADE = "localhost/airmesh/base:bookworm"
PULL_SECONDS = 60.0
_MAKE_SECONDS = 600.0
_SOURCES = """\
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
"""


def base(engine: Engine, say: Callable[[str], None]) -> str:
    """Name of an image to build on. Raises EngineError when there is none and none can be made."""
    for name in (PULLED, MADE):
        if engine.has(name):
            return name
    say(f"pulling {PULLED}")
    if engine.pull(PULLED, PULL_SECONDS):
        return PULLED
    if shutil.which("debootstrap") is None:
        raise EngineError(f"{PULLED} cannot be pulled, nor made here: apt-get install debootstrap")
    say("no registry answers: making the base with debootstrap (about a minute)")
    with tempfile.TemporaryDirectory(prefix="airmesh-base-") as folder:
        root = Path(folder) / "root"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", str(root), "http://deb.debian.org/debian"],
            capture_output=True,
            text=True,
            timeout=_MAKE_SECONDS,
            check=False,
        )
        if made.returncode:
            raise EngineError(f"debootstrap ended with {made.returncode}: {made.stdout[-2000:]}{made.stderr[-500:]}")
        (root / "etc/apt/sources.list").write_text(_SOURCES)
        # A stage that fails is made anew: what it installs need not be on the disk before it goes on.
        (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        engine.import_tree(root, MADE)
    return MADE
