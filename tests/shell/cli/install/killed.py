"""`airmesh` that is killed (SIGKILL) once it has made so many changes to the API server, each of which it writes down.

`python -m tests.shell.cli.install.killed WHEN FILE ARGUMENT…`: ``WHEN`` is a number of changes, 0 for never, or a part
of the path of the change that is the last one; ``FILE`` gets a line for each change.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from cli.app import run
from cli.install.kubernetes import Kubernetes


def main(when: str, file: Path) -> int:
    call, count = Kubernetes.call, 0

    def counted(self: Kubernetes, method: str, path: str, *more: Any) -> Any:
        nonlocal count
        answer = call(self, method, path, *more)
        if method != "GET" and "accessreviews" not in path and "dryRun" not in path:
            count += 1
            with file.open("a") as lines:
                lines.write(f"{method} {path.partition('?')[0]}\n")
            if when == str(count) or (not when.isdecimal() and when in path):
                os.kill(os.getpid(), signal.SIGKILL)
        return answer

    Kubernetes.call = counted  # type: ignore[method-assign, assignment]
    return run()


if __name__ == "__main__":
    _, at, to, *rest = sys.argv
    sys.argv = ["airmesh", *rest]
    raise SystemExit(main(at, Path(to)))
