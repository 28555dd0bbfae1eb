"""An upstream DNS resolver outside of the cluster, for stock specs that ask one.

Owns the process `resolver` (CoreDNS with the few public names that the suite knows) in the fabric's namespace, and,
while such a spec runs, the upstream that a person would write into the cluster's Corefile for it. Started by the stock
suite's runner alone; goes down with the lab.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lab.cluster.launch import command, kubectl
from lab.conformance.cloud import outside, start_outside
from lab.paths import Paths
from lab.topology import FABRIC4, Topology

NAME = "resolver"
ADDRESS = str(FABRIC4.network_address + 1)
"""Of the fabric's bridge (see `topology`)."""
COREFILE = f""".:53 {{
    bind {ADDRESS}
    hosts {{
        8.8.8.8 dns.google
        2001:4860:4860::8888 dns.google
    }}
}}
"""
_ASKS = re.compile(r"DNS configMap nameserver Forward PTR lookup")
_KUBECTL_SECONDS = 90.0


def is_asked(spec: str) -> bool:
    """Whether a spec looks up public names."""
    return bool(_ASKS.search(spec))


def with_upstream(corefile: str) -> str:
    """A Corefile of airmesh's with the resolver as its upstream, as a person would add it."""
    text = corefile.replace("pods verified\n", "pods verified\n        fallthrough in-addr.arpa ip6.arpa\n", 1)
    return text.replace("    loadbalance\n", f"    loadbalance\n    forward . {ADDRESS}\n", 1)


async def start(where: Paths, topology: Topology, program: Path) -> None:
    """Start the resolver where it does not run yet. Raises `LabError`."""
    config = where.state / "resolver.Corefile"
    config.write_text(COREFILE)
    await start_outside(where, topology, NAME, [str(program), "-conf", str(config)])


@asynccontextmanager
async def upstream(where: Paths, topology: Topology) -> AsyncIterator[None]:
    """The cluster's CoreDNS asks the resolver; afterwards its Corefile is as before. Raises `LabError`."""
    before = await _kubectl(where, topology, "get", "configmap", "coredns", "-o", "jsonpath={.data.Corefile}")
    await _write(where, topology, with_upstream(before))
    try:
        yield
    finally:
        await _write(where, topology, before)


async def _write(where: Paths, topology: Topology, corefile: str) -> None:
    """Servers that read it at once: new ones."""
    patch = json.dumps({"data": {"Corefile": corefile}})
    await _kubectl(where, topology, "patch", "configmap", "coredns", "--type=merge", "-p", patch)
    await _kubectl(where, topology, "delete", "pods", "-l", "k8s-app=kube-dns")
    await _kubectl(where, topology, "rollout", "status", "deployment/coredns", "--timeout=60s")


async def _kubectl(where: Paths, topology: Topology, *words: str) -> str:
    argv = [kubectl(), f"--kubeconfig={where.kubeconfig_of('admin')}", "-n", "kube-system", *words]
    return await command(where, outside(topology, argv), f"kubectl {words[0]}", _KUBECTL_SECONDS)
