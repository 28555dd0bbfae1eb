"""The file that remembers encryption over a reboot."""

from __future__ import annotations

from pathlib import Path

from services.dataplane.core.datapath.layout import ConfigFlag
from services.dataplane.core.tunnel.encryption import ENCRYPTION, Encryption
from services.dataplane.tunnel.encryption import NAME, remember, remembered_flags

FOUR = Encryption(frozenset((4,)), frozenset())


def test_what_was_asked_for_is_known_after_a_boot(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert remembered_flags(folder) == ConfigFlag(0)
    remember(folder, FOUR)
    assert remembered_flags(folder) == ConfigFlag.ENCRYPT4 | ConfigFlag.REFUSE_PLAIN4
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600
    remember(folder, Encryption())
    assert remembered_flags(folder) == ConfigFlag(0)


def test_nothing_is_written_where_nothing_was_ever_asked_for(tmp_path: Path) -> None:
    remember(tmp_path, Encryption())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_asks_for_all(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert remembered_flags(tmp_path) == ENCRYPTION
