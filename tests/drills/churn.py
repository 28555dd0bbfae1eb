"""Pods, policies, namespaces and Services that come and go on one node, through every agent, by real NATS and CNI.

Each agent is a process that runs its own code (under :mod:`tests.drills.probe`). The drill plays the API server (that
of the tests of ``cluster``) and the container runtime. In each round everything is new: a namespace, its policies and
Services, and pods whose labels nobody had before; at its end all of it is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bpf.world import run
from tests.drills.minicluster import Answer, MiniCluster, PodRef, minicluster
from tests.drills.probe import FOLDER, Memory, growth, look
from tests.shell.cluster.apiserver import ApiServer

NODE = "n1"
AGENTS = ("cluster-1", "ipam-1", "policy-1", "dns-1", "routing-n1", "dataplane-n1")
AT_ONCE = 8
HISTORY = 2000
"""Changes that the API server remembers: its watchers are never further behind."""
TRY_AGAIN_LATER = 11
POOLS = (("pods4", "10.244.0.0/25", 26), ("pods6", "fd00:10:244::/121", 122))
"""Two blocks of each family: a node remembers each address that it ever gave, and soon it has given all."""
QUIET = 3.0
"""Seconds after a round until what rests, lingers or waits to be told is over; the settings below make them short, and
the first standing check comes before the first look.
"""
SETTINGS = {
    "AIRMESH_ADDRESS_COOLDOWN": "1",
    "AIRMESH_OWNER_GRACE": "1",
    "AIRMESH_GC_GRACE": "1",
    "AIRMESH_CHECKS_EVERY": "3",
    "AIRMESH_POLICY_GRACE_SECONDS": "2",
    "AIRMESH_POLICY_LEASE_SECONDS": "6",
    "AIRMESH_LOG_LEVEL": "warning",
}


@dataclass(slots=True)
class Churn:
    """One node and what happens on it."""

    world: MiniCluster
    api: ApiServer
    spaces: list[str] = field(default_factory=list)
    rounds: int = 0
    pods: int = 0
    policies: int = 0

    @property
    def probes(self) -> Path:
        return self.world.folder / "probes"

    async def round(self, pods: int, policies: int) -> None:
        """One namespace with so many of both, from nothing to nothing."""
        self.rounds += 1
        namespace = f"churn-{self.rounds}"
        await self.api.put("Namespace", {"metadata": {"labels": {"round": str(self.rounds)}}}, name=namespace)
        for number in range(policies):
            await self.api.put("NetworkPolicy", policy(namespace, number, pods), namespace, f"p{number}")
        await self.api.put("Service", service(self.rounds), namespace, "web")
        waiting = list(range(pods))
        born: list[tuple[str, str, PodRef]] = []
        await asyncio.gather(*(self._bear(namespace, space, waiting, born) for space in self.spaces))
        await self.api.delete("Service", namespace, "web")
        for number in range(policies):
            await self.api.delete("NetworkPolicy", namespace, f"p{number}")
        await self.api.delete("Namespace", "", namespace)
        self.pods += pods
        self.policies += policies
        del self.api.history[:-HISTORY]
        self.api.requests.clear()
        self.api.applied.clear()

    async def _bear(self, namespace: str, space: str, waiting: list[int], born: list[tuple[str, str, PodRef]]) -> None:
        """One pod after the other in a network namespace."""
        while waiting:
            number = waiting.pop()
            name = f"pod-{number}"
            labels = {"app": f"{namespace}-{number}", "tier": str(number % 5)}
            written: dict[str, Any] = {"metadata": {"labels": labels}, "spec": {"nodeName": NODE}, "status": {}}
            made = await self.api.put("Pod", written, namespace, name)
            reference = PodRef(namespace, name, made["metadata"]["uid"])
            container = f"{namespace}-{number}"
            answer = await self._add(container, space, reference)
            addresses = [{"ip": address} for address in answer.addresses]
            await self.api.put("Pod", {**written, "status": {"phase": "Running", "podIPs": addresses}}, namespace, name)
            await self.api.put("EndpointSlice", part(name, answer.addresses[0]), namespace, name)
            answer = await self.world.cni(NODE, "DEL", container, space, reference)
            assert answer.code == 0, answer.body
            await self.api.delete("EndpointSlice", namespace, name)
            await self.api.delete("Pod", namespace, name)

    async def _add(self, container: str, space: str, reference: PodRef) -> Answer:
        """As a kubelet adds a pod: again while no address has rested yet."""
        until = time.monotonic() + 30
        while True:
            answer = await self.world.cni(NODE, "ADD", container, space, reference)
            if not answer.code:
                return answer
            again = answer.code == TRY_AGAIN_LATER and time.monotonic() < until
            assert again, f"{answer.body}\n{self.world.tails()}"
            await asyncio.sleep(0.1)

    async def rest(self) -> None:
        await asyncio.sleep(QUIET)

    async def look(self) -> dict[str, Memory]:
        """Each agent's memory. An agent that ended is a failure, with its last words."""
        assert (fallen := self.world.fallen()) == [], [self.world.log(name)[-4000:] for name in fallen]
        found = await asyncio.gather(*(asyncio.to_thread(look, self.probes, name) for name in AGENTS))
        return dict(zip(AGENTS, found, strict=True))

    async def growth(self, name: str) -> list[str]:
        return await asyncio.to_thread(growth, self.probes, name)


