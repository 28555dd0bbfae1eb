"""Which certificates a lab has: users and groups as Kubernetes' RBAC knows them, names that clients verify."""

from pathlib import Path

from lab.cluster import pki
from lab.topology import plan

LEAVES = {leaf.file: leaf for leaf in pki.certificates(plan("air", 2))}


def test_components_are_who_rbac_says_they_are() -> None:
    assert {(leaf.file, leaf.user, leaf.group) for leaf in LEAVES.values() if leaf.client} == {
        ("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
        ("admin", "admin", "system:masters"),
        ("controllers", "system:kube-controller-manager", ""),
        ("scheduler", "system:kube-scheduler", ""),
        ("airmesh", "airmesh:cluster", "airmesh"),
        ("kubelet-n1", "system:node:n1", "system:nodes"),
        ("kubelet-n2", "system:node:n2", "system:nodes"),
    }


def test_the_api_server_is_verified_by_pods_nodes_and_the_port_forward() -> None:
    names = {"kubernetes.default.svc", "10.96.0.1", "fd00:10:96::1", "172.30.0.2", "127.0.0.1", "fd00:172:30::2"}
    assert names <= set(LEAVES["apiserver"].names)


def test_a_leaf_is_for_one_use_and_signs_nothing() -> None:
    client = pki.leaf_argv(LEAVES["kubelet-n1"], Path("/p"))
    server = pki.leaf_argv(LEAVES["serving-n1"], Path("/p"))
    assert "extendedKeyUsage=clientAuth" in client
    assert "extendedKeyUsage=serverAuth" in server
    assert "basicConstraints=critical,CA:FALSE" in client
    assert client[client.index("-subj") + 1] == "/O=system:nodes/CN=system:node:n1"
    assert "subjectAltName=DNS:n1,IP:172.30.0.11,IP:fd00:172:30::11" in server
    assert not any("subjectAltName" in word for word in client)
