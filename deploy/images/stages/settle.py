"""settle.py ROOT: brings a tree into the one form it is shipped in, so that two builds give the same bytes.

Python is compiled, since a root that cannot be written to would be compiled anew at each start: into files that name
no time (PEP 552). What an installer leaves behind goes. Every file has one fixed time, and belongs to root.
"""

import importlib.util
import marshal
import os
import shutil
import sys
from pathlib import Path

TIME = 1767225600
"""2026-01-01: a layer changes when what is in it changes, not with each commit."""


def main() -> None:
    root = Path(sys.argv[1])
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of constants are written in the order of their hashes
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    for source in sorted(root.rglob("*.py")):
        compile_file(source, f"/{source.relative_to(root)}")
    for name in ("RECORD", "INSTALLER", "REQUESTED"):
        for left in root.rglob(f"*.dist-info/{name}"):
            left.unlink()
    shutil.rmtree(root / "opt/airmesh/packages/bin", ignore_errors=True)
    (root / "opt/airmesh/packages/.lock").unlink(missing_ok=True)
    for path in sorted([root, *root.rglob("*")], reverse=True):
        os.utime(path, (TIME, TIME), follow_symlinks=False)


def compile_file(source: Path, name: str) -> None:
    """Beside its source, under the name that it will have. Raises SyntaxError.

    In marshal's second version: later ones write whether anything else in this process refers to an object, too.
    """
    body = source.read_bytes()
    code = compile(body, name, "exec", dont_inherit=True)
    unchecked = (0b01).to_bytes(4, "little")
    target = Path(importlib.util.cache_from_source(str(source)))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(
        importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(body) + marshal.dumps(code, 2)
    )


if __name__ == "__main__":
    main()
