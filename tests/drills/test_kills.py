"""Services, the bus and the kernel's own state are taken away while traffic runs: nothing that is allowed breaks,
nothing that is forbidden passes, and everything comes back by itself.

Agents are processes of the lab or, with `AIRMESH_TEST_LAB` of a lab whose agents are pods, their containers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from linux import bpf
from services.dataplane.core.datapath.maps import MAPS
from tests.drills.node_kernel import DRIFT_SECONDS, bpf_links, kernel_state, left, settled
from tests.drills.soak import Monitor
from tests.drills.store import Janitor, janitor
from tests.drills.traffic import (
    SERVICES,
    Traffic,
    agents,
    asleep,
    bus_down,
    copies,
    reborn,
    restart,
    servers,
    street,
    well,
)
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.uncontended]

AWAITED = "has not reached this node's watch yet"
READY_SECONDS = 4.0
"""An agent is ready when its views are, not at its next full pass (5 s). The best turn counts; twice what the
machine takes then to start an interpreter with the agents' modules comes on top: machines are busy.
"""
NATS_MB = 6
"""MiB by which what a server holds may grow. A killed agent's consumers, 0.9 MB for the two of a node, go when their
reader has been away for ``INACTIVE``; what was not collected is no leak, so pages (VmRSS) say little.
"""
NATS_SECONDS = 200
"""``INACTIVE``, and two minutes in which Go's runtime collects at least once."""
OWN_MAPS = (
    "am_links", "am_endpoints", "am_ipcache", "am_cidrs", "am_subjects", "am_selected", "am_scope_peer",
    "am_scope_port", "am_scope_rule", "am_services", "am_backends", "am_members", "am_cookies",
)  # fmt: skip
"""Maps that only the agent writes: their bytes must come back. (Of budgets, the keys.)"""


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Traffic]:
    with street(lab) as made:
        yield made


@pytest.fixture(scope="module")
def store(lab: Lab) -> Iterator[Janitor]:
    with janitor(lab) as made:
        yield made


def one_of_each(lab: Lab) -> list[str]:
    """A copy of each service, agents of two nodes, a NATS server."""
    first = [copies(lab, service)[0] for service in SERVICES]
    return [*first, "routing-n1", "dataplane-n2", "dataplane-n1", servers(lab)[0]]


def test_each_service_is_killed_in_turn(lab: Lab, traffic: Traffic) -> None:
    for name in one_of_each(lab):
        reborn(lab, name, lab.kill(name))
        traffic.open()
        traffic.shut()
        traffic.unbroken()
    well(lab)
    traffic.unbroken()


def test_all_are_killed_at_once(lab: Lab, traffic: Traffic) -> None:
    names = [*agents(lab), *servers(lab)]
    gone = {name: lab.kill(name) for name in names}
    for name, pid in gone.items():
        reborn(lab, name, pid)
    well(lab)
    traffic.open()
    traffic.shut()
    traffic.unbroken()


def _pod_is_known(lab: Lab, store: Janitor, traffic: Traffic, name: str) -> bool:
    """Its object has reached the bus, and n1 has acknowledged policy that covers it."""
    held = store.read("objects", "acks")
    key = f"core.pod.n1.{traffic.space.namespace}.{name}"
    known = held["objects"].get(key)
    return known is not None and held["acks"]["n1"].body["rules"]["sequence"] >= known.sequence


