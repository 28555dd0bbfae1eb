"""deploy/kubernetes before a real API server: every field exists, every object is taken, every right is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.install.kinds import order, ref
from cli.install.kubernetes import Kubernetes
from tests.core.cluster.test_rights import granted
from tests.kubeapi import KubeApi

FOLDER = Path(__file__).parents[4] / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    argv = [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(FOLDER)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    return sorted((one for one in yaml.safe_load_all(said) if one), key=order)


@pytest.fixture
def api(kube_api: KubeApi) -> Iterator[Kubernetes]:
    with Kubernetes(str(kube_api.kubeconfig())) as opened:
        yield opened


def test_the_api_server_takes_every_object_and_knows_every_field(api: Kubernetes, rendered: list[Any]) -> None:
    (namespace,) = [one for one in rendered if one["kind"] == "Namespace"]
    api.apply(namespace)
    for one in rendered:
        made = api.apply(one, dry_run=True)
        assert ref(made) == ref(one)
        if one["kind"] in ("Deployment", "DaemonSet", "StatefulSet"):
            assert made["spec"]["template"]["spec"]["hostNetwork"] is True
            assert made["metadata"]["managedFields"][0]["manager"] == "airmesh"


def test_the_roles_let_cluster_do_what_it_does(api: Kubernetes, rendered: list[Any]) -> None:
    """Asked of the API server's own RBAC, for each call; and what no call needs is refused."""
    for one in rendered:
        if one["kind"] in ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"):
            api.apply(one)

    def may(namespace: str, resource: str, name: str, verb: str) -> bool:
        group, plural, *sub = resource.split("/")
        attributes = {"group": group, "resource": plural, "verb": verb, "namespace": namespace, "name": name}
        attributes["subresource"] = "/".join(sub)
        spec = {"user": "system:serviceaccount:airmesh-system:cluster", "resourceAttributes": attributes}
        asked = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = api.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asked)
        return bool(answer["status"]["allowed"])

    rights = granted()["cluster"]
    assert len(rights) > 20
    assert [right for right in rights if not may(*right)] == []
    for refused in (
        ("kube-system", "/secrets", "", "get"),
        ("airmesh-system", "/secrets", "airmesh-seed-ipam", "get"),
        ("kube-system", "/configmaps", "extension-apiserver-authentication", "patch"),
        ("", "/nodes", "", "delete"),
        ("", "/pods", "", "patch"),
        ("", "rbac.authorization.k8s.io/clusterroles", "", "patch"),
    ):
        assert not may(*refused), refused
