"""Services, the bus and the kernel's own state are taken away while traffic runs: nothing that is allowed breaks,
nothing that is forbidden passes, and everything comes back by itself."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from lab.cluster.mesh import NATS_MONITOR_PORT
from linux import bpf
from services.dataplane.core.datapath.maps import MAPS
from tests.drills.store import Janitor, janitor
from tests.drills.traffic import Traffic, agents, ask, asleep, held_down, reborn, street, well
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.uncontended]

ONE_OF_EACH = ("cluster", "ipam-1", "policy-1", "dns", "routing-n1", "dataplane-n2", "dataplane-n1", "nats")
DRIFT_SECONDS = 20.0
"""The slowest full pass is every 15 s."""
AWAITED = "has not reached this node's watch yet"
READY_SECONDS = 4.0
"""An agent is ready when its views are, not at its next full pass (5 s). The best turn counts: machines are busy."""
NATS_MB = 6
"""MB by which what the server holds may grow. A killed agent's consumers, 0.9 MB for the two of a node, go when their
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


def test_each_service_is_killed_in_turn(lab: Lab, traffic: Traffic) -> None:
    for name in ONE_OF_EACH:
        reborn(lab, name, lab.kill(name))
        traffic.open()
        traffic.shut()
        traffic.unbroken()
    well(lab)
    traffic.unbroken()


def test_all_are_killed_at_once(lab: Lab, traffic: Traffic) -> None:
    names = [*agents(lab), "nats"]
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
            down.enter_context(held_down(lab, "nats"))
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
    (pins,) = lab.where.node(node).bpffs.glob("v*/maps")
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
    (pins,) = lab.where.node(node).bpffs.glob("v*/maps")
    for name, entries in _maps(lab, node).items():
        fd = bpf.pinned(next(pins.glob(f"{name}-*")))
        for key in entries:
            bpf.delete(fd, key)
        os.close(fd)


def _bpf_links(lab: Lab, node: str) -> list[Path]:
    """Pins of the programs that hang by bpf links: the uplink's and the sockets' (a filter's pin has a number)."""
    return sorted(pin for pin in lab.where.node(node).bpffs.glob("v*/links/*/*") if "-" not in pin.name)


def _target(pin: Path) -> str:
    """``<where>/<hook> <ifindex or cgroup>``; 0 when it hangs in the air."""
    fd = bpf.pinned(pin)
    target = bpf.link_info(fd).target
    os.close(fd)
    return f"{pin.parent.name}/{pin.name} {target}"


def _kernel(lab: Lab, node: str) -> dict[str, list[str]]:
    """What the agents have put into a node's kernel, as the system's own tools tell it."""
    asked = {
        "routes": ("ip", "route", "show", "table", "all"),
        "routes6": ("ip", "-6", "route", "show", "table", "all"),
        "links": ("ip", "-o", "link", "show"),
        "qdiscs": ("tc", "qdisc", "show"),
        "nft": ("nft", "list", "ruleset"),
    }
    reported = {what: sorted(lab.inside(node, *command).splitlines()) for what, command in asked.items()}
    links = [line.split(": ")[1].split("@")[0] for line in reported["links"]]
    reported["bpf links"] = [_target(pin) for pin in _bpf_links(lab, node)]
    reported["filters"] = [
        f"{link} {side} {line.split('bpf')[-1].split(' id ')[0]}"
        for link in links
        for side in ("ingress", "egress")
        for line in lab.inside(node, "tc", "filter", "show", "dev", link, side).splitlines()
        if "direct-action" in line
    ]
    return reported


def _settled(lab: Lab, node: str) -> dict[str, list[str]]:
    """The kernel's state once it is the same twice: links of pods that ended just before go a moment later."""
    end = time.monotonic() + DRIFT_SECONDS
    before: dict[str, list[str]] = {}
    while True:
        try:
            now = _kernel(lab, node)
        except AssertionError as gone:
            if "Cannot find device" not in str(gone) or time.monotonic() > end:
                raise
            continue
        if now == before:
            return now
        assert time.monotonic() < end, "the node's kernel never rests"
        before = now
        time.sleep(1)


