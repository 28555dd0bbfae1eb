"""From C to bytecode: compiled once by a short-lived child, kept in a cache, never compiled twice.

Owns the cache file: programs as eBPF instructions, the places where they name a map, and what each compiled map looked
like. bcc (and with it LLVM: 130 MB and, on a fatal error, the end of the process) lives in the child alone
(``services.dataplane.datapath.compile``); the agent reads the cache and loads it with bpf(2).

The cache's name holds a hash of the sources, the flags and bcc's version; a file is written beside and renamed, so a
reader sees a whole one or none. A machine without bcc uses a file that was made elsewhere for the same sources.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.dataplane.datapath.header import HEADER, SOURCES, render_header

MAIN = SOURCES / "airmesh.c"
CFLAGS = ("-w", "-O2")
COMPILE_SECONDS = 120
_INCLUDE = re.compile(r'^#include "([a-z_]+\.[hc])"$')


class CompileError(RuntimeError):
    """The child could not make bytecode; the message holds what the compiler said."""


class Relocation(msgspec.Struct, frozen=True):
    """A 64-bit load at ``offset`` (bytes) whose immediate is to be the descriptor of map ``table``."""

    offset: int
    table: str


class Program(msgspec.Struct, frozen=True):
    """One program's instructions (8 bytes each) with zeros where map descriptors go."""

    code: bytes
    relocations: tuple[Relocation, ...]


class CompiledMap(msgspec.Struct, frozen=True):
    """A map as the compiler saw it: compared with ``core.datapath.maps`` before anything is loaded."""

    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int


class Bytecode(msgspec.Struct, frozen=True):
    """A cache file."""

    maps: dict[str, CompiledMap]
    programs: dict[str, Program]


@dataclass(frozen=True, slots=True)
class Cache:
    """Where bytecode is kept, one file for each version of the sources and of bcc."""

    folder: Path

    def load(self) -> Bytecode:
        """The bytecode of the present sources, compiled now if it must be (a second or two, off the event loop).

        Raises CompileError when it cannot be made, or when ``generated.h`` is stale.
        """
        source = amalgamate(MAIN)
        version = bcc_version()
        path = self.folder / f"airmesh-{_source_hash(source)}-{version or 'none'}.msgpack"
        if not path.exists() and version is None:
            path = next(iter(sorted(self.folder.glob(f"airmesh-{_source_hash(source)}-*.msgpack"))), path)
        if path.exists():
            try:
                return msgspec.msgpack.decode(path.read_bytes(), type=Bytecode)
            except (msgspec.DecodeError, UnicodeDecodeError):
                path.unlink(missing_ok=True)
        if version is None:
            raise CompileError("no bytecode in the cache and no bcc to make it: install python3-bpfcc")
        if HEADER.read_text() != render_header():
            raise CompileError("generated.h is stale: run python -m services.dataplane.datapath.header")
        return self._compile(source, path)

    def _compile(self, source: str, path: Path) -> Bytecode:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "services.dataplane.datapath.compile", str(path)]
        root = SOURCES.parent.parent.parent
        try:
            done = subprocess.run(
                command, input=source, capture_output=True, text=True, timeout=COMPILE_SECONDS, cwd=root, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CompileError(f"the compiler took more than {COMPILE_SECONDS} s") from error
        if done.returncode != 0 or not path.exists():
            raise CompileError(f"the compiler ended with {done.returncode}: {done.stderr[-4000:]}")
        return msgspec.msgpack.decode(path.read_bytes(), type=Bytecode)


def amalgamate(main: Path) -> str:
    """One text of ``main`` and all that it includes by quotes, each once: bcc rewrites the main file only.

    ``#line`` keeps the compiler's messages pointing at the real files, after an include too.
    """
    seen: set[Path] = set()

    def expand(path: Path) -> Iterator[str]:
        seen.add(path)
        yield f'#line 1 "{path.name}"'
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if (include := _INCLUDE.match(line)) is None:
                yield line
            elif (other := path.parent / include.group(1)) in seen:
                yield ""
            else:
                yield from expand(other)
                yield f'#line {number + 1} "{path.name}"'

    return "\n".join(expand(main)) + "\n"


def bcc_version() -> str | None:
    """The version of the bcc package, read without importing it; None where there is none."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return None
    match = re.search(r"__version__ = '([^']+)'", (Path(spec.origin).parent / "version.py").read_text())
    return match.group(1) if match else None


def _source_hash(source: str) -> str:
    return hashlib.sha256("\0".join((source, *CFLAGS)).encode()).hexdigest()[:16]


if __name__ == "__main__":  # python -m services.dataplane.datapath.bytecode FOLDER: into the cache that an image brings
    Cache(Path(sys.argv[1])).load()
