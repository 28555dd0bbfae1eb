"""airmesh in a lab as its users have it: images in each node's runtime, and `airmesh install` against the API server.

Owns what the lab says to `airmesh install` (what a person with such machines would), and how the lab's own observer
gets its key. All else is the installation's: its bus runs on the nodes, its agents are pods. Units: seconds.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from deploy.images import plan
from deploy.images.engine import Engine, EngineError, find_engine
from lab.cluster import control, ledger, mesh
from lab.cluster.launch import command, environment, kubectl
from lab.paths import MARKER, SOURCE, Paths
from lab.topology import LabError, Topology

POOLS = ("10.244.0.0/16", "fd00:10:244::/56")
"""As the pools of `manifests/`."""
Say = Callable[[str], None]
_SAVE_SECONDS = 300.0
_WORKLOAD_SECONDS = 240.0
_KUBECTL_SECONDS = 30.0
_NAMESPACE = "airmesh-system"


def image_names(tag: str) -> list[str]:
    """Images that the manifests ask for, under a tag (empty: theirs)."""
    said = yaml.safe_load((SOURCE / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    return [f"{one['newName']}:{tag or plan.tag()}" for one in said["images"]]


def find_images(tag: str) -> tuple[Engine, list[str]]:
    """The engine and the names of the images, which are there. Raises `LabError` naming those that are not."""
    try:
        engine = find_engine()
        missing = [name for name in image_names(tag) if not engine.has(name)]
    except EngineError as error:
        raise LabError(str(error)) from error
    if missing:
        raise LabError(f"not built: {', '.join(missing)}: make images")
    return engine, image_names(tag)


def save(where: Paths, tag: str) -> Path:
    """All images in one archive in the lab's folder: what they share is in it once. Raises `LabError`."""
    engine, names = find_images(tag)
    archive = where.state / f"images-{tag or plan.tag()}.tar"
    archive.unlink(missing_ok=True)
    kind = ("--format", "docker-archive", "--multi-image-archive") if engine.is_podman else ()
    try:
        engine.run("save", *kind, "--output", str(archive), *names, seconds=_SAVE_SECONDS)
    except EngineError as error:
        raise LabError(str(error)) from error
    return archive


def install_arguments(topology: Topology, cgroup: str, tag: str) -> list[str]:
    """What a person says to `airmesh install` on such machines: no kube-proxy leads to the API server, and cgroup2 is
    mounted beside version 1.
    """
    said = ["install", "--uplinks", ",".join(topology.control.fabric_links), "--timeout", f"{_WORKLOAD_SECONDS:.0f}"]
    said += [part for pool in POOLS for part in ("--pool", pool)]
    said += ["--api-server", f"{topology.control.fabric4}:{control.API_PORT}"]
    said += ["--set", f"AIRMESH_CGROUP={cgroup}", "--set", f"AIRMESH_EXTERNAL_IPS={mesh.EXTERNAL_IPS}"]
    return [*said, "--tag", tag] if tag else said


@asynccontextmanager
async def _running(where: Paths, argv: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await asyncio.create_subprocess_exec(
        *argv,
        env=environment(**{MARKER: where.lab}, COLUMNS="160"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def airmesh(where: Paths, arguments: list[str], say: Say) -> int:
    """Run `airmesh …` on the lab's API server, each of its lines said; the exit code."""
    argv = mesh.python("cli", *arguments, "--kubeconfig", str(where.kubeconfig))
    async with _running(where, argv) as running:
        assert running.stdout is not None
        async for line in running.stdout:
            say("  " + line.decode(errors="replace").rstrip())
        return await running.wait()


async def install(where: Paths, topology: Topology, tag: str, say: Say) -> None:
    """`airmesh install`, then the observer's key. Raises `LabError`."""
    cgroup = mesh.unified_cgroup(await asyncio.to_thread(Path("/proc/self/mounts").read_text))
    arguments = install_arguments(topology, cgroup, tag)
    say("airmesh " + " ".join(arguments))
    # 1: installed, and not every node has said yet that it is ready.
    if await airmesh(where, arguments, say) not in (0, 1):
        raise LabError("airmesh install failed: what it said is above")
    await take_observer(where)


async def check(where: Paths, say: Say) -> None:
    """`airmesh check`. Raises `LabError`."""
    if await airmesh(where, ["check"], say):
        raise LabError("airmesh check finds something wrong: what it said is above")


async def take_observer(where: Paths) -> None:
    """The key of the observer and the bus' authority, where every lab has them. Raises `LabError`."""
    seed = await _secret(where, "airmesh-seed-cli")
    bus = await _secret(where, "airmesh-nats-tls")
    for path, body in ((mesh.seed_file(where, "cli"), seed["seed"]), (mesh.authority(where), bus["ca.crt"])):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        ledger.write(path, body)


async def _secret(where: Paths, name: str) -> dict[str, bytes]:
    argv = [kubectl(), f"--kubeconfig={where.kubeconfig}", "--namespace", _NAMESPACE, "get", "secret", name]
    said = await command(where, [*argv, "--output=json"], "kubectl", _KUBECTL_SECONDS)
    return {key: base64.b64decode(value) for key, value in json.loads(said)["data"].items()}
