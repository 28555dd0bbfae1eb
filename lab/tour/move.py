"""Moves a StatefulSet's pod to another node under a stream of requests, and measures the interruption.

The node is cordoned, the pod deleted, and the StatefulSet's controller makes it anew where the scheduler finds room.
The cordon is lifted on every way out. The beat is a UDP echo every 5 ms, one for each family, sent to the pod's own
addresses: if these stay, the beat comes back by itself, and the longest silence is the gap that a client feels.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from lab.topology import LabError
from lab.tour.probes import Move, Pod, parse_pod
from lab.tour.shell import Hands
from proto.net import host_port

_BEAT_SECONDS = 60
_READY_SECONDS = 40.0
_HEARD_SECONDS = 10.0
_WARM = 0.5
"""Seconds of beats before the move, so that the silence has a beginning."""
PEER = "prod/monitor"
"""Workload that the policies let feel the pulse."""
PULSE = "pulse"
"""Name of the port that echoes it."""


async def move(hands: Hands, before: Pod, pods: Sequence[Pod], say: Callable[[str], None]) -> Move:
    """The pod moved, and what its peer felt. Raises `LabError` when there is no peer or no new pod in time."""
    peer = next((pod for pod in pods if pod.workload == PEER), None)
    port = next((one for one in before.ports if one.name == PULSE), None)
    if peer is None or port is None:
        raise LabError(f"no pod of {PEER}, or no port named {PULSE} at {before.full_name}: apply examples/shop")
    async with AsyncExitStack() as undo:
        beats = {
            f"IPv{address.version}": await undo.enter_async_context(
                hands.beating(peer.full_name, host_port(address, port.number), _BEAT_SECONDS)
            )
            for address in before.addresses
        }
        await asyncio.sleep(_WARM)
        await hands.kubectl("cordon", before.node)
        undo.push_async_callback(hands.kubectl, "uncordon", before.node)
        say(f"{before.node} cordoned, {before.full_name} deleted")
        began, deleted = time.monotonic(), time.time()
        await hands.kubectl("delete", "pod", "--namespace", before.namespace, before.name, "--wait=false")
        after = await _successor(hands, before)
        seconds = time.monotonic() - began
        say(f"{after.full_name} ready on {after.node}")
        heard = await asyncio.gather(*(_gap(running, deleted * 1000) for running in beats.values()))
    gaps = tuple((family, gap) for family, gap in zip(beats, heard, strict=True) if gap is not None)
    return Move(before=before, after=after, gaps_ms=gaps if len(gaps) == len(beats) else (), seconds=seconds)


async def _successor(hands: Hands, before: Pod) -> Pod:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        for item in await hands.objects("pods", before.namespace):
            pod = parse_pod(item)
            if pod.name == before.name and pod.uid != before.uid and pod.ready:
                return pod
        await asyncio.sleep(0.15)
    raise LabError(f"{before.full_name} was deleted, but no new one was ready within {_READY_SECONDS:.0f} s")


async def _gap(running: asyncio.subprocess.Process, since_ms: float) -> float | None:
    """The longest silence in ms that ended after ``since_ms`` (unix); None when the beat was never heard again."""
    assert running.stdout is not None
    longest: float | None = None
    deadline = time.monotonic() + _HEARD_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left):
                line = await running.stdout.readline()
        except TimeoutError:
            break
        if not line:
            break
        output = json.loads(line)
        gap = float(output.get("gap_ms", 0.0))
        if "gap_ms" not in output or output["began_unix_ms"] + gap < since_ms:
            continue  # the beat's own start, or its summary
        longest = max(longest or 0.0, gap)
        deadline = min(deadline, time.monotonic() + 1.0)  # heard again; a moment more for a second silence
    return longest
