"""Makes and removes a lab's network namespaces with `ip -batch`: the shell around `topology.py`.

Promises that every command acts inside the lab's own namespaces; the machine's own links and routes are never named.
Refuses (LabError with the tool's own words) when `ip` does.
"""

import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import topology as plans
from lab.cluster import sysctls
from lab.topology import Host, LabError, Topology
from linux.netns import command

NETNS = Path("/run/netns")
_DEADLINE_SECONDS = 30


def run(argv: list[str], stdin: str = "") -> str:
    """Run a short command to its end; its standard output. Raises `LabError` with what it said on standard error."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{' '.join(argv)}: no answer within {_DEADLINE_SECONDS} s") from late
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def batch(commands: Iterable[str], namespace: str | None = None) -> None:
    """Give `ip` many commands in one process; stops at the first that fails."""
    inside = ["-n", namespace] if namespace else []
    run(["ip", *inside, "-batch", "-"], "\n".join(commands) + "\n")


def _write_sysctls(namespace: str, values: Mapping[str, str]) -> None:
    # /proc/sys/net shows the namespace of whoever opens it, so the shell that writes has to be inside.
    script = "\n".join(f"echo {value} > /proc/sys/net/{key}" for key, value in values.items())
    run(command(str(NETNS / namespace), "sh", "-ec", script))


def make(topology: Topology) -> None:
    """Make everything of the plan. Raises `LabError` (also when part of it exists: `down` first)."""
    batch(plans.namespace_commands(topology))
    # Before any link exists: `default` is what new links start with.
    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(_write_sysctls, *one) for one in sysctls.settings_of(topology).items()]:
            result.result()
        batch(plans.fabric_commands(topology), topology.fabric_namespace)
        if topology.router_namespace:
            batch(plans.router_commands(topology), topology.router_namespace)
        for switch in topology.switches:
            batch(plans.switch_commands(topology, switch), switch.namespace)
        if topology.switches:
            batch(plans.uplink_commands(topology.outside_uplinks), topology.fabric_namespace)
        list(pool.map(_configure, topology.hosts))


def _configure(host: Host) -> None:
    batch(plans.host_commands(host), host.namespace)


def existing(lab: str) -> list[str]:
    """Names of the lab's namespaces that are on the machine now."""
    if not NETNS.is_dir():
        return []
    return sorted(entry.name for entry in NETNS.iterdir() if entry.name.startswith(plans.prefix(lab)))


def remove(names: Iterable[str]) -> None:
    """Delete namespaces; one that is gone already is no error, and one that fails does not keep the others."""
    commands = [f"netns del {name}" for name in names]
    if commands:
        subprocess.run(
            ["ip", "-force", "-batch", "-"],
            input="\n".join(commands) + "\n",
            capture_output=True,
            text=True,
            timeout=_DEADLINE_SECONDS,
            check=False,
        )