def _is_ready(lab: Lab, traffic: Traffic, name: str) -> bool:
    said = lab.get("pod", "-n", traffic.space.namespace, name)["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in said)


def _down(lab: Lab, traffic: Traffic, store: Janitor, until_refused: bool) -> dict[str, int]:
    """The bus is lost between a pod's object and its start; last sequences of the buckets from before."""
    with ExitStack() as down:
        with asleep(lab, "kubelet-n1"):
            traffic.space.pod("early", "n1", "early", wait=False)
            lab.until("its object is everywhere", lambda: _pod_is_known(lab, store, traffic, "early"))
            before = {bucket: store.last_sequence(bucket) for bucket in ("endpoints", "identities")}
            down.enter_context(bus_down(lab))
        traffic.space.ready("early")
        traffic.space.pod("late", "n1", "late", wait=False)
        traffic.edit("friend", "guest")  # learnt by nobody yet
        lab.until("the runtime is told to come again", lambda: not until_refused or _refused(lab, traffic, "late"), 60)
        time.sleep(1)
        assert not _is_ready(lab, traffic, "late")
        traffic.unbroken()
        assert not traffic.guest.report()["breaches"]
    return before


def _refused(lab: Lab, traffic: Traffic, name: str) -> bool:
    """The kubelet was told why, and will come again (containerd leaves the code, 11, out)."""
    events = lab.get("events", "-n", traffic.space.namespace)["items"]
    mine = [one for one in events if one["involvedObject"]["name"] == name]
    return any("FailedCreatePodSandBox" in one["reason"] and AWAITED in one["message"] for one in mine)


@pytest.mark.parametrize("until_refused", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_the_bus_a_pod_starts_from_its_nodes_block(
    lab: Lab, traffic: Traffic, store: Janitor, until_refused: bool
) -> None:
    well(lab)
    before = _down(lab, traffic, store, until_refused)
    traffic.space.ready("late")
    lab.until("the edit is in force", lambda: bool(traffic.guest.report()["breaches"]), 30)
    traffic.shut()
    well(lab)
    for bucket, sequence in before.items():
        written = [key for key, held in store.read(bucket)[bucket].items() if held.sequence > sequence]
        assert store.last_sequence(bucket) - sequence == len(written), f"{bucket}: something was written twice"
    traffic.unbroken()
    lab.kubectl("delete", "pod", "-n", traffic.space.namespace, "early", "late")


def _maps(lab: Lab, node: str) -> dict[str, dict[bytes, bytes]]:
    """Bytes of the maps that the agent of a node writes."""
    (pins,) = lab.where.node(node).bpffs.glob("**/v*/maps")
    specs = {spec.name: spec for spec in MAPS}
    found = {}
    for name in OWN_MAPS:
        spec, fd = specs[name], bpf.pinned(next(pins.glob(f"{name}-*")))
        entries: dict[bytes, bytes] = {}
        for count, keys, values in bpf.lookup_batch(fd, spec.key_size, spec.value_size):
            for i in range(count):
                k, v = spec.key_size, spec.value_size
                entries[bytes(keys[i * k : i * k + k])] = bytes(values[i * v : i * v + v])
        found[name] = entries
        os.close(fd)
    return found


def _meaning(maps: dict[str, dict[bytes, bytes]]) -> dict[str, Any]:
    """The maps, with each Service's backends in place of the numbers that it and they have: those are given anew."""
    services, backends, members = (maps[name] for name in ("am_services", "am_backends", "am_members"))
    served = {
        key: (
            value[4:],
            sorted(backend for of, backend in backends.items() if of[:4] == value[:4]),
            sorted(of[4:] for of in members if of[:4] == value[:4]),
        )
        for key, value in services.items()
    }
    rest = {name: held for name, held in maps.items() if name not in ("am_services", "am_backends", "am_members")}
    return {**rest, "served": served}


def _delete_entries(lab: Lab, node: str) -> None:
    (pins,) = lab.where.node(node).bpffs.glob("**/v*/maps")
    for name, entries in _maps(lab, node).items():
        fd = bpf.pinned(next(pins.glob(f"{name}-*")))
        for key in entries:
            bpf.delete(fd, key)
        os.close(fd)


def _by_hand(lab: Lab, node: str) -> None:
    """Take away routes, the nft table, programs, map entries."""
    for family in ("-4", "-6"):
        for protocol in ("186", "187"):
            lab.inside(node, "ip", family, "route", "flush", "proto", protocol)
    lab.inside(node, "nft", "delete", "table", "inet", "airmesh")
    for line in lab.inside(node, "tc", "qdisc", "show").splitlines():
        if "clsact" in line:
            lab.inside(node, "tc", "qdisc", "del", "dev", line.split()[4], "clsact")
    for pin in bpf_links(lab, node):
        fd = bpf.pinned(pin)
        bpf.link_detach(fd)
        os.close(fd)
    _delete_entries(lab, node)


def test_what_is_deleted_by_hand_comes_back(lab: Lab, traffic: Traffic) -> None:
    well(lab)
    traffic.unbroken()
    kernel, maps = settled(lab, "n1"), _maps(lab, "n1")
    assert all(kernel.values()), kernel
    assert all(maps[name] for name in OWN_MAPS if name != "am_cidrs"), {name: len(m) for name, m in maps.items()}
    _by_hand(lab, "n1")
    lab.until("routes, filters and programs are back", lambda: kernel_state(lab, "n1") == kernel, DRIFT_SECONDS)
    lab.until("the maps' entries are back", lambda: _meaning(_maps(lab, "n1")) == _meaning(maps), DRIFT_SECONDS)
    traffic.flowing()
    time.sleep(2.5)  # a datagram sent while the routes were gone counts as lost two seconds later
    for program in (*traffic.knockers.values(), traffic.listener, traffic.outside):
        program.report()  # while programs were gone nothing judged
    assert not traffic.sender.report()["broken"]
    time.sleep(1)
    traffic.unbroken()


def _ready(lab: Lab, name: str) -> bool:
    service, _, node = name.partition("-")
    port = {"routing": 9405 if lab.pods else 9401, "dataplane": 9406 if lab.pods else 9402}[service]
    with suppress(AssertionError):
        return "200" in lab.inside(
            node, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"127.0.0.1:{port}/readyz"
        )
    return False


def _start_seconds() -> float:
    """What an interpreter with the modules of both agents takes to start."""
    began = time.monotonic()
    importing = "import services.routing.app, services.dataplane.app"
    subprocess.run([sys.executable, "-c", importing], check=True, timeout=60)
    return time.monotonic() - began


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _memory(pid: int) -> int:
    """Resident KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def _held(lab: Lab) -> float:
    """MiB that the NATS servers hold."""
    hosts = [host.name for host in lab.topology.nodes] if lab.pods else ["cp"]
    return sum(Monitor(lab, host).held() for host in hosts)


@pytest.mark.timeout(1800)  # in pods a kubelet waits between two starts: 18 s a restart
@pytest.mark.alone  # how soon an agent is ready is counted
@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_restarted_agents_leave_nothing_behind(lab: Lab, traffic: Traffic, times: int) -> None:
    names = ("routing-n3", "dataplane-n3")
    others = [copies(lab, service)[0] for service in ("cluster", "ipam", "policy")]
    others += [] if lab.pods else ["supervisor"]
    for name in names:
        restart(lab, name, killed=False)
    well(lab)
    remaining = left(lab, "n3")
    descriptors = {name: _descriptors(lab.pid(name)) for name in (*servers(lab), *names, *others)}
    held = _held(lab)
    memory = {name: _memory(lab.pid(name)) for name in (*names, *others)}
    took = []
    for attempt in range(times):
        allowed = READY_SECONDS + 2 * _start_seconds()
        began = time.monotonic()
        for name in names:
            restart(lab, name, killed=attempt % 2 == 0)
        for name in names:
            lab.until(f"{name} is ready", lambda name=name: _ready(lab, name))  # type: ignore[misc]
        took.append((time.monotonic() - began, allowed))
    assert lab.pods or any(one < most for one, most in took), took  # a kubelet starts what ends often after 5 s
    well(lab)
    traffic.unbroken()
    assert left(lab, "n3") == remaining
    for name, before in descriptors.items():
        assert _descriptors(lab.pid(name)) - before <= 3, name
    for name, before in memory.items():
        assert _memory(lab.pid(name)) - before < 12 * 1024, name
    most = held + NATS_MB * len(servers(lab))
    lab.until(f"nats holds at most {most:.1f} MiB, {held:.1f} before", lambda: _held(lab) < most, NATS_SECONDS)
