"""What each image is made of and runs with, read from where it is said: `[tool.airmesh.image]` of the service's
manifest (the bus' is here), and the one tag of `deploy/kubernetes/kustomization.yaml`.

Pure: text in, values out. Manifests and compose files are held against this, so that rights are said once.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("cluster", "ipam", "policy", "dns", "routing", "dataplane")
BUS = "nats"
"""The image of the NATS server, which is no service of ours."""
NAMES = (*SERVICES, BUS)
"""Of all images, in the order in which they are built."""
ARCHITECTURES = ("amd64", "arm64")
REGISTRY = "localhost/airmesh"
"""Where images are named that were built here: no runtime asks a registry on the network for it."""
MEGABYTES_AT_MOST = {"dataplane": 250, BUS: 30}
MEGABYTES_OF_PYTHON = 120
"""Uncompressed, as the engine counts them: what a node's disk holds."""


class PlanError(ValueError):
    """A manifest says something that no image can be; the sentence names file, field and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One service's image, or the bus'."""

    service: str
    """One of NAMES."""
    version: str
    description: str
    user: int
    """Numeric user and group that it runs as."""
    capabilities: tuple[str, ...]
    """What is added after all are dropped, spelled as in Kubernetes (without CAP_)."""
    debian: tuple[str, ...]
    """Debian packages beside those of debian.txt."""
    folders: tuple[str, ...]
    """Folders of the repository beside proto, kit, chassis and the service's own."""
    health_port: int
    """Where its health pages listen on loopback, unless AIRMESH_HEALTH_PORT (the bus': its configuration) differs."""

    @property
    def files(self) -> str:
        """Stage of the Dockerfile that its files are."""
        return self.service if self.service in ("dataplane", BUS) else "agent"

    @property
    def megabytes_at_most(self) -> int:
        """The size that it may have."""
        return MEGABYTES_AT_MOST.get(self.service, MEGABYTES_OF_PYTHON)

    def name(self, tag: str, registry: str = REGISTRY) -> str:
        """Its full reference."""
        return f"{registry}/{self.service}:{tag}"


_FIELDS: dict[str, type] = {"user": int, "capabilities": list, "debian": list, "folders": list, "health_port": int}


def manifest_of(service: str) -> str:
    """Path of the manifest of an image, from the root of the repository."""
    return f"{'deploy/images' if service == BUS else 'services'}/{service}/pyproject.toml"


def read_image(service: str, manifest: str) -> Image:
    """The image of a service from its manifest's text. Raises PlanError."""
    parsed: dict[str, Any] = tomllib.loads(manifest)
    where = f"{manifest_of(service)} [tool.airmesh.image]"
    table = parsed.get("tool", {}).get("airmesh", {}).get("image")
    if not isinstance(table, dict) or set(table) != set(_FIELDS):
        raise PlanError(f"{where}: give exactly {', '.join(_FIELDS)}")
    for field, kind in _FIELDS.items():
        value = table[field]
        strings = isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not (strings if kind is list else isinstance(value, kind)):
            raise PlanError(f"{where}: {field} = {value!r}: give {'names' if kind is list else 'a number'}")
    for capability in table["capabilities"]:
        if not capability.isupper() or capability.startswith("CAP_"):
            raise PlanError(f"{where}: capabilities: {capability!r}: spell it as Kubernetes does, as in NET_ADMIN")
    project = parsed["project"]
    return Image(
        service=service,
        version=project["version"],
        description=project["description"],
        user=table["user"],
        capabilities=tuple(table["capabilities"]),
        debian=tuple(table["debian"]),
        folders=tuple(table["folders"]),
        health_port=table["health_port"],
    )


def images() -> tuple[Image, ...]:
    """All images of the repository, in the order in which they are built."""
    return tuple(read_image(name, (ROOT / manifest_of(name)).read_text()) for name in NAMES)


def tag() -> str:
    """The tag that the manifests ask for. Raises PlanError when they ask for several."""
    said = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    tags = {str(one["newTag"]) for one in said["images"]}
    if len(tags) != 1:
        raise PlanError(f"deploy/kubernetes/kustomization.yaml: images have the tags {sorted(tags)}: give them one")
    return tags.pop()


def source_key(image: Image, root: Path = ROOT) -> str:
    """Names what an image is made of in the tree: 16 hex digits that change with any of its files."""
    folders, single = ["deploy/images"], ["requirements.lock", "requirements/images.lock"]
    if image.service != BUS:
        folders += ["proto", "kit", "chassis", *image.folders, f"services/{image.service}"]
        single += ["services/__init__.py", "linux/pyproject.toml"]
    paths = {root / path for path in single}
    for folder in folders:
        paths |= {
            path
            for path in (root / folder).rglob("*")
            if path.is_file() and path.suffix != ".pyc" and path.name != "README.md"
        }
    digest = hashlib.sha256()
    for path in sorted(paths):
        body = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(body)}\0".encode())
        digest.update(body)
    return digest.hexdigest()[:16]


def arguments(image: Image, *, arch: str, revision: str, created: str) -> dict[str, str]:
    """What the Dockerfile is told of an image."""
    return {
        "SERVICE": image.service,
        "FILES": image.files,
        "TARGETARCH": arch,
        "DEBIAN": " ".join(image.debian),
        "FOLDERS": " ".join(image.folders),
        "RUN_AS": f"{image.user}:{image.user}",
        "HEALTH_PORT": str(image.health_port),
        "CAPABILITIES": ",".join(image.capabilities),
        "VERSION": image.version,
        "DESCRIPTION": image.description,
        "REVISION": revision,
        "CREATED": created,
        "SOURCE": source_key(image),
    }