def _by_hand(lab: Lab, node: str) -> None:
    """Take away routes, the nft table, programs, map entries."""
    for family in ("-4", "-6"):
        for protocol in ("186", "187"):
            lab.inside(node, "ip", family, "route", "flush", "proto", protocol)
    lab.inside(node, "nft", "delete", "table", "inet", "airmesh")
    for line in lab.inside(node, "tc", "qdisc", "show").splitlines():
        if "clsact" in line:
            lab.inside(node, "tc", "qdisc", "del", "dev", line.split()[4], "clsact")
    for pin in _bpf_links(lab, node):
        fd = bpf.pinned(pin)
        bpf.link_detach(fd)
        os.close(fd)
    _delete_entries(lab, node)


def test_what_is_deleted_by_hand_comes_back(lab: Lab, traffic: Traffic) -> None:
    well(lab)
    traffic.unbroken()
    kernel, maps = _settled(lab, "n1"), _maps(lab, "n1")
    assert all(kernel.values()), kernel
    assert all(maps[name] for name in OWN_MAPS if name != "am_cidrs"), {name: len(m) for name, m in maps.items()}
    _by_hand(lab, "n1")
    lab.until("routes, filters and programs are back", lambda: _kernel(lab, "n1") == kernel, DRIFT_SECONDS)
    lab.until("the maps' entries are back", lambda: _meaning(_maps(lab, "n1")) == _meaning(maps), DRIFT_SECONDS)
    traffic.flowing()
    time.sleep(2.5)  # a datagram sent while the routes were gone counts as lost two seconds later
    for program in (*traffic.knockers.values(), traffic.listener, traffic.outside):
        program.report()  # while programs were gone nothing judged
    assert not traffic.sender.report()["broken"]
    time.sleep(1)
    traffic.unbroken()


def _ready(lab: Lab, name: str) -> bool:
    node = name.rpartition("-")[2]
    port = "9401" if name.startswith("routing") else "9402"
    with suppress(AssertionError):
        return "200" in lab.inside(
            node, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"127.0.0.1:{port}/readyz"
        )
    return False


def _restart(lab: Lab, name: str, *, killed: bool) -> None:
    old = lab.kill(name) if killed else lab.pid(name)
    ask(lab, "restart", name)
    reborn(lab, name, old)


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _memory(pid: int) -> int:
    """Resident KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def _held(lab: Lab) -> int:
    """KiB that the NATS server holds: what its last collection left, half of where the next begins (GOGC is 100)."""
    url = f"http://127.0.0.1:{NATS_MONITOR_PORT}/debug/vars"
    argv = ["nsenter", "-t", str(lab.pid("nats")), "-n", "curl", "-sf", "-m", "5", url]
    page = subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout
    return int(json.loads(page)["memstats"]["NextGC"]) // 2048


def _left(lab: Lab, node: str) -> dict[str, object]:
    """Everything that a restart could leave behind on a node."""
    root = lab.where.node(node).bpffs
    pins = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.name.endswith(".debug"))
    return {**_settled(lab, node), "pins": pins}


@pytest.mark.timeout(600)
@pytest.mark.alone  # how soon an agent is ready is counted
@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_restarted_agents_leave_nothing_behind(lab: Lab, traffic: Traffic, times: int) -> None:
    names, others = ("routing-n3", "dataplane-n3"), ("supervisor", "cluster", "ipam-1", "policy-1")
    for name in names:
        _restart(lab, name, killed=False)
    well(lab)
    left = _left(lab, "n3")
    descriptors = {name: _descriptors(lab.pid(name)) for name in ("nats", *names, *others)}
    held = _held(lab)
    memory = {name: _memory(lab.pid(name)) for name in (*names, *others)}
    took = []
    for attempt in range(times):
        began = time.monotonic()
        for name in names:
            _restart(lab, name, killed=attempt % 2 == 0)
        for name in names:
            lab.until(f"{name} is ready", lambda name=name: _ready(lab, name))  # type: ignore[misc]
        took.append(time.monotonic() - began)
    assert min(took) < READY_SECONDS, took
    well(lab)
    traffic.unbroken()
    assert _left(lab, "n3") == left
    for name, before in descriptors.items():
        assert _descriptors(lab.pid(name)) - before <= 3, name
    for name, before in memory.items():
        assert _memory(lab.pid(name)) - before < 12 * 1024, name
    most = held + NATS_MB * 1024
    lab.until(f"nats holds at most {most} KiB, {held} KiB before", lambda: _held(lab) < most, NATS_SECONDS)
