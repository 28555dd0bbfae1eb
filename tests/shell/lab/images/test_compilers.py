"""How the compilers of a lab's programs are run, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import pytest

from lab.images import build


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="no C compiler on this machine")
async def test_a_build_that_is_given_up_ends_its_compilers_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a source that nobody writes."""
    monkeypatch.setattr(build, "_TICK_SECONDS", 0.02)
    os.mkfifo(tmp_path / "silent.h")
    source = f"endless-{os.getpid()}.c"
    (tmp_path / source).write_text('#include "silent.h"\n')
    target = build.Target(name="endless", folder=tmp_path, sources=(source,), go=False, estimate=1)
    said: list[str] = []
    building = asyncio.create_task(build.build_all((target,), tmp_path / "cache", said.append))
    async with asyncio.timeout(20):
        while len(said) < 2 or not _compilers(source):
            assert not building.done(), building.exception()
            await asyncio.sleep(0.01)
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building
    assert _compilers(source) == []
    assert list((tmp_path / "cache" / "built").iterdir()) == []


def _compilers(source: str) -> list[str]:
    """Processes that the compiler's driver started for a source."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().split("\0"))
    return [line[0] for line in found if line[0].endswith("cc1") and source in line]


def test_go_collects_no_garbage_and_writes_nothing_for_debuggers() -> None:
    argv, _ = build._toolchain(build.SHOP)
    assert {"-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"} < set(argv)
    environment = build._environment(argv[0])
    assert environment["GOGC"] == "off"
    assert environment["GOMEMLIMIT"].endswith("MiB")


@pytest.mark.parametrize(("gibibytes", "limit"), [(1, "512MiB"), (4, "1024MiB"), (64, "1500MiB")])
def test_compilers_leave_room_on_a_small_machine(gibibytes: int, limit: str) -> None:
    assert build.memory_limit(gibibytes << 30) == limit
