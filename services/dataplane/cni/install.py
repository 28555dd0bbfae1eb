"""``python -m services.dataplane.cni.install /opt/cni/bin``: puts the CNI executable where the container runtime looks.

A step of its own before the agent starts (an init container), since it alone needs that folder. The file is written
beside and renamed: the runtime, which may be calling the old one at this moment, finds one or the other, whole.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from chassis.replaced_file import replace_file

EXECUTABLE = Path("/opt/airmesh/bin/airmesh-cni")
"""Where the image has it."""


def install(source: Path, folder: Path) -> bool:
    """Puts ``source`` into ``folder`` under its own name, mode 0755; False when that very file is there already.

    Raises OSError; then what was there is still there.
    """
    body, target = source.read_bytes(), folder / source.name
    if target.is_file() and target.read_bytes() == body and os.access(target, os.X_OK):
        return False
    replace_file(target, body, 0o755)
    return True


def main(arguments: list[str]) -> int:
    """The exit code."""
    if len(arguments) != 1:
        print(f"cni.install: {arguments}: name the runtime's folder of executables", file=sys.stderr)  # noqa: T201
        return 1
    try:
        changed = install(EXECUTABLE, Path(arguments[0]))
    except OSError as error:
        print(f"cni.install: {error.filename}: {error.strerror}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    print(f"cni.install: {arguments[0]}/{EXECUTABLE.name}: {'installed' if changed else 'there already'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
