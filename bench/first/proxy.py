"""The real kube-proxy in nftables mode, in the kernel's namespace, fed by the lab's own API server."""

from __future__ import annotations

import os
from pathlib import Path

from bench.first.ground import Ends
from bench.first.stage import Stage

NODE = "n3"
"""The node whose name it goes by: it wants a Node object, and reads only addresses from it."""


def start(on: Stage, netns: str, kernel: Ends) -> int:
    """Start it in a namespace where pods are behind `kernel`'s client; its pid. Conntrack's limits are left alone."""
    binary = os.readlink(f"/proc/{on.pid('apiserver')}/exe")
    subnet = kernel.address.split(".")[0:2]
    arguments = (
        f"--kubeconfig={on.where.kubeconfig_of('admin')}",
        f"--hostname-override={NODE}",
        "--proxy-mode=nftables",
        f"--cluster-cidr={'.'.join(subnet)}.0.0/16",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=127.0.0.1:10249",
    )
    pid = on.background(netns, binary, "kube-proxy", *arguments, log="kube-proxy")
    log = on.scratch / "kube-proxy.log"

    def programmed() -> bool:
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            raise SystemExit("kube-proxy ended:\n" + log.read_text()[-2000:])
        return "service-ips" in ruleset(on, netns)

    on.until("kube-proxy's rules", programmed)
    return pid


def ruleset(on: Stage, netns: str) -> str:
    """Everything that nftables holds in the namespace."""
    return on.run(["nsenter", f"--net={netns}", "nft", "list", "ruleset"])
