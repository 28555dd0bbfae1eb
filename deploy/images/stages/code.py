"""code.py SERVICE SOURCE ROOT [FOLDER…]: the code that one service runs, below ROOT/opt/airmesh, and its users."""

import shutil
import sys
from pathlib import Path

LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "README.md", "pyproject.toml", "airmesh-cni.c")
USERS = "root:x:0:0:root:/:/sbin/nologin\nairmesh:x:65532:65532:airmesh:/:/sbin/nologin\n"
GROUPS = "root:x:0:\nairmesh:x:65532:\n"
MAIN = '''"""What the image starts."""
import runpy

runpy.run_module("services.{}", run_name="__main__", alter_sys=True)
'''


def main() -> None:
    service, source, root, *folders = sys.argv[1:]
    home = Path(root) / "opt" / "airmesh"
    for folder in ("proto", "kit", "chassis", *folders, f"services/{service}"):
        shutil.copytree(Path(source) / folder, home / folder, ignore=LEFT_OUT)
    shutil.copy(Path(source) / "services" / "__init__.py", home / "services" / "__init__.py")
    (home / "__main__.py").write_text(MAIN.format(service))
    etc = Path(root) / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text(USERS)
    (etc / "group").write_text(GROUPS)
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")


if __name__ == "__main__":
    main()
