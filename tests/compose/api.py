"""An API server for compose.yaml: the stub of the cluster service's tests, with a node and two pools, on loopback.

Run in the network namespace of the project's `host`: `python -m tests.compose.api PORT`.
"""

from __future__ import annotations

import asyncio
import sys

from tests.shell.cluster.apiserver import ApiServer

ADDRESS = "10.198.77.21"
POOLS = {"pods4": ("10.244.0.0/16", 26), "pods6": ("fd00:10:244::/56", 122)}


async def serve(port: int) -> None:
    api = ApiServer()
    api._port = port
    for name in ("kube-system", "default"):
        await api.put("Namespace", {}, name=name)
    status = {
        "addresses": [{"type": "InternalIP", "address": ADDRESS}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    await api.put("Node", {"spec": {}, "status": status}, name="n1")
    for name, (cidr, size) in POOLS.items():
        await api.put("IPPool", {"spec": {"cidr": cidr, "blockSize": size}}, name=name)
    await api.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
