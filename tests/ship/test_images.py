"""The images of the services: each says what it is, starts as it is meant to run, and has the rights that it needs."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.images import plan
from deploy.images.build import build_images, commit
from deploy.images.engine import Engine, machine
from tests.drills.minicluster import minicluster_of, node_objects, pools
from tests.natsd import bus_of
from tests.ship.containers import PODMAN, Containers, podman, restricted
from tests.ship.images import IMAGES, SHORT, Built
from tests.ship.story import Stopped, node_story, until

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(1800)]
"""The first that asks for an image may wait for it to be built."""
Images = Callable[[str], Built]
ON_A_NODE = ("ipam", "policy", "routing", "dataplane")
IMPORT_ALL = """
import importlib, pathlib, sys
home = pathlib.Path("/opt/airmesh")
names = [".".join(path.relative_to(home).with_suffix("").parts) for path in sorted(home.rglob("*.py"))
         if "packages" not in path.parts and path.name != "__main__.py"]
for name in names:
    if not name.endswith("datapath.compile"):
        importlib.import_module(name.removesuffix(".__init__"))
print(len(names))
"""


@pytest.mark.parametrize(
    "service", [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in plan.NAMES]
)
def test_an_image_says_what_it_is_and_is_small(built: Images, service: str) -> None:
    image, said = IMAGES[service], built(service).said
    config = said["Config"]
    assert said["Size"] <= image.megabytes_at_most * 1_000_000
    assert config["User"] == f"{image.user}:{image.user}"
    if service != plan.BUS:
        assert said["Healthcheck"]["Test"][-1] == "readyz"
    assert f"AIRMESH_HEALTH_PORT={image.health_port}" in config["Env"]
    labels = said["Labels"]
    assert labels["io.airmesh.capabilities"] == ",".join(image.capabilities)
    assert labels["org.opencontainers.image.version"] == image.version
    assert {key.rpartition(".")[2] for key in labels} >= {"title", "description", "version", "revision", "created"}


def run_in(one: Built, *command: str) -> str:
    """What a command prints in a container of the service, with its rights and no network."""
    flags = [*restricted(one.image), "--network=none", "--entrypoint", command[0]]
    return podman("run", "--rm", *flags, one.identity, *command[1:])


@pytest.mark.slow
@pytest.mark.parametrize("service", plan.SERVICES)
def test_an_image_lacks_no_library_and_has_no_shell(built: Images, service: str) -> None:
    assert int(run_in(built(service), "/usr/bin/python3.11", "-P", "-c", IMPORT_ALL)) > 40
    found = run_in(
        built(service), "/usr/bin/python3.11", "-P", "-c",
        "import os, pathlib; print(sorted(str(p) for p in pathlib.Path('/').glob('*bin/*')"
        " if p.name in ('sh', 'bash', 'dash', 'apt', 'dpkg', 'su', 'mount')))",
    )  # fmt: skip
    assert found.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("service", plan.SERVICES)
def test_the_sbom_names_what_is_in_it(built: Images, service: str) -> None:
    read = "import pathlib; print(pathlib.Path('/usr/share/doc/airmesh/sbom.cdx.json').read_text())"
    said = json.loads(run_in(built(service), "/usr/bin/python3.11", "-P", "-c", read))
    assert said["bomFormat"] == "CycloneDX"
    named = {part["name"] for part in said["components"]}
    locked = {
        line.split("==")[0] for line in (plan.ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    }
    installed = run_in(
        built(service), "/usr/bin/python3.11", "-P", "-c",
        "import importlib.metadata as m; print(*[d.metadata['Name'] for d in m.distributions()])",
    ).split()  # fmt: skip
    assert set(installed) <= named
    assert {name.lower().replace("_", "-") for name in installed} <= locked
    assert not {"pytest", "mypy", "ruff", "click"} & {name.lower() for name in installed}
    assert {"libc6", "python3.11-minimal"} <= named
    assert ("nftables" in named) == (service == "dataplane")


def test_two_services_start_on_a_real_server(built: Images, tmp_path: Path) -> None:
    """Without any right: the short version of the story below."""

    class Two(Containers):
        """Of these images."""

    Two.identities = identities_of(built, "ipam", "policy")
    tmp_path.chmod(0o755)
    asyncio.run(_two_start(Two, tmp_path))


def identities_of(built: Images, *services: str) -> dict[str, str]:
    return {service: built(service).identity for service in services}


async def _two_start(kind: type[Containers], folder: Path) -> None:
    with minicluster_of(kind, folder, "imgt", ()) as world:
        async with bus_of(world.nats, "cluster") as bus:
            await world.make_buckets(bus)
            await world.put(bus, *node_objects(()), *pools(four="10.244.0.0/16", six="fd00:10:244::/56"))
            for service in ("ipam-1", "policy-1"):
                world.start(service)
            for service in ("ipam-1", "policy-1"):
                await until(f"{service} ready", 120, lambda service=service: world.well(service))  # type: ignore[misc]


@pytest.mark.slow
def test_a_node_of_containers_starts_pods(built: Images, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    asyncio.run(node_story(tmp_path, "imga", identities_of(built, *ON_A_NODE)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "without", "step"),
    [
        ("routing", "NET_ADMIN", "ready"),
        ("dataplane", "NET_ADMIN", "ready"),
        ("dataplane", "SYS_ADMIN", "ready"),
        ("dataplane", "SYS_PTRACE", "mtu"),
    ],
)
def test_each_right_is_needed(built: Images, tmp_path: Path, service: str, without: str, step: str) -> None:
    identities = identities_of(built, *ON_A_NODE)
    tmp_path.chmod(0o755)
    kept = tuple(one for one in IMAGES[service].capabilities if one != without)
    assert len(kept) < len(IMAGES[service].capabilities)
    with pytest.raises(Stopped) as stopped:
        asyncio.run(node_story(tmp_path, "imgr", identities, rights={service: kept}, seconds=40))
    assert stopped.value.args[0] == step


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_builds_of_one_commit_have_one_digest(engine: Engine, tmp_path: Path) -> None:
    """Nothing of the first is taken by the second."""
    images, of = [IMAGES[name] for name in ("policy", "dataplane", plan.BUS)], commit(plan.ROOT)
    found = []
    try:
        for attempt in ("first", "second"):
            built = build_images(
                engine,
                images,
                arch=machine(),
                tag=f"test-{attempt}",
                say=print,
                fresh=True,
                logs=tmp_path / attempt,
                of=of,
            )
            found.append([(one.identity, engine.inspect(one.name)["Digest"]) for one in built])
    finally:
        for attempt in ("first", "second"):
            for image in images:
                podman("image", "rm", "--force", image.name(f"test-{attempt}"), check=False)
    assert found[0] == found[1]


def test_a_server_is_not_needed_for_a_clear_word(built: Images) -> None:
    """A container that is told too little ends with one sentence."""
    one = built("policy")
    ended = subprocess.run(
        [*PODMAN, "run", "--rm", "--network=none", *restricted(one.image), one.identity],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in ended.stderr.splitlines() if "healthcheck" not in line]
    assert ended.returncode == 1
    assert len(said) == 1
    assert said[0].startswith("policy: AIRMESH_NATS_SEED_FILE")
