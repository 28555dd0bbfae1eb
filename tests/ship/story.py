"""What a node's containers must be able to do, told step by step: where it stops says which right is missing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chassis.bus.client import Bus
from proto.objects import Pod
from tests.bpf.world import namespace, run
from tests.drills.minicluster import PodRef, minicluster_of, node_objects, pools
from tests.natsd import bus_of
from tests.ship.containers import Containers

SERVICES = ("ipam-1", "policy-1", "routing-n1", "dataplane-n1")
DEFAULT_RIGHTS = (
    "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+setfcap"
)
"""What a container runtime gives to a pod's process that asks for nothing."""
SMALLER = 1400
"""MTU that the uplink is given."""


class Stopped(AssertionError):
    """A step was not done in time: its name is the first argument."""


async def until(step: str, seconds: float, done: Callable[[], bool]) -> None:
    """Waits for a condition; raises Stopped."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise Stopped(step)
        await asyncio.sleep(0.1)


@contextmanager
def pod_process(mounted: Path) -> Iterator[None]:
    """A process with the rights of a pod, in a network namespace of its own; that is mounted outside of /run/netns, so
    who looks for it later finds it by its process. To be there before the agent's container, which sees no later mount.
    """
    command = ["unshare", "--net", "setpriv", "--bounding-set", f"-all,{DEFAULT_RIGHTS}", "--inh-caps", "-all"]
    running = subprocess.Popen([*command, "sleep", "600"])
    try:
        end = time.monotonic() + 10
        while Path(f"/proc/{running.pid}/comm").read_text().strip() != "sleep":
            assert time.monotonic() < end
            time.sleep(0.01)
        mounted.touch()
        run("mount", "--bind", f"/proc/{running.pid}/ns/net", str(mounted))
        yield
    finally:
        if os.path.ismount(mounted):
            run("umount", str(mounted))
        running.kill()
        running.wait()


async def node_story(
    folder: Path,
    label: str,
    identities: Mapping[str, str],
    *,
    rights: Mapping[str, tuple[str, ...]] | None = None,
    seconds: float = 60,
) -> None:
    """One node of containers becomes ready, starts pods, follows its uplink's MTU, and lets the pods go.

    `identities` are the services' images; `rights` replaces capabilities of services. Raises Stopped at the step that
    could not be done within `seconds`.
    """

    class Restricted(Containers):
        """With other rights."""

    Restricted.identities, Restricted.rights = identities, rights or {}
    elsewhere = folder / "n1" / "pod-two"
    with minicluster_of(Restricted, folder, label, ("n1",)) as world, pod_process(elsewhere):
        async with bus_of(world.nats, "cluster") as bus:
            await world.make_buckets(bus)
            await world.put(bus, *node_objects(("n1",)), *pools(four="10.244.0.0/16", six="fd00:10:244::/56"))
            for service in SERVICES:
                world.start(service)
            try:
                await until("ready", seconds, lambda: all(world.well(service) for service in SERVICES))
                await _pods(world, bus, elsewhere, seconds)
            except Stopped as stopped:
                unwell = {service: world.unwell(service) for service in SERVICES}
                raise Stopped(*stopped.args, unwell, world.tails()) from stopped


async def _pods(world: Containers, bus: Bus, elsewhere: Path, seconds: float) -> None:
    with namespace(f"{world.label}-pod") as own:
        paths = {"one": f"/run/netns/{own}", "two": str(elsewhere)}
        for name, path in paths.items():
            pod = Pod(namespace="shop", name=name, uid=f"uid-{name}", node="n1", labels=(("app", name),))
            await world.put(bus, pod)
            reference = PodRef("shop", name, pod.uid)
            answer = await world.cni("n1", "ADD", name, environment={"CNI_NETNS": path}, pod=reference)
            if answer.code:
                raise Stopped("add", answer.body)
            assert len(answer.addresses) == 2
        first, second = (f"--net={path}" for path in paths.values())
        to = json.loads(run("nsenter", second, "ip", "-j", "-4", "addr", "show", "eth0"))[0]["addr_info"][0]["local"]
        listening = subprocess.Popen(["nsenter", second, "nc", "-l", "-p", "8080"])
        try:
            await until("connect", seconds, lambda: _connects(first, to))
        finally:
            listening.kill()
            listening.wait()
        run("ip", "-n", world.netns("n1"), "link", "set", "fab0", "mtu", str(SMALLER))
        for where in (first, second):
            await until("mtu", seconds, lambda where=where: _mtu(where) == SMALLER)  # type: ignore[misc]
        for name, path in paths.items():
            if (answer := await world.cni("n1", "DEL", name, environment={"CNI_NETNS": path})).code:
                raise Stopped("del", answer.body)
        await until("gone", seconds, lambda: not world.pod_links("n1"))


def _connects(where: str, address: str) -> bool:
    return subprocess.run(["nsenter", where, "nc", "-z", "-w", "1", address, "8080"], check=False).returncode == 0


def _mtu(where: str) -> int:
    return int(json.loads(run("nsenter", where, "ip", "-j", "link", "show", "eth0"))[0]["mtu"])
