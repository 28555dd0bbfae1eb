"""The project of compose/compose.yaml on this machine: what must be there before, starting, looking at it, removing it.

Owns ``build/compose/state`` (the servers' streams, the node's folders, its bpffs) and one cgroup. ``down`` goes by what
is on the machine, so it works after a start that failed; ``left`` says what is still there.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.images import plan
from deploy.images.base import base
from deploy.images.engine import Engine, EngineError, find_engine
from lab import paths
from lab.compose import keys
from lab.images.build import build_all
from lab.images.observability import COLLECTOR, JAEGER
from lab.topology import LabError

SOURCE = paths.SOURCE / "compose"
HOME = paths.SOURCE / "build" / "compose"
NAME = "airmesh"
TOOLS = ("nats", "collector", "jaeger", "prometheus")
CGROUP = "airmesh-compose"
CLOCK, CUT = "clock-jumps", "leader-cut-off"
_DEADLINE_SECONDS = 300.0
_BUILD_SECONDS = 1800.0
JUMP = "+1h"
"""How far the clock of `clock-jumps` jumps, as libfaketime spells it."""
_DEPENDENT_LEVELS = 4
"""Containers that need others, which need others: podman removes none that another one needs."""
Say = Callable[[str], None]


def cgroup_root() -> Path:
    """Where the machine has cgroup2: beside version 1, or alone."""
    beside = Path("/sys/fs/cgroup/unified")
    return beside if beside.is_dir() else Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Project:
    """It, with overlays (names of files in compose/overlays, without their ending)."""

    overlays: tuple[str, ...] = ()
    home: Path = HOME

    @property
    def state(self) -> Path:
        """What lives as long as the project is up."""
        return self.home / "state"

    @property
    def secrets(self) -> Path:
        """What stays."""
        return self.home / "secrets"

    @property
    def _drill(self) -> Path:
        return self.state / "drill"

    def fault(self, overlay: str, jump: str = JUMP) -> None:
        """An overlay's fault begins: the file of its name is its sign. Raises LabError when the project is not up.

        That of `leader-cut-off` names the server that leads now.
        """
        _check_overlay(overlay)
        if not self._drill.is_dir():
            raise LabError(f"the project is not up: make compose-up OVERLAY={overlay}")
        if overlay == CLOCK:
            self._write("clock", jump)
        self._write(overlay, self._leader() if overlay == CUT else "")

    def heal(self, overlay: str) -> None:
        """The fault ends. Raises LabError for a name of no overlay."""
        _check_overlay(overlay)
        (self._drill / overlay).unlink(missing_ok=True)
        if overlay == CLOCK and self._drill.is_dir():
            self._write("clock", "+0")

    def _write(self, name: str, text: str) -> None:
        draft = self._drill / f".{name}"
        draft.write_text(f"{text}\n")
        draft.rename(self._drill / name)

    def _leader(self) -> str:
        """The server that leads the others, as the first one that says it."""
        for server in keys.SERVERS:
            with suppress(EngineError):
                asked = ("exec", self.container(server), "/usr/bin/python3", "/drill.py", "leader")
                return find_engine().run(*asked).strip()
        raise LabError("no server says which one leads: python -m lab.compose status")

    # --- before

    def prepare(self, kubeconfig: Path, say: Say) -> None:
        """Secrets, folders, a bpffs and a cgroup. Raises LabError."""
        if os.geteuid() != 0:
            raise LabError("the dataplane loads programs into the kernel: run this as root")
        if keys.make_secrets(self.secrets):
            say(f"made keys and certificates: {self.secrets}")
        keys.take_kubeconfig(kubeconfig, self.secrets)
        for server in keys.SERVERS:
            folder = self.state / server
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, keys.SERVER_USER, keys.SERVER_USER)
        for name in ("bpffs", "lib", "run", "cni.d", "wireguard"):
            (self.state / "node" / name).mkdir(parents=True, exist_ok=True)
        self._drill.mkdir(exist_ok=True)
        self._write("clock", "+0")
        self._bpffs.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.ismount(self._bpffs):
            _run(["mount", "-t", "bpf", "bpf", str(self._bpffs)])
        self._cgroup.mkdir(exist_ok=True)
        (self.secrets / keys.BGP).mkdir(mode=0o700, exist_ok=True)  # as the optional Secret of a cluster: perhaps empty
        for made_by_others in ("/run/netns", "/dev/net"):  # `ip netns`, and who makes a TUN interface
            Path(made_by_others).mkdir(exist_ok=True)

    @property
    def _bpffs(self) -> Path:
        return self.state / "node" / "bpffs"

    @property
    def _cgroup(self) -> Path:
        return cgroup_root() / CGROUP

    def images(self, engine: Engine, say: Say) -> None:
        """Builds what is not ours (collector, Jaeger, Prometheus, Python beside NATS); ours must be there.

        Raises LabError, EngineError.
        """
        missing = [name for image in plan.images() if not engine.has(name := image.name(plan.tag()))]
        if missing:
            raise LabError(f"not built: {', '.join(missing)}: make images")
        programs = self.home / "programs"
        programs.mkdir(parents=True, exist_ok=True)
        built = asyncio.run(build_all((JAEGER, COLLECTOR), paths.settings().cache, say))
        for source in (*built.values(), Path(__file__).with_name("drill.py")):
            shutil.copy(source, programs / source.name)
        on, server = base(engine, say), f"{plan.REGISTRY}/{plan.BUS}:{plan.tag()}"
        for stage in TOOLS:
            name = tool_image(stage)
            say(name)
            isolation = ("--isolation", "chroot", "--format", "docker", "--layers") if engine.is_podman else ()
            file = str(SOURCE / "Dockerfile")
            given = ("--target", stage, "--tag", name, "--network", "host")
            bases = ("--build-arg", f"BASE={on}", "--build-arg", f"NATS={server}")
            engine.run("build", *isolation, "--file", file, *given, *bases, str(programs), seconds=_BUILD_SECONDS)

    # --- compose

    def command(self, *arguments: str) -> list[str]:
        """Command line of compose with the files of this project."""
        engine = find_engine()
        program = [str(self.home / "venv/bin/podman-compose")] if engine.is_podman else [*engine.command, "compose"]
        files = [SOURCE / "compose.yaml", *(SOURCE / "overlays" / f"{name}.yaml" for name in self.overlays)]
        for overlay in self.overlays:
            _check_overlay(overlay)
        # Not one pod for all of them: `host` and the servers have namespaces of their own.
        apart = ("--in-pod", "false") if engine.is_podman else ()
        return [*program, "-p", NAME, *apart, *(part for file in files for part in ("-f", str(file))), *arguments]

    def compose(self, *arguments: str) -> None:
        """Runs compose. Raises LabError with its last words."""
        environment = {
            **os.environ,
            "AIRMESH_TAG": plan.tag(),
            "AIRMESH_COMPOSE_CGROUP": str(self._cgroup),
            **({"AIRMESH_FAKETIME": str(faketime())} if CLOCK in self.overlays else {}),
            "CONTAINERS_CONF": str(SOURCE / "containers.conf"),
        }
        _run(self.command(*arguments), environment)

    def up(self) -> None:
        """Starts all. Raises LabError."""
        self.compose("up", "-d")

    def down(self) -> None:
        """Removes all but the secrets, whatever of it is there. Raises LabError naming what would not go."""
        engine = find_engine()
        soon = ("--time", "5") if engine.is_podman else ()
        for _ in range(_DEPENDENT_LEVELS):
            if not (names := self.containers(engine)):
                break
            with suppress(EngineError):  # those that others still need stay for the next round
                engine.run("rm", "--force", *soon, *names, seconds=_DEADLINE_SECONDS)
        for name in self.networks(engine):
            with suppress(EngineError):
                engine.run("network", "rm", name)
        if os.path.ismount(self._bpffs):
            _run(["umount", str(self._bpffs)])
        if self._cgroup.is_dir():
            self._cgroup.rmdir()
        shutil.rmtree(self.state, ignore_errors=True)
        if remains := self.left():
            raise LabError(f"still there: {', '.join(remains)}")

    # --- looking

    def containers(self, engine: Engine) -> list[str]:
        """Names of its containers, running or not."""
        return [one for one in self._listed(engine, "ps", "--all", "--format", "{{.Names}}") if one]

    def networks(self, engine: Engine) -> list[str]:
        """Names of its networks."""
        return [one for one in self._listed(engine, "network", "ls", "--format", "{{.Name}}") if one]

    def _listed(self, engine: Engine, *arguments: str) -> list[str]:
        said = engine.run(*arguments, "--filter", f"label=com.docker.compose.project={NAME}")
        return said.splitlines()

    def left(self) -> list[str]:
        """What is on the machine of a project that should be gone."""
        engine = find_engine()
        found = [*self.containers(engine), *self.networks(engine)]
        return [*found, *(str(path) for path in (self.state, self._cgroup) if path.exists())]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container. Raises EngineError."""
        return self._inspect(service)[0]

    def _inspect(self, *services: str) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = json.loads(find_engine().run("inspect", *map(self.container, services)))
        return said

    def pids(self, *services: str) -> list[int]:
        """The first process of each service's container, 0 where none runs. Raises EngineError."""
        return [int(one["State"]["Pid"]) for one in self._inspect(*services)]

    def container(self, service: str) -> str:
        """Name of the container of a service."""
        return f"{NAME}_{service}_1" if find_engine().is_podman else f"{NAME}-{service}-1"

    def unwell(self) -> dict[str, str]:
        """Services whose health check does not pass, and what it said."""
        engine = find_engine()
        found = {}
        for service, written in self.services().items():
            if service == "host" or service.startswith("cut-"):
                continue
            check = written.get("healthcheck", {}).get("test", [])[1:]
            try:
                engine.run("exec", self.container(service), *check)
            except EngineError as error:
                found[service] = str(error)[-400:]
        return found

    def services(self) -> dict[str, dict[str, Any]]:
        """Services of compose.yaml alone."""
        written: dict[str, dict[str, Any]] = yaml.safe_load((SOURCE / "compose.yaml").read_text())["services"]
        return written


def tool_image(stage: str) -> str:
    """Name of an image of compose/Dockerfile."""
    return f"{plan.REGISTRY}/compose-{stage}:{plan.tag()}"


def overlays() -> list[str]:
    """Names of all overlays."""
    return sorted(path.stem for path in (SOURCE / "overlays").glob("*.yaml"))


def faketime() -> Path:
    """Where libfaketime is: AIRMESH_FAKETIME, or Debian's. Raises LabError when it is not there."""
    named = os.environ.get("AIRMESH_FAKETIME")
    found = [Path(named)] if named else sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found or not found[0].is_file():
        raise LabError(
            f"{CLOCK}: no libfaketime{f' at AIRMESH_FAKETIME={named}' if named else ''}: apt-get install libfaketime, "
            "or name its file in AIRMESH_FAKETIME"
        )
    return found[0]


def _check_overlay(name: str) -> None:
    if name not in overlays():
        raise LabError(f"no overlay is called {name}: {', '.join(overlays())}")


def _run(argv: Sequence[str], environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False, env=environment
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not here: make compose-setup") from error
    if done.returncode:
        raise LabError(f"{' '.join(argv[:1])} ended with {done.returncode}: {done.stderr.strip()[-3000:]}")
