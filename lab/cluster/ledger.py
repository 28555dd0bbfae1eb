"""The ledger: which processes a lab has started, written so that it survives the one who wrote it.

Owns the file `processes.json`. A process is known by its pid *and* its start time (field 22 of /proc/<pid>/stat, in
clock ticks since boot), so a pid that the kernel has given to a stranger is never taken for ours. The parsing is
pure; the last part reads /proc and writes the file, whole or not at all (rename).
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

PROC = Path("/proc")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One process. `pid` 0: about to be started, its pid not known yet."""

    name: str
    argv: tuple[str, ...]
    pid: int = 0
    started: int = 0


def encode(entries: Iterable[Entry]) -> bytes:
    """The ledger's text, one entry a line for people."""
    return msgspec.json.format(msgspec.json.encode(list(entries)), indent=1) + b"\n"


def decode(text: bytes) -> list[Entry]:
    """Entries of a ledger. A torn or foreign file gives none: the other ways of finding processes remain."""
    try:
        return msgspec.json.decode(text, type=list[Entry])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def start_time(stat: str) -> int:
    """Start time from the text of /proc/<pid>/stat, or 0. The name in brackets may itself hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else 0


def start_time_of(pid: int, proc: Path = PROC) -> int:
    """Start time of a live process, 0 when there is none (or only a zombie)."""
    try:
        return start_time((proc / str(pid) / "stat").read_text())
    except (OSError, ValueError):
        return 0


def read(path: Path) -> list[Entry]:
    """Entries of the ledger at `path`; none when there is no file."""
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return []


def alive(entries: Iterable[Entry]) -> list[Entry]:
    """Those entries whose very process still runs."""
    return [entry for entry in entries if entry.pid and start_time_of(entry.pid) == entry.started]


def write(path: Path, body: bytes, mode: int = 0o600) -> None:
    """Replace a small file atomically."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
    draft.replace(path)
