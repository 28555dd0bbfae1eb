"""What agents have put into a node's kernel, told by the system's own tools and by the names of pins."""

from __future__ import annotations

import os
import time
from pathlib import Path

from linux import bpf
from tests.labkit import Lab

DRIFT_SECONDS = 20.0
"""The slowest full pass is every 15 s."""


def bpf_links(lab: Lab, node: str) -> list[Path]:
    """Pins of the programs that hang by bpf links: the uplink's and the sockets' (a filter's pin has a number)."""
    return sorted(pin for pin in lab.where.node(node).bpffs.glob("**/v*/links/*/*") if "-" not in pin.name)


def _target(pin: Path) -> str:
    """``<where>/<hook> <ifindex or cgroup>``; 0 when it hangs in the air."""
    fd = bpf.pinned(pin)
    target = bpf.link_info(fd).target
    os.close(fd)
    return f"{pin.parent.name}/{pin.name} {target}"


def kernel_state(lab: Lab, node: str) -> dict[str, list[str]]:
    """What the agents have put into a node's kernel, as the system's own tools tell it."""
    asked = {
        "routes": ("ip", "route", "show", "table", "all"),
        "routes6": ("ip", "-6", "route", "show", "table", "all"),
        "rules": ("ip", "rule"),
        "rules6": ("ip", "-6", "rule"),
        "links": ("ip", "-o", "link", "show"),
        "qdiscs": ("tc", "qdisc", "show"),
        "nft": ("nft", "list", "ruleset"),
    }
    reported = {what: sorted(lab.inside(node, *command).splitlines()) for what, command in asked.items()}
    links = [line.split(": ")[1].split("@")[0] for line in reported["links"]]
    reported["bpf links"] = [_target(pin) for pin in bpf_links(lab, node)]
    reported["filters"] = [
        f"{link} {side} {line.split('bpf')[-1].split(' id ')[0]}"
        for link in links
        for side in ("ingress", "egress")
        for line in lab.inside(node, "tc", "filter", "show", "dev", link, side).splitlines()
        if "direct-action" in line
    ]
    return reported


def settled(lab: Lab, node: str) -> dict[str, list[str]]:
    """The kernel's state once it is the same twice: links of pods that ended just before go a moment later."""
    end = time.monotonic() + DRIFT_SECONDS
    before: dict[str, list[str]] = {}
    while True:
        try:
            now = kernel_state(lab, node)
        except AssertionError as gone:
            if "Cannot find device" not in str(gone) or time.monotonic() > end:
                raise
            continue
        if now == before:
            return now
        assert time.monotonic() < end, "the node's kernel never rests"
        before = now
        time.sleep(1)


def left(lab: Lab, node: str) -> dict[str, object]:
    """Everything that a restart could leave behind on a node."""
    root = lab.where.node(node).bpffs
    pins = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.name.endswith(".debug"))
    return {**settled(lab, node), "pins": pins}
