"""``python -m lab.compose``: keys, images, up, status, fault, heal, down."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from deploy.images.engine import EngineError, find_engine
from deploy.images.plan import PlanError
from lab.compose.keys import make_secrets
from lab.compose.project import Project, overlays
from lab.topology import LabError

READY_SECONDS = 180.0


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


def up(project: Project) -> None:
    """Builds what is missing, starts all, waits until all are well."""
    given = os.environ.get("AIRMESH_KUBECONFIG", "")
    if not given:
        raise LabError("AIRMESH_KUBECONFIG is not set: name a kubeconfig; its server must answer in a container")
    project.images(find_engine(), say)
    project.prepare(Path(given).absolute(), say)
    project.up()
    end = time.monotonic() + READY_SECONDS
    while unwell := project.unwell():
        if time.monotonic() > end:
            raise LabError("; ".join(f"{name} is not ready: {why}" for name, why in unwell.items()))
        time.sleep(1)
    say("all are ready: Jaeger on http://127.0.0.1:16686, Prometheus on http://127.0.0.1:9090")


def drill(project: Project, *, begins: bool) -> None:
    """Faults of the project's overlays begin or end."""
    if not project.overlays:
        raise LabError(f"which fault? --overlay {', '.join(overlays())}")
    for overlay in project.overlays:
        (project.fault if begins else project.heal)(overlay)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.compose", description=__doc__)
    parser.add_argument("verb", choices=("keys", "images", "up", "status", "fault", "heal", "down"))
    parser.add_argument("--overlay", action="append", default=[], help=f"one of {', '.join(overlays())}")
    given = parser.parse_args()
    project = Project(tuple(given.overlay))
    try:
        if given.verb == "keys":
            say("made" if make_secrets(project.secrets) else f"there already: {project.secrets}")
        elif given.verb == "images":
            project.images(find_engine(), say)
        elif given.verb == "up":
            up(project)
        elif given.verb == "status":
            say("\n".join(f"{name}: {why}" for name, why in project.unwell().items()) or "all are ready")
        elif given.verb in ("fault", "heal"):
            drill(project, begins=given.verb == "fault")
        else:
            project.down()
    except (LabError, EngineError, PlanError) as error:
        print(f"compose: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
