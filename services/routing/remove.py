"""``python -m services.routing.remove [HOST]``: takes away every route of this service, for an uninstall.

Run in the node's network namespace when the agent has ended. Only what is ours by protocol and metric goes; a second
run finds nothing to do. ``HOST``, the node's root, is what the dataplane's like asks for; nothing of ours lies there.
"""

from __future__ import annotations

import asyncio
import sys

from services.routing.core.fib import Remove
from services.routing.kernel import Kernel, KernelFault


async def remove() -> int:
    """How many routes were taken away. Raises KernelFault."""
    kernel = Kernel(())
    try:
        ours = [Remove(route) for route in (await kernel.snapshot()).routes if route.is_ours]
        refused = await kernel.apply(ours)
        if refused:
            raise KernelFault(f"the kernel keeps {len(refused)} routes, first {refused[0][0].route}")
        return len(ours)
    finally:
        await kernel.close()


def main() -> int:
    """The exit code."""
    try:
        count = asyncio.run(remove())
    except KernelFault as fault:
        print(f"routing.remove: {fault}; run the uninstall again", file=sys.stderr)  # noqa: T201 - a command
        return 1
    print(f"routing.remove: {count} routes taken away")  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
