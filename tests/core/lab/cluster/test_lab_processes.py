"""What of a lab is found by looking at /proc, /sys and its folders: its own, never another's, and never who looks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.cluster import ledger, leftovers, namespaces
from lab.cluster.ledger import Entry
from lab.cluster.leftovers import Known, cgroups, containers, lab_processes, outside_files, shim_socket, unescape
from lab.paths import MARKER, Paths, Settings, paths


class Machine:
    """A /proc of this test's own, with the lab `air` on it."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.where: Paths = paths("air", Settings(labs=folder / "labs", run=folder / "run", cache=folder / "cache"))
        self.where.state.mkdir(parents=True)
        self.where.run.mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "mounts").write_text("")
        (folder / "netns").mkdir()
        self.folder = folder

    def has(
        self,
        pid: int,
        name: str = "sleep",
        *,
        environ: bytes = b"",
        parent: int = 1,
        state: str = "S",
        netns: str = "home",
    ) -> None:
        folder = self.proc / str(pid)
        (folder / "ns").mkdir(parents=True)
        target = self.folder / f"nsfs-{netns}"
        target.touch()
        os.link(target, folder / "ns" / "net")
        (folder / "environ").write_bytes(environ)
        (folder / "comm").write_text(f"{name}\n")
        rest = " ".join(["0"] * 17)
        (folder / "stat").write_text(f"{pid} ({name}) {state} {parent} {rest} {pid * 10} 1 1")

    def namespace(self, name: str) -> None:
        """A named one whose inode is that of the processes with ``netns=name``."""
        target = self.folder / f"nsfs-{name}"
        target.touch()
        os.link(target, self.folder / "netns" / name)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(leftovers, "PROC", made.proc)
    monkeypatch.setattr(namespaces, "NETNS", tmp_path / "netns")

    def start_time_of(pid: int, proc: Path = made.proc) -> int:
        try:
            return ledger.start_time((proc / str(pid) / "stat").read_text())
        except OSError:
            return 0

    monkeypatch.setattr(ledger, "start_time_of", start_time_of)
    monkeypatch.setattr(os, "getpid", lambda: 4000)
    made.has(1, "init")
    made.has(3999, "bash")
    made.has(4000, "python", parent=3999)
    return made


OURS = f"PATH=/bin\0{MARKER}=air\0HOME=/root\0".encode()


@pytest.mark.parametrize(
    ("environ", "ours"),
    [
        (OURS, True),
        (f"{MARKER}=air".encode(), True),
        (f"{MARKER}=air2\0".encode(), False),
        (f"{MARKER}=ai\0".encode(), False),
        (f"X{MARKER}=air\0".encode(), False),
        (f"NOTE={MARKER}=air\0".encode(), False),
        (b"", False),
        (b"\xff\0" * 10, False),
    ],
)
def test_a_process_is_known_by_the_mark_of_the_lab(machine: Machine, environ: bytes, ours: bool) -> None:
    machine.has(77, "etcd", environ=environ)
    assert lab_processes(machine.where) == ({77: "etcd"} if ours else {})


def test_a_process_in_a_namespace_of_the_lab_is_the_labs_whatever_its_environment(machine: Machine) -> None:
    for name in ("am-air-n1", "am-air2-n1", "other"):
        machine.namespace(name)
    machine.has(70, "pause", netns="am-air-n1")
    machine.has(71, "pause", netns="am-air2-n1")
    machine.has(72, "pause", netns="other")
    assert lab_processes(machine.where) == {70: "pause"}


def test_a_pods_namespace_is_known_by_its_mount_in_the_labs_folders(machine: Machine) -> None:
    inside = machine.where.run / "netns" / "cni-1"
    inside.parent.mkdir()
    os.link(machine.folder / "nsfs-home", machine.folder / "x")
    (machine.folder / "nsfs-pod").touch()
    os.link(machine.folder / "nsfs-pod", inside)
    (machine.proc / "self" / "mounts").write_text(f"nsfs {inside} nsfs rw 0 0\n")
    machine.has(80, "app", netns="pod")
    assert lab_processes(machine.where) == {80: "app"}


def test_the_ledger_gives_a_process_its_name_and_its_start_time_proves_it(machine: Machine) -> None:
    machine.has(90, "k8s")
    machine.has(91, "k8s")
    ledger.write(
        machine.where.ledger,
        ledger.encode(
            [Entry(name="etcd", argv=(), pid=90, started=900), Entry(name="old", argv=(), pid=91, started=1)]
        ),
    )
    assert lab_processes(machine.where) == {90: "etcd"}


def test_who_looks_is_never_named_nor_are_those_who_started_it(machine: Machine) -> None:
    """`lab down` run from a shell inside a lab must not end itself."""
    for pid in (3999, 4000):
        (machine.proc / str(pid) / "environ").write_bytes(OURS)
    machine.has(4001, "sleep", environ=OURS, parent=4000)
    assert lab_processes(machine.where) == {4001: "sleep"}


