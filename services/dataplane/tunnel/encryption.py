"""Encryption that was asked for, remembered over a reboot: a file of the state folder.

What is pinned is lost when a node boots, and the bus may be away then; packets between pods must not pass in the clear
meanwhile (``core.tunnel.encryption``). A file that is there and cannot be read asks for all families.
"""

from __future__ import annotations

from pathlib import Path

from chassis.replaced_file import replace_file
from services.dataplane.core.datapath.layout import ConfigFlag
from services.dataplane.core.tunnel.encryption import Encryption, read, written

NAME = "encryption"


def remembered_flags(state_dir: Path) -> ConfigFlag:
    """Flags that a starting agent sets before anything else."""
    path = state_dir / NAME
    try:
        return read(path.read_bytes()).flags
    except FileNotFoundError:
        return ConfigFlag(0)
    except OSError:
        return read(b"?").flags


def remember(state_dir: Path, encryption: Encryption) -> None:
    """Writes the file where it says something else. Raises OSError."""
    path, text = state_dir / NAME, written(encryption)
    if (path.read_bytes() if path.exists() else b"\n") != text:
        state_dir.mkdir(parents=True, exist_ok=True)
        replace_file(path, text, 0o600)
