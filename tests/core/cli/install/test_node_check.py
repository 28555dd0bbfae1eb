"""What a node lacks is named, one clear sentence each, with what brings it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.install.findings import Weight
from cli.install.node_check import Folders, judge
from linux.features import CAPABILITIES, Features, Mount, parse_capabilities, parse_mounts, version_of

CONF, BIN = Path("/etc/cni/net.d"), Path("/opt/cni/bin")
GOOD = Features(
    release="6.8.0-45-generic",
    capabilities=frozenset(CAPABILITIES),
    mounts=(Mount(point="/sys/fs/bpf", kind="bpf"), Mount(point="/sys/fs/cgroup", kind="cgroup2")),
    bpf="",
    tcx="",
    clsact="",
    wireguard="",
    tun=True,
)
FOLDERS = Folders(writable=(CONF, BIN), configurations=("10-airmesh.conflist",), executable=True)


def test_a_node_that_has_all_is_well() -> None:
    assert {one.weight for one in judge(GOOD, FOLDERS)} == {Weight.WELL}


@pytest.mark.parametrize(
    ("change", "sentence", "remedy"),
    [
        ({"release": "5.4.0"}, "Linux 5.4.0 is too old", "boot Linux 5.10"),
        ({"release": "4.18.0-553.el8"}, "Linux 4.18.0-553.el8 is too old", "boot Linux 5.10"),
        ({"capabilities": frozenset({"BPF", "NET_ADMIN"})}, "this process lacks SYS_ADMIN, SYS_PTRACE", "as root"),
        ({"bpf": "Operation not permitted"}, "no map can be made: Operation not permitted", "allow bpf(2)"),
        ({"mounts": GOOD.mounts[1:]}, "bpffs is not mounted at /sys/fs/bpf", "mount -t bpf bpffs /sys/fs/bpf"),
        (
            {"mounts": (Mount(point="/sys/fs/bpf", kind="sysfs"), GOOD.mounts[1])},
            "bpffs is not mounted",
            "mount -t bpf",
        ),
        ({"mounts": GOOD.mounts[:1]}, "it is mounted nowhere", "unified_cgroup_hierarchy"),
        ({"tcx": "Invalid argument", "clsact": "No such file"}, "neither: tcx: Invalid argument", "sch_ingress"),
    ],
)
def test_what_is_missing_is_named(change: dict[str, Any], sentence: str, remedy: str) -> None:
    found = [one for one in judge(replace(GOOD, **change), FOLDERS) if one.weight is Weight.WRONG]
    assert len(found) == 1
    assert sentence in found[0].found
    assert remedy in found[0].remedy


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tcx": "Invalid argument"}, "no tcx before Linux 6.6"),
        ({"clsact": "No such file or directory"}, "tcx alone"),
        ({"wireguard": "Operation not supported"}, "wireguard-go in the container of routing"),
        ({"wireguard": "Operation not supported", "tun": False}, "neither in the kernel (Operation not supported) nor"),
        ({"mounts": (GOOD.mounts[0], Mount(point="/sys/fs/cgroup/unified", kind="cgroup2"))}, "beside version 1"),
    ],
)
def test_what_works_another_way_is_a_note(change: dict[str, Any], sentence: str) -> None:
    found = [one for one in judge(replace(GOOD, **change), FOLDERS) if one.weight is not Weight.WELL]
    assert [one.weight for one in found] == [Weight.NOTE]
    assert sentence in found[0].found


@pytest.mark.parametrize(
    ("change", "weight", "sentence"),
    [
        ({"writable": (BIN,)}, Weight.WRONG, "/etc/cni/net.d cannot be written to"),
        (
            {"configurations": ("05-flannel.conflist", "10-airmesh.conflist")},
            Weight.NOTE,
            "05-flannel.conflist comes before",
        ),
        ({"executable": False}, Weight.WRONG, "/opt/cni/bin/airmesh-cni is not"),
        ({"configurations": (), "executable": False}, None, ""),
    ],
)
def test_the_runtime_s_folders(change: dict[str, Any], weight: Weight | None, sentence: str) -> None:
    found = [one for one in judge(GOOD, replace(FOLDERS, **change)) if one.weight is not Weight.WELL]
    assert [one.weight for one in found] == ([weight] if weight else [])
    assert all(sentence in one.found for one in found)


def test_proc_is_read_as_proc_writes_it() -> None:
    mounts = parse_mounts("bpf /sys/fs/bpf bpf rw,nosuid 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nshort\n")
    assert mounts == GOOD.mounts
    assert parse_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n") == frozenset(CAPABILITIES)
    assert parse_capabilities("CapEff:\t00000000a80425fb\n") == {"NET_RAW"}
    assert parse_capabilities("") == frozenset()
    assert [version_of(one) for one in ("6.1.0-18-amd64", "5.15", "x")] == [(6, 1), (5, 15), (0, 0)]
