"""What a node of a lab is told where airmesh's agents are pods: it looks as a machine of its own does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lab.cluster import control, node, pods
from lab.paths import SOURCE, paths, settings
from lab.topology import plan

OF = paths("air", settings({})).node("n2")
KERNELS = {Path("/proc/sys/net"), Path("/sys/fs/cgroup"), Path("/dev/net")}
"""What the kernel shows each pod of its own, or all nodes of a machine share."""


def host_paths(found: Any) -> set[Path]:
    """All hostPath volumes of a manifest."""
    if isinstance(found, list):
        return {path for one in found for path in host_paths(one)}
    if not isinstance(found, dict):
        return set()
    own = {Path(found["hostPath"]["path"])} if "hostPath" in found else set()
    return own | host_paths(list(found.values()))


def test_each_node_has_a_folder_of_its_own_for_all_that_the_manifests_mount_from_nodes() -> None:
    files = (SOURCE / "deploy" / "kubernetes").rglob("*.yaml")
    mounted = {path for file in files for path in host_paths(list(yaml.safe_load_all(file.read_text())))}
    mounted_over = {*node.HOST_FOLDERS, node.BPFFS}
    assert not [path for path in mounted - KERNELS if not mounted_over.intersection((path, *path.parents))]
    assert not [folder for folder in mounted_over if not any(folder in (path, *path.parents) for path in mounted)]
    argv = node.apart(OF, ["containerd"], pods=True)
    for folder in node.HOST_FOLDERS:
        assert str(folder) in argv
        assert argv[argv.index(str(folder)) - 1] == f"{OF.state}/host{folder}"
    assert argv[argv.index(str(node.BPFFS)) - 1] == str(OF.bpffs)
    assert argv[-2:] == ["--", "containerd"]


def test_no_folder_of_a_lab_lies_where_a_node_has_its_own() -> None:
    for folder in node.HOST_FOLDERS:
        for lab in (OF.state, OF.run):
            assert folder not in (lab, *lab.parents)


def test_a_runtime_looks_for_the_network_where_runtimes_do() -> None:
    own, processes = node.containerd_config(OF, pods=True), node.containerd_config(OF)
    assert 'conf_dir = "/etc/cni/net.d"' in own
    assert 'bin_dir = "/opt/cni/bin"' in own
    assert "netns_mounts_under_state_dir = false" in own
    assert f'conf_dir = "{OF.cni_conf}"' in processes
    assert "netns_mounts_under_state_dir = true" in processes


def test_the_lab_says_to_airmesh_install_what_a_person_would() -> None:
    topology = plan("air", 3)
    said = pods.install_arguments(topology, "/sys/fs/cgroup/unified", "")
    assert f"{topology.control.fabric4}:{control.API_PORT}" in said
    assert "--tag" not in said
    assert pods.install_arguments(topology, "/x", "1.2")[-2:] == ["--tag", "1.2"]
    names = pods.image_names("1.2")
    assert "localhost/airmesh/nats:1.2" in names
    assert len(names) == 7
