"""What a lab builds: kept under a key of all that decides it, whole or absent; a failure says the compiler's words."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lab.images import build
from lab.images.build import TARGETS, Target, build_all, machine_lock, product
from lab.topology import LabError

GOOD = "int main(void) { return 7; }\n"


def target(folder: Path, text: str = GOOD, name: str = "seven") -> Target:
    (folder / f"{name}.c").write_text(text)
    return Target(name=name, folder=folder, sources=(f"{name}.c",), go=False, estimate=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def made(wanted: Target, cache: Path) -> tuple[Path, list[str]]:
    """The product, and what was said meanwhile."""
    said: list[str] = []
    return asyncio.run(build_all((wanted,), cache, said.append))[wanted.name], said


def test_a_product_is_built_once_and_runs(source: Path, tmp_path: Path) -> None:
    wanted = target(source)
    path, said = made(wanted, tmp_path / "cache")
    assert subprocess.run([path], timeout=5, check=False).returncode == 7
    assert said[0] == "building seven (about 1 s from nothing)"
    assert said[1].startswith("built seven in ")
    before = path.stat().st_mtime_ns
    assert made(wanted, tmp_path / "cache") == (path, []), "found, so nothing is said"
    assert path.stat().st_mtime_ns == before


def test_a_clone_elsewhere_finds_the_same_product(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "clone"
    other.mkdir()
    assert product(target(source), tmp_path) == product(target(other), tmp_path)


def test_whatever_decides_the_result_decides_the_key(source: Path, tmp_path: Path) -> None:
    first = target(source)
    before = product(first, tmp_path)
    assert product(replace(first, package="./other"), tmp_path) != before
    (source / "more.h").write_text("int more;")
    assert product(replace(first, sources=("seven.c", "more.h")), tmp_path) != before
    assert product(target(source, GOOD + "\n"), tmp_path) != before
    assert product(target(source), tmp_path) == before


def test_a_new_compiler_is_a_new_product(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = product(target(source), tmp_path)
    newer = tmp_path / "musl-gcc"
    newer.write_text("#!/bin/sh\necho musl-gcc 99\n")
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert product(target(source), tmp_path) != before


def test_a_source_that_is_missing_is_named(source: Path, tmp_path: Path) -> None:
    gone = Target(name="seven", folder=source, sources=("seven.c",), go=False, estimate=1)
    with pytest.raises(LabError, match=f"^seven: source {source}/seven.c is missing$"):
        product(gone, tmp_path)


def test_without_a_compiler_the_package_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="apt-get install musl-tools"):
        product(target(source), tmp_path)


def test_a_failure_says_the_compilers_words_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    broken = target(source, "int main(void) { return seven; }\n")
    with pytest.raises(LabError, match=r"seven was not built \(exit 1\):\n(.|\n)*seven.*undeclared"):
        made(broken, tmp_path / "cache")
    assert list((tmp_path / "cache" / "built").iterdir()) == []


def test_of_many_words_the_last_are_reported(source: Path, tmp_path: Path) -> None:
    broken = target(source, "".join(f"#warning number {number}\n" for number in range(200)) + "#error the end\n")
    with pytest.raises(LabError) as failure:
        made(broken, tmp_path / "cache")
    assert len(str(failure.value).splitlines()) == 21
    assert "the end" in str(failure.value)


def test_a_draft_of_a_builder_that_was_killed_is_swept_away(source: Path, tmp_path: Path) -> None:
    cache, wanted = tmp_path / "cache", target(source)
    draft = cache / "built" / ".seven-0123.99"
    draft.mkdir(parents=True)
    (draft / "seven").write_text("half")
    made(wanted, cache)
    assert not draft.exists()


def test_a_torn_product_of_before_is_replaced(source: Path, tmp_path: Path) -> None:
    cache, wanted = tmp_path / "cache", target(source)
    folder = product(wanted, cache).parent
    folder.mkdir(parents=True)
    (folder / "other").write_text("left")
    path, _ = made(wanted, cache)
    assert [one.name for one in path.parent.iterdir()] == ["seven"]


def test_one_builds_at_a_time_and_who_waits_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with machine_lock(tmp_path, said.append):
            entered.set()

    with (tmp_path / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = threading.Thread(target=second)
        waits.start()
        deadline = time.monotonic() + 5
        while not said and time.monotonic() < deadline:
            time.sleep(0.005)
        assert said == ["another build is running, waiting for it"]
        assert not entered.is_set()
    waits.join(5)
    assert entered.is_set()


def test_who_finds_everything_built_waits_for_nobody(source: Path, tmp_path: Path) -> None:
    cache, wanted = tmp_path / "cache", target(source)
    path, _ = made(wanted, cache)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert made(wanted, cache) == (path, [])


def test_a_build_that_takes_too_long_is_ended(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TICK_SECONDS", 0.05)
    monkeypatch.setattr(build, "_DEADLINE_SECONDS", 0.1)
    said: list[str] = []
    with pytest.raises(LabError, match="seven: not built within 0 s"):
        asyncio.run(build._compile(["/bin/sleep", "30"], target(source), said.append))
    assert "building seven: 0 s of about 1 s" in said


@pytest.mark.parametrize("one", TARGETS, ids=lambda one: one.name)
def test_every_target_has_its_sources(one: Target) -> None:
    assert [source for source in one.sources if not (one.folder / source).is_file()] == []
    assert one.estimate > 0


def test_an_old_go_is_passed_over_and_no_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    try:
        assert build.go_command() != str(old)
    except LabError as lack:
        assert "make setup" in str(lack)
