"""The kinds of Kubernetes objects that an installation is made of, and where the API has them. Pure.

An object is a dictionary as the API spells it in JSON. Whatever is not in the table below is refused: what is rendered
is ours, so another kind is a mistake and no wish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Which object: its kind, namespace (empty: cluster-wide) and name."""

    version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        inside = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {inside}{self.name}"

    @property
    def path(self) -> str:
        """The object's path in the API; raises KeyError for a kind that is none of ours."""
        return f"{list_path(self.version, self.kind, self.namespace)}/{self.name}"


_PLURALS: Mapping[tuple[str, str], tuple[str, bool]] = {
    ("v1", "ConfigMap"): ("configmaps", True),
    ("v1", "Namespace"): ("namespaces", False),
    ("v1", "Node"): ("nodes", False),
    ("v1", "Pod"): ("pods", True),
    ("v1", "ResourceQuota"): ("resourcequotas", True),
    ("v1", "Secret"): ("secrets", True),
    ("v1", "Service"): ("services", True),
    ("v1", "ServiceAccount"): ("serviceaccounts", True),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"): ("customresourcedefinitions", False),
    ("apps/v1", "DaemonSet"): ("daemonsets", True),
    ("apps/v1", "Deployment"): ("deployments", True),
    ("apps/v1", "StatefulSet"): ("statefulsets", True),
    ("batch/v1", "Job"): ("jobs", True),
    ("crd.projectcalico.org/v1", "IPPool"): ("ippools", False),
    ("projectcalico.org/v3", "IPPool"): ("ippools", False),
    ("policy/v1", "PodDisruptionBudget"): ("poddisruptionbudgets", True),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): ("clusterroles", False),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): ("clusterrolebindings", False),
    ("rbac.authorization.k8s.io/v1", "Role"): ("roles", True),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): ("rolebindings", True),
}
"""(apiVersion, kind) → the API's plural, and whether it lies in a namespace."""

_FIRST = ("Namespace", "CustomResourceDefinition", "ResourceQuota", "ServiceAccount", "ClusterRole", "Role")
"""Kinds that others need, in their order; the rest follow, workloads last."""
WORKLOADS = ("StatefulSet", "Deployment", "DaemonSet")
"""Kinds that run pods and roll out, in the order of their dependence: the bus, cluster services, nodes."""


def plural(version: str, kind: str) -> str:
    """The API's name of a kind in paths and rules; raises KeyError for one that is none of ours."""
    return _PLURALS[version, kind][0]


def group(version: str) -> str:
    """The API group of an `apiVersion`; empty for the core group."""
    return version.rpartition("/")[0]


def list_path(version: str, kind: str, namespace: str = "") -> str:
    """Where the objects of a kind are listed; of all namespaces where none is given. Raises KeyError."""
    name, namespaced = _PLURALS[version, kind]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{name}" if namespaced and namespace else f"{root}/{name}"


def ref(found: Mapping[str, Any]) -> Ref:
    """Which object this is; raises KeyError where it does not say."""
    metadata = found["metadata"]
    return Ref(found["apiVersion"], found["kind"], metadata.get("namespace", ""), metadata["name"])


def order(found: Mapping[str, Any]) -> tuple[int, Ref]:
    """Sorts objects so that each comes after those that it needs."""
    kind = found["kind"]
    if kind in _FIRST:
        return _FIRST.index(kind), ref(found)
    return len(_FIRST) + (1 + WORKLOADS.index(kind) if kind in WORKLOADS else 0), ref(found)
