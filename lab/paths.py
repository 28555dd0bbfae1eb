"""Where a lab keeps its things: folders, sockets, files. Pure path arithmetic, plus the settings it starts from.

Owns every path a lab writes outside its namespaces: below `<labs>/<lab>/` (state and logs) and `<run>/<lab>/` (sockets,
bpffs mounts). Promises that nothing of a lab lies elsewhere except what the kubelet and containerd hard-code, which
`leftovers.py` names. Refuses relative folders.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.topology import LabError, check_name

SOURCE = Path(__file__).resolve().parent.parent
MARKER = "AIRMESH_LAB_PROCESS"
"""Environment variable that every process started by a lab carries: the lab's name. `down` finds them by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment may change."""

    labs: Path
    run: Path
    cache: Path


def _folder(environment: Mapping[str, str], name: str, default: Path) -> Path:
    path = Path(environment.get(name) or default)
    if not path.is_absolute():
        raise LabError(f"{name}={path}: give an absolute folder")
    return path


def settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read AIRMESH_LABS, AIRMESH_RUN and AIRMESH_CACHE. Raises `LabError` for a relative folder.

    None lies where a node's agents keep theirs (/var/lib/airmesh, /run/airmesh): nodes have folders of their own there.
    """
    env = os.environ if environment is None else environment
    home = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/")) / ".cache")
    return Settings(
        labs=_folder(env, "AIRMESH_LABS", Path("/var/lib/airmesh-labs")),
        run=_folder(env, "AIRMESH_RUN", Path("/run/airmesh-labs")),
        cache=_folder(env, "AIRMESH_CACHE", home / "airmesh"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePaths:
    """One node's folders. Unix sockets lie under `run`, since a socket's path has at most 107 bytes."""

    state: Path
    run: Path

    @property
    def containerd_socket(self) -> Path:
        """Containerd's gRPC socket; shims derive their sockets' names from it."""
        return self.run / "containerd.sock"

    @property
    def cni_socket(self) -> Path:
        """Where the node's dataplane listens for its CNI executable."""
        return self.run / "cni.sock"

    @property
    def wireguard(self) -> Path:
        """Where the node's userspace WireGuard, where the kernel has none, listens for its configuration."""
        return self.run / "wireguard"

    @property
    def bpffs(self) -> Path:
        """The node's own bpffs mount: the root of its pins."""
        return self.run / "bpf"

    @property
    def static_pods(self) -> Path:
        """Where the node's kubelet finds the manifests of static pods."""
        return self.state / "static-pods"

    @property
    def cni_conf(self) -> Path:
        """Containerd's conf_dir; the dataplane writes into it when the node can take pods."""
        return self.state / "cni"

    @property
    def cni_bin(self) -> Path:
        """Containerd's bin_dir."""
        return self.state / "cni-bin"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root: a mount of its own, since the volumes that it mounts below are the runtime's to see."""
        return self.state / "kubelet"

    @property
    def device_plugins(self) -> Path:
        """What the node's kubelet has where kubelets have `node.DEVICE_PLUGINS` built in."""
        return self.state / "device-plugins"

    @property
    def host(self) -> Path:
        """What the node has where the machine has its own: see `node.HOST_FOLDERS`."""
        return self.state / "host"

    def on_host(self, path: Path) -> Path:
        """Where the machine finds what the node knows as the absolute `path`."""
        return self.host / path.relative_to("/")

    @property
    def agents(self) -> Path:
        """State of the node's airmesh services (journals, keys)."""
        return self.state / "airmesh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """One lab's folders and files."""

    lab: str
    state: Path
    run: Path

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        """Keys, certificates, kubeconfigs of components."""
        return self.state / "pki"

    @property
    def nats(self) -> Path:
        """Configuration, seeds and store of the NATS server."""
        return self.state / "nats"

    @property
    def ledger(self) -> Path:
        """See `cluster/ledger.py`."""
        return self.state / "processes.json"

    @property
    def record(self) -> Path:
        """What `up` decided (nodes, with or without mesh) and whether it finished: `lab.json`."""
        return self.state / "lab.json"

    @property
    def ports(self) -> Path:
        """Loopback ports that lead into the lab, written by the process `port-forward`."""
        return self.state / "ports.json"

    @property
    def machine_routes(self) -> Path:
        """The machine's own routes as they were before the lab, for the proof at its end."""
        return self.state / "machine-routes.txt"

    @property
    def kubeconfig(self) -> Path:
        """For people and tests on this machine, through the loopback port."""
        return self.state / "kubeconfig"

    @property
    def supervisor_socket(self) -> Path:
        """Root-only socket of the lab's supervisor."""
        return self.run / "supervisor.sock"

    def kubeconfig_of(self, user: str) -> Path:
        """For a component inside the lab's namespaces, to the API server's fabric address."""
        return self.pki / f"{user}.kubeconfig"

    def log(self, process: str) -> Path:
        """The log of a process by its name."""
        return self.logs / f"{process}.log"

    def node(self, name: str) -> NodePaths:
        """The folders of node `name`."""
        return NodePaths(state=self.state / name, run=self.run / name)


def paths(lab: str, given: Settings) -> Paths:
    """The paths of lab `lab`. Raises `LabError` for a bad name."""
    check_name(lab)
    return Paths(lab=lab, state=given.labs / lab, run=given.run / lab)
