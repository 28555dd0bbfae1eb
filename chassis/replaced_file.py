"""A file replaced whole: whoever reads it at any moment, or after a power failure, finds the old one or the new one.

Used for what others read while it is written: the runtime's configuration, the CNI executable, agents' seeds.
"""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, body: bytes, mode: int) -> None:
    """Writes ``body`` beside ``path`` with this mode from the start, and renames it; the folder must be there.

    Raises OSError; then what was there is still there. What a killed run of the same pid left beside is written over.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as written:
            os.fchmod(descriptor, mode)  # whatever the umask
            written.write(body)
            written.flush()
            os.fsync(descriptor)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the name outlives a power failure, too
    finally:
        os.close(folder)