@pytest.mark.parametrize("state", ["Z", "X"])
def test_the_dead_are_not_there(machine: Machine, state: str) -> None:
    machine.has(77, "etcd", environ=OURS, state=state)
    assert lab_processes(machine.where) == {}


def test_a_process_that_ends_meanwhile_is_no_error(machine: Machine) -> None:
    machine.has(77, "etcd", environ=OURS)
    (machine.proc / "77" / "comm").unlink()
    (machine.proc / "78").mkdir()  # nothing in it any more
    (machine.proc / "not-a-pid").mkdir()
    assert lab_processes(machine.where) == {77: "?"}


IDS = ("aa11", "bb22", "cc33")


def test_containers_are_known_by_the_folders_of_the_labs_containerds(machine: Machine) -> None:
    below = machine.where.state
    for node, path in (
        ("n1", f"containerd/state/io.containerd.runtime.v2.task/k8s.io/{IDS[0]}"),
        ("n1", f"containerd/root/io.containerd.grpc.v1.cri/sandboxes/{IDS[1]}"),
        ("n2", f"containerd/state/io.containerd.grpc.v1.cri/containers/{IDS[2]}"),
        ("n2", "containerd/state/io.containerd.runtime.v2.task/moby/zz99"),
    ):
        (below / node / path).mkdir(parents=True)
    other = machine.where.state.parent / "air2" / "n1" / "containerd/root/io.containerd.grpc.v1.cri/sandboxes/dd44"
    other.mkdir(parents=True)
    assert containers(machine.where) == set(IDS)


def test_cgroups_of_containers_are_the_deepest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [tmp_path / "unified" / "k8s.io", tmp_path / "memory" / "k8s.io"]
    for root in roots:
        (root / IDS[0] / "child" / "leaf").mkdir(parents=True)
        (root / "other").mkdir()
    monkeypatch.setattr(leftovers, "cgroup_roots", lambda: roots)
    found = cgroups([IDS[0], "absent"])
    assert len(found) == 6
    assert all(found.index(path) < found.index(path.parent) for path in found if path.parent in found)
    assert not any(path.name == "other" for path in found)
    assert cgroups([]) == []


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders at fixed places, here."""
    for name, folder in (
        ("_CNI_RESULTS", "results"),
        ("_POD_LOG_LINKS", "logs"),
        ("_SHIM_SOCKETS", "s"),
    ):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(leftovers, name, tmp_path / folder)
    return tmp_path


def test_files_at_fixed_places_are_the_labs_by_container_or_target(machine: Machine, shared: Path) -> None:
    (shared / "results" / f"airmesh-{IDS[0]}-eth0").touch()
    (shared / "results" / "airmesh-zz99-eth0").touch()
    (shared / "logs" / "ours").symlink_to(machine.where.state / "n1" / "pod.log")
    (shared / "logs" / "theirs").symlink_to(f"{machine.where.state}2/n1/pod.log")
    (shared / "logs" / "file").touch()
    (machine.where.run / "n1").mkdir()
    address = machine.where.run / "n1" / "containerd.sock"
    address.touch()
    ours, theirs = shim_socket(address, IDS[0]), shim_socket(address, "zz99")
    for one in (ours, theirs):
        one.touch()
    assert set(outside_files(machine.where, [IDS[0], "bb22"])) == {
        shared / "results" / f"airmesh-{IDS[0]}-eth0",
        shared / "logs" / "ours",
        ours,
    }


def test_folders_that_are_not_there_hold_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CNI_RESULTS", "_POD_LOG_LINKS", "_SHIM_SOCKETS"):
        monkeypatch.setattr(leftovers, name, machine.folder / "absent")
    assert outside_files(machine.where, IDS) == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("/plain", "/plain"),
        (r"/a\040b", "/a b"),
        (r"/a\011b\012c", "/a\tb\nc"),
        (r"/a\134b", r"/a\b"),
        (r"/a\134040b", r"/a\040b"),
        (r"/a\041b", r"/a\041b"),
        ("", ""),
    ],
)
def test_a_mount_point_as_proc_writes_it(written: str, read: str) -> None:
    assert unescape(written) == read


def test_what_was_known_is_not_forgotten_when_the_folders_are_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "behind", lambda _pins: frozenset())
    (machine.where.state / "n1/containerd/root/io.containerd.grpc.v1.cri/sandboxes" / IDS[0]).mkdir(parents=True)
    machine.where.machine_routes.write_text("default via 10.0.0.1\n10.0.0.0/24 dev eth0\n")
    before = leftovers.remember(machine.where)
    assert before.containers == {IDS[0]}
    assert before.routes == frozenset({"default via 10.0.0.1", "10.0.0.0/24 dev eth0"})
    machine.where.machine_routes.unlink()
    (machine.where.state / "n1").rename(machine.folder / "moved")
    assert leftovers.remember(machine.where, before) == before
    assert leftovers.remember(machine.where) == Known()
