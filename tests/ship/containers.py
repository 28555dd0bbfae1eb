"""The images of the services, run by podman as the manifests run them: rights, read-only root, mounts.

What an image may do is taken from where it is said (`deploy.images.plan`), so a right too few makes a test fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.images import plan
from tests.drills.minicluster import CGROUPS, ON_NODES, MiniCluster
from tests.ship.images import IMAGES

PODMAN = ("podman", "--runtime", "runc")
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""A machine that is a container itself may not raise them."""
SYSCTLS = "/host/proc/sys"


def podman(*arguments: str, check: bool = True, seconds: float = 60) -> str:
    """What podman says."""
    done = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    assert not check or done.returncode == 0, f"podman {arguments[0]}: {done.stderr}"
    return done.stdout


def restricted(image: plan.Image) -> list[str]:
    """Flags that give a container what the plan says, and no more."""
    flags = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges", *LIMITS]
    return [*flags, *(f"--cap-add={capability}" for capability in image.capabilities)]


class Containers(MiniCluster):
    """A cluster whose services are containers of images by `identities`.

    `rights` replaces what the plan says of a service's capabilities.
    """

    identities: Mapping[str, str] = {}
    rights: Mapping[str, tuple[str, ...]] = {}

    def name(self, service: str) -> str:
        """Name of the container of a service."""
        return f"{self.label}-{service}"

    def command(self, name: str, netns: str, environment: Mapping[str, str]) -> list[str]:
        service, _, which = name.partition("-")
        image = IMAGES[service]
        variables = {key: value for key, value in environment.items() if key.startswith("AIRMESH_")}
        variables.pop("AIRMESH_BPF_CACHE", None)  # it is in the image
        seed = Path(variables["AIRMESH_NATS_SEED_FILE"])
        os.chown(seed, image.user, image.user)
        variables["AIRMESH_NATS_SEED_FILE"] = "/run/secrets/airmesh/seed"
        flags = ["--rm", "--name", self.name(name), "--network", "host", *restricted(image)]
        flags += ["--volume", f"{seed}:/run/secrets/airmesh/seed:ro"]
        if service in ON_NODES:
            variables["AIRMESH_SYSCTL_ROOT"] = SYSCTLS
            flags += ["--volume", f"/proc/sys/net:{SYSCTLS}/net"]
            flags += ["--volume", f"{self.folder / which}:{self.folder / which}:rslave"]
        if service == "dataplane":
            cgroup = CGROUPS / self.netns(which)
            flags += ["--pid=host", "--volume", "/run/netns:/run/netns:rslave", "--volume", f"{cgroup}:{cgroup}"]
        for key, value in variables.items():
            flags += ["--env", f"{key}={value}"]
        if service in self.rights:
            flags = [flag for flag in flags if not flag.startswith("--cap-add")]
            flags += [f"--cap-add={capability}" for capability in self.rights[service]]
        return ["nsenter", f"--net={netns}", "--", *PODMAN, "run", *flags, self.identities[service]]

    def signal(self, name: str, process: subprocess.Popen[bytes], number: int) -> None:
        podman("kill", "--signal", signal.Signals(number).name, self.name(name), check=False)

    def well(self, name: str) -> bool:
        """Whether the image's own health check passes."""
        return self._inside(name, "healthcheck", "run", self.name(name)).returncode == 0

    def unwell(self, name: str) -> str:
        """What the service says of itself when it is not ready."""
        probe = ("/usr/bin/python3.11", "-P", "-m", "chassis.telemetry.probe", "readyz")
        found = self._inside(name, "exec", self.name(name), *probe)
        return "" if found.returncode == 0 else found.stdout + found.stderr

    def _inside(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Podman in the service's network namespace: a container on the host's network has none of its own to enter."""
        service, _, which = name.partition("-")
        where = self.netns(which) if service in ON_NODES else self.label
        command = ["nsenter", f"--net=/run/netns/{where}", "--", *PODMAN, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def close(self) -> None:
        for name in self.services:
            podman("rm", "--force", "--time", "2", self.name(name), check=False)
        super().close()
