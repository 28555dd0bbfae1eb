"""The images that the stock end-to-end suite asks for by name, made of this machine's programs; its programs built.

The suite pulls `registry.k8s.io/e2e-test-images/…`; each is one userland (`lab.images.contents`) and what the real
one has beside it: the suite's own programs, for agnhost CoreDNS, `ss` and the files that its `porter` wants, for
distroless-iptables `conntrack`. Keyed and cached like every other image; imported into each node (containerd keeps it).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab.conformance import cloud, resolver
from lab.images import build, contents
from lab.images.archive import File, Image, Link
from lab.images.build import Say
from lab.paths import Paths
from lab.topology import LabError, Topology

_REPOSITORY = "registry.k8s.io/e2e-test-images"
AGNHOST = f"{_REPOSITORY}/agnhost:2.63.0"
USERLANDS = (
    f"{_REPOSITORY}/glibc-dns-testing:2.0.0",
    f"{_REPOSITORY}/busybox:1.37.0-1",
    f"{_REPOSITORY}/nginx:1.27-0",
)
BOOM = f"{_REPOSITORY}/regression-issue-74839:1.4"
IPTABLES = "registry.k8s.io/build-image/distroless-iptables:v0.9.6"
MORE = {"ip": ("ip", "iproute2"), "ss": ("ss", "iproute2")}
CONNTRACK = {"conntrack": ("conntrack", "conntrack")}
_MODULE = ("go.mod", "go.sum", "e2e_test.go", "tools.go")
SUITE = build.Target(
    name="e2e.test",
    folder=build.SOURCE / "lab/conformance/e2e",
    sources=_MODULE,
    go=True,
    estimate=110,
    verb=("test", "-c"),
)


def _program(name: str, estimate: int) -> build.Target:
    return build.Target(
        name=name,
        folder=build.SOURCE / "lab/conformance/e2e",
        sources=_MODULE,
        go=True,
        estimate=estimate,
        package=f"k8s.io/kubernetes/test/images/{name}",
    )


AGNHOST_PROGRAM = _program("agnhost", 60)
BOOM_PROGRAM = _program("regression-issue-74839", 5)
_IMPORT_SECONDS = 120.0


def _module_folder() -> Path:
    """Where Go keeps the sources of the Kubernetes module that go.mod names."""
    asked = subprocess.run(
        [build.go_command(), "list", "-m", "-json", "k8s.io/kubernetes"],
        cwd=SUITE.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"},
    )
    folder = json.loads(asked.stdout or "{}").get("Dir")
    if not folder:
        raise LabError(f"Go does not find the module k8s.io/kubernetes: {asked.stderr.strip()[-300:]}")
    return Path(folder)


def all_images(products: Mapping[str, Path]) -> dict[str, Image]:
    """Short name → image."""
    # The real images have busybox's wget, which tries once
    once = {"etc/wgetrc": File(body=b"tries = 1\n")}
    userland = {**contents.userland(), **once}
    porter = _module_folder() / "test/images/agnhost/porter"
    boom = BOOM_PROGRAM.name
    tree: dict[str, File | Link] = {
        **contents.userland(MORE),
        **once,
        "agnhost": File(body=products["agnhost"].read_bytes(), mode=0o755),
        "coredns": File(body=products["coredns"].read_bytes(), mode=0o755),
        "agnhost-2": Link(target="agnhost"),
        "localhost.crt": File(body=(porter / "localhost.crt").read_bytes()),
        "localhost.key": File(body=(porter / "localhost.key").read_bytes()),
        "uploads/.keep": File(body=b""),
    }
    return {
        "e2e-agnhost": Image(names=(AGNHOST,), entrypoint=("/agnhost",), command=("pause",), tree=tree),
        "e2e-userland": Image(names=USERLANDS, entrypoint=(), tree=userland),
        "e2e-boom": Image(
            names=(BOOM,), entrypoint=(f"/{boom}",), tree={boom: File(body=products[boom].read_bytes(), mode=0o755)}
        ),
        "e2e-iptables": Image(names=(IPTABLES,), entrypoint=(), tree=contents.userland(CONNTRACK)),
    }


async def prepare(lab: Paths, cache: Path, topology: Topology, say: Say) -> Path:
    """Build what is missing, import the images into every node, start the cloud; returns the suite's program."""
    products = await build.build_all((SUITE, AGNHOST_PROGRAM, BOOM_PROGRAM, build.COREDNS, cloud.CLOUD), cache, say)
    await cloud.start(lab, topology, products["cloud"])
    await resolver.start(lab, topology, products["coredns"])
    archives = contents.write(all_images(products), cache)
    for node in topology.nodes:
        socket = str(lab.node(node.name).containerd_socket)
        for archive in archives.values():
            say(f"importing {archive.name} into {node.name}")
            importing = await asyncio.create_subprocess_exec(
                "ctr", "-a", socket, "-n", "k8s.io", "images", "import", str(archive), stdout=asyncio.subprocess.DEVNULL
            )
            async with asyncio.timeout(_IMPORT_SECONDS):
                refused = await importing.wait()
            if refused:
                raise LabError(f"containerd of {node.name} did not take {archive.name}")
    return products["e2e.test"]
