"""Settings of ``cluster``; every field is an environment variable ``AIRMESH_<FIELD>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chassis.runtime.settings import BaseSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    """Where the API server is, and how hard it is asked."""

    kubeconfig: Path | None = None
    """Kubeconfig whose current context is used; unset: the pod's own service account."""

    kube_page: int = 500
    """Objects a page of a list."""

    kube_watch_seconds: float = 300.0
    """Shortest time of one watch; the longest is twice that."""

    lease_seconds: float = 6.0
    """After this long without a word a standby takes over."""

    departed_grace: float = 120.0
    """Seconds that nothing of a node without a Node object, and without blocks, may have changed before its keys are
    deleted; a node that lives writes every 30 s."""

    taint_new_nodes: bool = False
    """Keep pods away from nodes that have never been ready, by the taint node.airmesh.io/agent-not-ready; a node that
    says that it is ready loses it in any case."""

    admission_dir: Path | None = None
    """Folder of the Secret by which nodes are let onto the bus (``nodes.seed``, ``accounts.json``, ``resolver.creds``);
    unset, or without these files: nobody is."""

    admission_account: str = "airmesh-system:airmesh"
    """NAMESPACE:NAME of the ServiceAccount of nodes' agents."""

    bucket_replicas: int = 1
    """Copies of each bucket when it is made: 1 with one NATS server, 3 with three."""
