"""An uninstall leaves nothing on a node: what it made is taken away, what is somebody else's stays."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from linux import bpf
from services.dataplane.core.endpoint.links import GROUP_DELETING, GROUP_LIVE

pytestmark = pytest.mark.privileged
ROOT = Path(__file__).parents[3]
OTHERS = ("10-other.conflist", "airmesh.md")


def run(*argv: str, given: str | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, input=given, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"am-{uuid.uuid4().hex[:8]}"
    run("ip", "netns", "add", name)
    yield name
    run("ip", "netns", "del", name)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A node's root with a bpffs of its own."""
    (tmp_path / "sys/fs/bpf").mkdir(parents=True)
    run("mount", "-t", "bpf", "bpffs", str(tmp_path / "sys/fs/bpf"))
    yield tmp_path
    run("umount", str(tmp_path / "sys/fs/bpf"))


def inside(netns: str, *argv: str, given: str | None = None) -> str:
    return run("nsenter", f"--net=/run/netns/{netns}", "--", *argv, given=given)


def module(netns: str, name: str, *arguments: str) -> str:
    at = f"PYTHONPATH={ROOT}"
    return inside(netns, "env", at, sys.executable, "-P", "-m", name, *arguments)


def furnish(netns: str, host: Path) -> None:
    """As agents leave a node, and beside it what others have there."""
    for name, group in (("am1", GROUP_LIVE), ("am2", GROUP_DELETING), ("other", 0)):
        inside(netns, "ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        inside(netns, "ip", "link", "set", name, "group", str(group), "up")
    inside(netns, "ip", "link", "set", "otherp", "up")
    inside(netns, "ip", "address", "add", "192.0.2.1/24", "dev", "other")
    inside(netns, "ip", "route", "add", "10.244.1.0/26", "via", "192.0.2.2", "proto", "186", "metric", "64")
    inside(netns, "ip", "-6", "route", "add", "unreachable", "fd00:10:244::/122", "proto", "186", "metric", "4096")
    inside(netns, "ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.2", "proto", "186", "metric", "20")
    inside(netns, "ip", "route", "add", "10.244.0.5/32", "dev", "am1", "proto", "187")
    inside(netns, "nft", "-f", "-", given="table inet airmesh {\n}\ntable inet other {\n}\n")
    pins = host / "sys/fs/bpf/airmesh/v2/maps"
    pins.mkdir(parents=True)
    made = bpf.map_create(2, 4, 4, 1)
    bpf.pin(made, pins / "am_x")
    bpf.pin(made, pins / "am_ct_peers-913984193518")  # the digest of a layout may have decimal digits alone
    bpf.pin(made, host / "sys/fs/bpf/others")
    os.close(made)
    for name in ("etc/cni/net.d", "opt/cni/bin", "var/lib/airmesh/bpf", "var/lib/airmesh-nats", "run/airmesh"):
        (host / name).mkdir(parents=True)
    for name in ("10-airmesh.conflist", ".10-airmesh.conflist.7", *OTHERS):
        (host / "etc/cni/net.d" / name).touch()
    for name in ("airmesh-cni", ".airmesh-cni.9", "bridge"):
        (host / "opt/cni/bin" / name).touch()
    for name in ("addresses.journal", "encryption"):
        (host / "var/lib/airmesh" / name).touch()


def test_nothing_of_ours_is_left_and_all_of_others_is(
    netns: str, host: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    furnish(netns, host)
    seeds = tmp_path_factory.mktemp("secret")
    (seeds / "routing.seed").write_text("SUX\n")
    said = module(netns, "services.dataplane.seeds", str(seeds), str(host / "etc/airmesh/seeds"))
    assert "routing.seed written" in said
    assert (host / "etc/airmesh/seeds/routing.seed").stat().st_mode & 0o777 == 0o600
    for _again in range(2):
        assert "nothing of airmesh is left" in module(netns, "services.dataplane.remove", str(host))
        module(netns, "services.routing.remove", str(host))
    links = inside(netns, "ip", "-o", "link")
    assert "other" in links
    assert "am1" not in links
    assert "am2" not in links
    routes = inside(netns, "ip", "route") + inside(netns, "ip", "-6", "route")
    assert "10.9.0.0/24" in routes
    assert "10.244" not in routes
    assert inside(netns, "nft", "list", "tables").split() == ["table", "inet", "other"]
    assert {path.name for path in (host / "sys/fs/bpf").iterdir() if path.suffix != ".debug"} == {"others"}
    assert sorted(path.name for path in (host / "etc/cni/net.d").iterdir()) == sorted(OTHERS)
    assert [path.name for path in (host / "opt/cni/bin").iterdir()] == ["bridge"]
    assert not any(
        (host / name).exists() for name in ("var/lib/airmesh", "var/lib/airmesh-nats", "run/airmesh", "etc/airmesh")
    )


def test_a_folder_that_is_a_disk_of_its_own_is_emptied_and_stays(netns: str, host: Path) -> None:
    furnish(netns, host)
    disk = host / "var/lib/airmesh-nats"
    run("mount", "-t", "tmpfs", "tmpfs", str(disk))
    try:
        (disk / "jetstream").mkdir()
        (disk / "jetstream/meta").touch()
        for _again in range(2):
            assert "nothing of airmesh is left" in module(netns, "services.dataplane.remove", str(host))
        assert list(disk.iterdir()) == []
    finally:
        run("umount", str(disk))
