"""The steps of a build that need no engine: a tree is settled into the same bytes, an executable is put in place."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chassis.bus.nats_config import new_key
from chassis.telemetry import probe
from chassis.telemetry.health import Health
from services.dataplane.cni.install import install
from tests.house.tree import ROOT
from tests.natsd import free_port

STAGES = ROOT / "deploy" / "images" / "stages"


def tree(root: Path) -> Path:
    home = root / "opt/airmesh/packages/some-1.dist-info"
    home.mkdir(parents=True)
    for name in ("RECORD", "INSTALLER", "METADATA"):
        (home / name).write_text(str(root))
    code = root / "opt/airmesh/service.py"
    code.write_text("WORDS = frozenset({'one', 'two', 'three', 'four', 'five', 'six', 'seven'})\n")
    return root


def test_a_tree_is_settled_into_the_same_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    shown = []
    for name in ("first", "second"):
        root = tree(tmp_path / name)
        for path in root.rglob("*.dist-info/METADATA"):
            path.write_text("the same")
        subprocess.run([sys.executable, STAGES / "settle.py", root], check=True, timeout=60)
        paths = sorted(root.rglob("*"))
        assert {path.stat().st_mtime for path in paths} == {1767225600}
        shown.append([(path.relative_to(root), path.read_bytes() if path.is_file() else b"") for path in paths])
    assert shown[0] == shown[1]
    names = {path.name for path, _ in shown[0]}
    assert "METADATA" in names
    assert not {"RECORD", "INSTALLER"} & names
    assert any(name.startswith("service.") and name.endswith(".pyc") for name in names)


def test_an_executable_is_put_in_place_whole_or_not_at_all(tmp_path: Path) -> None:
    source, folder = tmp_path / "airmesh-cni", tmp_path / "bin"
    folder.mkdir()
    source.write_bytes(b"new")
    target = folder / "airmesh-cni"
    target.write_bytes(b"old")
    old = target.stat().st_ino
    with target.open("rb") as running:
        assert install(source, folder)
        assert running.read() == b"old", "who runs the old one keeps it"
    assert target.read_bytes() == b"new"
    assert target.stat().st_ino != old
    assert target.stat().st_mode & 0o777 == 0o755
    assert not install(source, folder), "again: nothing to do"
    assert os.listdir(folder) == ["airmesh-cni"]
    with pytest.raises(FileNotFoundError):
        install(tmp_path / "none", folder)
    assert target.read_bytes() == b"new"


async def test_a_probe_says_whether_the_page_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    health, port = Health(), free_port()
    condition = health.require("bus")
    condition.set(False, "no server")

    async def said(page: str, port_of: str = str(port)) -> tuple[int, str]:
        code = await asyncio.to_thread(probe.main, [page], {"AIRMESH_HEALTH_PORT": port_of})
        heard = capsys.readouterr()
        return code, heard.out + heard.err

    assert (await said("livez"))[0] == 1
    await health.serve(port)
    try:
        assert await said("livez") == (0, "ok\n")
        code, why = await said("readyz")
        assert code == 1
        assert "no server" in why
        condition.set(True)
        assert (await said("readyz"))[0] == 0
        for wrong in (("else", str(port)), ("livez", "0"), ("livez", "many")):
            code, why = await said(*wrong)
            assert code == 1
            assert why.startswith("probe: ")
    finally:
        await health.stop()


@pytest.mark.parametrize(
    ("owner", "group", "mode", "taken"),
    [
        (65532, 65532, 0o600, True),
        (0, 65532, 0o440, True),  # a Secret's file in a pod with an fsGroup
        (0, 65532, 0o460, False),
        (0, 65532, 0o444, False),
        (65532, 65532, 0o440, False),
    ],
)
@pytest.mark.privileged
def test_who_may_read_a_seed_that_a_service_takes(owner: int, group: int, mode: int, taken: bool) -> None:
    code = (
        "import os, sys, pathlib; from chassis.faults import SettingsFault\n"
        "from chassis.runtime.service import BaseSettings, read_credentials\n"
        "os.setgroups([]); os.setgid(65532); os.setuid(65532)\n"
        "try: read_credentials(BaseSettings(nats_seed_file=pathlib.Path(sys.argv[1]), nats_user='ipam'))\n"
        "except SettingsFault as fault: sys.exit(str(fault))"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # where another user may go, too
        Path(folder).chmod(0o711)
        seed = Path(folder) / "seed"
        seed.write_text(new_key()[0].reveal())
        os.chown(seed, owner, group)
        seed.chmod(mode)
        command = [sys.executable, "-c", code, str(seed)]
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (asked.returncode == 0) == taken, asked.stderr
    if not taken:
        assert "AIRMESH_NATS_SEED_FILE" in asked.stderr
