"""A file that is replaced whole: its mode, and what a run that was killed in the middle left beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chassis.replaced_file import replace_file


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_it_has_its_mode_whatever_was_there(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    replace_file(path, b"new", mode)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)
    assert list(tmp_path.iterdir()) == [path]


def test_the_draft_of_a_run_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    """In a container the next run has the same pid."""
    path = tmp_path / "file"
    (tmp_path / f".file.{os.getpid()}").write_text("half of i")
    replace_file(path, b"whole", 0o600)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.mkdir()
    with pytest.raises(OSError, match="file"):
        replace_file(folder, b"new", 0o600)
    assert list(tmp_path.iterdir()) == [folder]
