"""``python -m services.dataplane.seeds SECRET FOLDER``: puts the seeds of a node's agents where they look for them.

``SECRET`` is a Secret as the kubelet mounts it. Each file is written beside and renamed, mode 0600: an agent that reads
it at this moment finds the old one or the new one, whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

from chassis.replaced_file import replace_file


def write(secret: Path, folder: Path) -> list[str]:
    """Names of the files that were written. Raises OSError; then the others are as they were."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    written = []
    for source in sorted(secret.glob("*.seed")):
        replace_file(folder / source.name, source.read_bytes(), 0o600)
        written.append(source.name)
    return written


def main(arguments: list[str]) -> int:
    """The exit code."""
    try:
        secret, folder = map(Path, arguments)
        written = write(secret, folder)
    except (OSError, ValueError) as error:
        print(f"dataplane.seeds: {error}: give the mounted Secret and a folder of the node", file=sys.stderr)  # noqa: T201
        return 1
    print(f"dataplane.seeds: {', '.join(written) or 'nothing'} written to {folder}")  # noqa: T201 - a command
    return 0 if written else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
