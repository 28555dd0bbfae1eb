"""The manifests (deploy/kubernetes) as objects, as an installation wants them.

kustomize renders a copy of the folder in which settings.env and the images say what this cluster needs; what depends on
the number of nodes is set on the result. Pure but for that one program: the same options give the same objects.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cli.faults import Declined
from cli.install import names
from cli.install.kinds import Object, order
from cli.install.kubernetes import kubectl

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
AUTHORITY_FILE = "/etc/airmesh/bus/ca.crt"
_SECONDS = 60.0
_COPIES = 2
"""Of each cluster service, where there are as many nodes."""


def settings(*, nats: str, uplinks: str, servers: int, tls: bool, more: Mapping[str, str]) -> dict[str, str]:
    """What every agent is told. ``servers``: how many the bus has, which is how many copies a bucket gets. ``more``:
    what was set by name.
    """
    given = {
        "AIRMESH_NATS_URL": nats,
        "AIRMESH_UPLINKS": uplinks,
        "AIRMESH_TAINT_NEW_NODES": "true",
        "AIRMESH_BUCKET_REPLICAS": str(3 if servers >= 3 else 1),
        **more,
    }
    return {**given, "AIRMESH_NATS_CA_FILE": AUTHORITY_FILE} if tls else given


def images(said: Sequence[Mapping[str, str]], *, registry: str, tag: str) -> list[dict[str, str]]:
    """The kustomization's images with another registry or tag; empty texts change nothing."""
    changed = []
    for image in said:
        where = f"{registry}/{image['name'].rpartition('/')[2]}" if registry else image.get("newName", image["name"])
        changed.append({"name": image["name"], "newName": where, "newTag": tag or image["newTag"]})
    return changed


def render(given: Mapping[str, str], *, registry: str = "", tag: str = "") -> list[Object]:
    """All objects, each after those it needs. Raises `Declined` with kustomize's words."""
    with tempfile.TemporaryDirectory(prefix="airmesh-") as temporary:
        folder = Path(temporary) / "kubernetes"
        shutil.copytree(FOLDER, folder)
        (folder / "settings.env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
        path = folder / "kustomization.yaml"
        kustomization = yaml.safe_load(path.read_text())
        kustomization["images"] = images(kustomization["images"], registry=registry, tag=tag)
        path.write_text(yaml.safe_dump(kustomization))
        try:
            done = subprocess.run(
                [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=_SECONDS
            )
        except subprocess.CalledProcessError as error:
            words = " ".join(str(error.stderr).split())
            raise Declined(f"the manifests cannot be rendered: {words}", f"look at {FOLDER}") from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return sorted((one for one in yaml.load_all(done.stdout, Loader=loader) if one), key=order)


def fitted(rendered: Iterable[Object], *, nodes: int, servers: int, checksums: Mapping[str, str]) -> list[Object]:
    """The objects as this cluster needs them. ``servers``: of our own bus; 0: it is somebody else's, and is left out.
    ``checksums``: by name of a workload, what its pods read at their start.
    """
    fit = []
    for given in rendered:
        one = copy.deepcopy(given)
        name = one["metadata"].get("labels", {}).get(names.NAME, "")
        if name == names.BUS and not servers:
            continue
        if one["kind"] == "StatefulSet":
            one["spec"]["replicas"] = servers
        if one["kind"] == "Deployment":
            one["spec"]["replicas"] = max(1, min(_COPIES, nodes))
        if name in checksums and "template" in one.get("spec", {}):
            metadata: dict[str, Any] = one["spec"]["template"]["metadata"]
            metadata.setdefault("annotations", {})[names.CHECKSUM] = checksums[name]
        fit.append(one)
    return fit


def settings_of(rendered: Iterable[Object]) -> dict[str, str]:
    """What every agent is told, by objects as they were rendered."""
    found = [one["data"] for one in rendered if one["kind"] == "ConfigMap" and "AIRMESH_NATS_URL" in one["data"]]
    return dict(found[0])


def image_of(rendered: Iterable[Object], workload: str) -> str:
    """The image of a workload's agent; raises KeyError."""
    for one in rendered:
        if one["kind"] in ("Deployment", "DaemonSet", "StatefulSet") and one["metadata"]["name"] == workload:
            return str(one["spec"]["template"]["spec"]["containers"][0]["image"])
    raise KeyError(workload)
