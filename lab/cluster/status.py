"""What a lab is doing, as a few lines: its processes, nodes and pods, how to reach it, which labs there are."""

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.cluster import down, fabric, port_forward, up
from lab.cluster.api import Api, has_condition
from lab.cluster.launch import connect
from lab.cluster.mesh import observer_environment
from lab.cluster.record import read_record
from lab.paths import SOURCE, Paths, Settings, paths
from lab.topology import LabError, check_name


async def show(where: Paths, say: Callable[[str], None]) -> int:
    """Print the state; 0 when the lab is whole, 1 when it is not there or not whole."""
    record = read_record(where)
    if record is None:
        left = down.leftovers(where)
        say(f"lab {where.lab} is not there" + (f", but {len(left)} things of it are: run `down`" if left else ""))
        return 1
    try:
        launcher = await connect(where)
    except LabError as silence:
        say(str(silence))
        return 1
    states = await launcher.states()
    launcher.close()
    for name, state in states.items():
        again = f", started again {state.restarts} times" if state.restarts else ""
        say(
            f"  {name:<16} "
            + (f"pid {state.pid}{again}" if state.running else f"not running (exit {state.code}){again}")
        )
    api = Api(where, port_forward.read_ports(where.ports).api)
    for item in await api.items("/api/v1/nodes"):
        say(f"  node {item['metadata']['name']:<11} " + ("Ready" if has_condition(item, "Ready") else "NotReady"))
    pods = await api.items("/api/v1/pods")
    say(f"  pods: {sum(has_condition(pod, 'Ready') for pod in pods)} ready of {len(pods)}")
    say(f"  {fabric.summary(where)}")
    whole = await up.is_up(where) and all(state.running for state in states.values())
    say(f"lab {where.lab} is " + ("up" if whole else "not whole") + f"; logs in {where.logs}")
    return 0 if whole else 1


def environment_lines(where: Paths) -> Iterator[str]:
    """`export` lines for a shell. Raises `LabError` when the lab is not there."""
    ports = port_forward.read_ports(where.ports)
    if not ports.api:
        raise LabError(f"lab {where.lab} is not up: make lab LAB={where.lab}")
    values = {
        "KUBECONFIG": str(where.kubeconfig),
        **observer_environment(where, ports.nats),
    }
    for name, value in values.items():
        yield f"export {name}={shlex.quote(value)}"
    folders = f"{SOURCE / 'bin'}:{Path(sys.executable).parent}"
    yield f'export PATH={shlex.quote(folders)}:"$PATH"'


async def labs(given: Settings) -> list[str]:
    """One line a lab that has a folder."""
    lines = []
    for folder in sorted(given.labs.iterdir()) if given.labs.is_dir() else ():
        try:
            where = paths(check_name(folder.name), given)
        except LabError:
            continue
        record = read_record(where)
        shape = f"{record.nodes} nodes {record.fabric}" if record else "no record"
        lines.append(f"{folder.name:<12} {shape:<15} {'up' if await up.is_up(where) else 'not whole'}")
    return lines
