"""packages.py ARCH ROOT [--without OTHER] --lock LOCK MANIFEST…: what manifests need, as wheels, below ROOT.

The versions and hashes are the lock's, and only what these manifests lead to is taken of it. nkeys alone has no wheel
and is built (pure Python, by the setuptools of images.lock); of anything else another processor's wheel is as good as
this one's. What OTHER has already is left out.
"""

import argparse
import subprocess
from pathlib import Path

PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
PACKAGES = Path("opt/airmesh/packages")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arch", choices=PLATFORMS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--without", type=Path)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("manifests", nargs="+")
    given = parser.parse_args()
    target = given.root / PACKAGES
    target.mkdir(parents=True, exist_ok=True)
    command = ["/tools/bin/uv", "pip", "install", "--quiet", "--no-cache", "--no-config", "--link-mode", "copy"]
    command += ["--python", "/tools/bin/python", "--python-version", "3.11", "--target", str(target)]
    command += ["--python-platform", PLATFORMS[given.arch], "--no-build-isolation"]
    command += ["--only-binary", ":all:", "--no-binary", "nkeys", "--constraints", str(given.lock)]
    for manifest in given.manifests:
        command += ["--requirements", manifest]
    subprocess.run(command, check=True)
    if given.without is not None:
        leave_out(target, given.without / PACKAGES)


def leave_out(target: Path, other: Path) -> None:
    """Take away whatever `other` has, and folders that are empty then."""
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif (other / path.relative_to(target)).exists():
            path.unlink()


if __name__ == "__main__":
    main()
