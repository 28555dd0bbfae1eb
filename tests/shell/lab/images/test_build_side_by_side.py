"""What is missing is built side by side, whole or not at all, and the first error is the one that is raised."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.images import build
from lab.topology import LabError

pytestmark = pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="no C compiler on this machine")


def _target(folder: Path, name: str, text: str) -> build.Target:
    (folder / f"{name}.c").write_text(text)
    return build.Target(name=name, folder=folder, sources=(f"{name}.c",), go=False, estimate=1)


def _returning(folder: Path, name: str, code: int) -> build.Target:
    return _target(folder, name, f"int main(void) {{ return {code}; }}\n")


async def test_two_are_built_at_once_and_each_is_its_own(tmp_path: Path) -> None:
    said: list[str] = []
    targets = tuple(_returning(tmp_path, f"p{number}", number) for number in range(4))
    made = await build.build_all(targets, tmp_path / "cache", said.append)
    words = [" ".join(line.split()[:2]) for line in said]
    assert words[:2] == ["building p0", "building p1"]
    assert words.index("building p2") > min(words.index("built p0"), words.index("built p1"))
    codes = [subprocess.run([made[f"p{number}"]], check=False).returncode for number in range(4)]
    assert codes == [0, 1, 2, 3]


async def test_one_that_fails_ends_the_others_and_leaves_no_drafts(tmp_path: Path) -> None:
    """The other one waits for a source that nobody writes."""
    os.mkfifo(tmp_path / "silent")
    targets = (
        _target(tmp_path, "endless", '#include "silent"\n'),
        _target(tmp_path, "broken", "int main(void) { return oops; }\n"),
        _returning(tmp_path, "waiting", 0),
    )
    with pytest.raises(LabError, match=r"broken was not built(.*\n)*.*oops"):
        await build.build_all(targets, tmp_path / "cache", lambda _: None)
    built = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache" / "built").iterdir())
    assert set(built) <= {"waiting"}


def test_go_collects_no_garbage_and_writes_nothing_for_debuggers() -> None:
    argv, _ = build._toolchain(build.SHOP)
    assert {"-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"} < set(argv)
    environment = build._environment(argv[0])
    assert environment["GOGC"] == "off"
    assert environment["GOMEMLIMIT"].endswith("MiB")


@pytest.mark.parametrize(("gibibytes", "limit"), [(1, "512MiB"), (4, "682MiB"), (8, "1365MiB"), (64, "1500MiB")])
def test_four_compilers_leave_room_on_a_small_machine(gibibytes: int, limit: str) -> None:
    assert build.memory_limit(gibibytes << 30) == limit
