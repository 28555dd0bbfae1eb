"""Runs a service as its process would, and tells what its memory holds: ``python -m tests.drills.probe services.dns``.

A thread answers on a unix socket (``$AIRMESH_INSTANCE`` in the folder ``$AIRMESH_PROBE``). Resident memory is read as
it is, and again after a full collection and after free pages of the C heap were given back: what is left is held.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from operator import call
from pathlib import Path
from typing import Any

from chassis.runtime.garbage import give_back_free_pages

FOLDER = "AIRMESH_PROBE"
FEWER: Mapping[str, Mapping[str, Any]] = {"chassis.telemetry.ring": {"MOST_SPANS": 8}}
"""Of every service: bounds that it fills by and by, so that it is full once the drill has warmed up."""
SHORTER: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "services.dataplane": {
        "services.dataplane.core.policy.history": {"LINGER": 0.5},
        "services.dataplane.policy.start": {"FULL_POLICY": 1.0},
    }
}
"""Constants of a service that say for how many seconds something is remembered, and are no settings."""
LINES = 25
FRAMES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one process holds; ``blocks``: of the interpreter's allocator; ``types``: live objects."""

    rss: int
    """Resident bytes as a limit counts them."""
    held: int
    """Resident bytes after what is free was given back."""
    blocks: int
    types: Mapping[str, int]


def look(folder: Path, name: str) -> Memory:
    """Asks a process that runs."""
    said = _ask(folder, name, "look")
    return Memory(**said)


def growth(folder: Path, name: str) -> list[str]:
    """Where what was allocated since the last time and is still held comes from, most first; the first call begins."""
    lines: list[str] = _ask(folder, name, "growth")
    return lines


def _ask(folder: Path, name: str, what: str) -> Any:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(60)
        link.connect(str(folder / name))
        link.sendall(what.encode() + b"\n")
        with link.makefile("rb") as said:
            return json.loads(said.read())


def _serve(listener: socket.socket) -> None:
    before: list[tracemalloc.Snapshot] = []
    while True:
        link, _ = listener.accept()
        with link, link.makefile("rb") as asked:
            said: object = _look() if asked.readline() == b"look\n" else _growth(before)
            link.sendall(json.dumps(said).encode())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _look() -> dict[str, object]:
    rss = _resident()
    gc.collect()  # as the service does: cycles that died after they were frozen are counted
    give_back_free_pages()
    held, blocks = _resident(), sys.getallocatedblocks()
    gc.unfreeze()
    types = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in _types())
    return {"rss": rss, "held": held, "blocks": blocks, "types": dict(types)}


def _types() -> list[type]:
    """Of all objects that the collector knows. In one call that no other thread interrupts: a tuple that one of them is
    filling is there too, and filling it fails while somebody else refers to it (``_PyTuple_Resize``).
    """
    return list(map(type, chain.from_iterable(map(call, (gc.get_objects,)))))


def _growth(before: list[tracemalloc.Snapshot]) -> list[str]:
    if not tracemalloc.is_tracing():
        tracemalloc.start(FRAMES)
    gc.collect()
    now = tracemalloc.take_snapshot()
    lines: list[str] = []
    if before:
        for one in now.compare_to(before.pop(), "traceback")[:LINES]:
            lines.append(f"{one.size_diff:+} B, {one.count_diff:+} objects")
            lines += [f"    {frame}" for frame in one.traceback.format()]
    before.append(now)
    return lines


def main() -> None:
    """Run the service that the first argument names."""
    path = Path(os.environ[FOLDER]) / os.environ["AIRMESH_INSTANCE"]
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threading.Thread(target=_serve, args=(listener,), name="probe", daemon=True).start()
    module = sys.argv[1]
    for name, constants in (*FEWER.items(), *SHORTER.get(module, {}).items()):
        vars(importlib.import_module(name)).update(constants)
    sys.argv = sys.argv[:1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
