"""settle.py ROOT: brings a tree into the one form it is shipped in, so that two builds give the same bytes.

Python is compiled, since a root that cannot be written to would be compiled anew at each start: into files that name
no time (PEP 552). What an installer leaves behind goes. Every file has one fixed time, and belongs to root.
"""

import compileall
import os
import py_compile
import shutil
import sys
from pathlib import Path

TIME = 1767225600
"""2026-01-01: a layer changes when what is in it changes, not with each commit."""


def main() -> None:
    root = Path(sys.argv[1])
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of constants are written in the order of their hashes
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    for folder in ("usr/lib/python3.11", "usr/lib/python3", "opt/airmesh"):
        if (root / folder).is_dir() and not compileall.compile_dir(
            root / folder,
            quiet=1,
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        ):
            sys.exit(f"{root / folder}: not all of it compiles")
    for name in ("RECORD", "INSTALLER", "REQUESTED"):
        for left in root.rglob(f"*.dist-info/{name}"):
            left.unlink()
    shutil.rmtree(root / "opt/airmesh/packages/bin", ignore_errors=True)
    (root / "opt/airmesh/packages/.lock").unlink(missing_ok=True)
    for path in sorted([root, *root.rglob("*")], reverse=True):
        os.utime(path, (TIME, TIME), follow_symlinks=False)


if __name__ == "__main__":
    main()
