"""``python -m services.routing.remove [HOST]``: takes away all routes and tunnel devices of this service, to uninstall.

Run in the node's network namespace when the agent has ended. Only what is ours goes, routes by protocol and metric,
learnt ones with the next hop objects that they name, devices by mark or group, and their entries with them, and the
process that runs BFD; a second run finds nothing to do. ``HOST`` is where the node's root is:
the state folder is below.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from services.routing.bfd import client
from services.routing.core.fib import Operation, Remove, RemoveDevice
from services.routing.kernel import Kernel, KernelFault
from services.routing.learnt import remove as remove_learnt

BFD = Path("var/lib/airmesh") / client.FOLDER


async def remove(host: Path) -> int:
    """How many routes, next hop objects and devices were taken away. Raises KernelFault, OSError."""
    await client.end(host / BFD)
    shutil.rmtree(host / BFD, ignore_errors=True)
    kernel = Kernel(())
    try:
        found = await kernel.snapshot()
        ours: list[Operation] = [Remove(route) for route in found.routes if route.is_ours]
        ours += [RemoveDevice(device.name, device.index) for device in found.devices if device.is_ours]
        refused = await kernel.apply(ours)
        if refused:
            raise KernelFault(f"the kernel keeps {len(refused)} routes and devices, first {refused[0].operation}")
        return len(ours) + await remove_learnt(kernel)
    finally:
        await kernel.close()


def main() -> int:
    """The exit code."""
    try:
        count = asyncio.run(remove(Path(*sys.argv[1:2] or "/")))
    except (KernelFault, OSError) as fault:
        print(f"routing.remove: {fault}; run the uninstall again", file=sys.stderr)  # noqa: T201 - a command
        return 1
    print(f"routing.remove: {count} routes, next hops and devices taken away")  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
