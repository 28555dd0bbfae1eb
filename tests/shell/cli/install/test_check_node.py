"""`airmesh check --node` on this machine, in mount namespaces that have and have not what a node needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.privileged
ROOT = Path(__file__).parents[4]


def check(before: str, folder: Path, *wrapper: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code and findings, by what was looked at. ``before``: what a shell does first in a mount namespace."""
    folders = [f"--cni-conf={folder / 'conf'}", f"--cni-bin={folder / 'bin'}"]
    command = [*wrapper, sys.executable, "-m", "cli", "check", "--node", "--output=json", *folders]
    argv = ["unshare", "--mount", "sh", "-ec", f'{before}\nexec "$@"', "sh", *command]
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    found: dict[str, list[dict[str, str]]] = {}
    for one in json.loads(done.stdout)["findings"]:
        found.setdefault(one["what"], []).append(one)
    return done.returncode, found


def test_a_node_with_all_is_well(tmp_path: Path) -> None:
    code, found = check("mount -t bpf bpffs /sys/fs/bpf; mount -t cgroup2 cgroup2 /sys/fs/cgroup", tmp_path)
    assert code == 0, found
    assert found["bpffs"][0]["weight"] == "well"


def test_without_bpffs_it_says_so_and_how_to_get_it(tmp_path: Path) -> None:
    code, found = check("umount -l /sys/fs/bpf 2>/dev/null || true", tmp_path)
    assert code == 1
    (bpffs,) = found["bpffs"]
    assert bpffs["found"].startswith("bpffs is not mounted at /sys/fs/bpf")
    assert bpffs["remedy"].startswith("mount -t bpf bpffs /sys/fs/bpf")


def test_without_a_folder_that_can_be_written_or_a_right_each_is_named(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    read_only = f"mount --bind {tmp_path / 'conf'} {tmp_path / 'conf'}; mount -o remount,bind,ro {tmp_path / 'conf'}"
    code, found = check(read_only, tmp_path, "setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
    assert code == 1
    assert f"{tmp_path / 'conf'} cannot be written to" in found["CNI"][0]["found"]
    assert found["capabilities"][0]["found"] == "this process lacks SYS_PTRACE"