def policy(namespace: str, number: int, pods: int) -> dict[str, Any]:
    """Selects one pod of the round; lets others in by label, by namespace and by address."""
    peers = [
        {"podSelector": {"matchLabels": {"app": f"{namespace}-{(number + 1) % max(pods, 1)}"}}},
        {"namespaceSelector": {"matchLabels": {"round": namespace.rpartition("-")[2]}}},
        {"ipBlock": {"cidr": f"10.{int(namespace.rpartition('-')[2]) % 200}.{number % 250}.0/24"}},
    ]
    return {
        "spec": {
            "podSelector": {"matchLabels": {"app": f"{namespace}-{number % max(pods, 1)}"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": 1000 + number}]}],
        }
    }


def service(number: int) -> dict[str, Any]:
    address = f"10.96.{number // 250 % 250}.{number % 250 + 1}"
    port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}
    return {"spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": [port]}}


def part(pod: str, address: str) -> dict[str, Any]:
    """A slice of the round's Service with one endpoint."""
    return {
        "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv6" if ":" in address else "IPv4",
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True},
                "nodeName": NODE,
                "targetRef": {"kind": "Pod", "name": pod, "uid": pod},
            }
        ],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }


@asynccontextmanager
async def churning(folder: Path, label: str, agents: Sequence[str] = AGENTS) -> AsyncIterator[Churn]:
    """The node, its agents ready; gone afterwards."""
    config, probes = folder / "kubeconfig", folder / "probes"
    probes.mkdir()
    more = {**SETTINGS, "AIRMESH_KUBECONFIG": str(config), FOLDER: str(probes)}
    with minicluster(folder, label, (NODE,), False, **more) as world:
        world.program = ("-m", "tests.drills.probe")
        api = ApiServer()
        await api.start()
        config.write_text(
            f"current-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
            f"clusters: [{{name: a, cluster: {{server: '{api.url}'}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
        )
        churn = Churn(world, api)
        try:
            await _found(api)
            for name in agents:
                world.start(name)
            for number in range(AT_ONCE):
                churn.spaces.append(f"{world.label}-p{number}")
                await asyncio.to_thread(run, "ip", "netns", "add", churn.spaces[-1])
            await world.ready(NODE)
            yield churn
        finally:
            for space in churn.spaces:
                await asyncio.to_thread(run, "ip", "netns", "del", space)
            await api.stop()


async def _found(api: ApiServer) -> None:
    """The cluster before anything happens in it."""
    await api.put("Namespace", {"metadata": {"uid": "cluster-uid-1"}}, name="kube-system")
    addresses = [{"type": "InternalIP", "address": address} for address in ("172.30.0.11", "fd00:172:30::11")]
    conditions = [{"type": "Ready", "status": "True"}]
    await api.put("Node", {"spec": {}, "status": {"addresses": addresses, "conditions": conditions}}, name=NODE)
    for name, cidr, size in POOLS:
        await api.put("IPPool", {"spec": {"cidr": cidr, "blockSize": size}}, name=name)
