"""An API server for compose.yaml: the stub of the cluster service's tests, with a node and two pools, on loopback.

Run in the network namespace of the project's `host`: `python -m tests.compose.api PORT`. Each line of its stdin is an
object to put: `[kind, object, namespace, name]`.
"""

from __future__ import annotations

import asyncio
import json
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
    given = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(given), sys.stdin)
    while line := await given.readline():
        kind, written, namespace, name = json.loads(line)
        await api.put(kind, written, namespace, name)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
