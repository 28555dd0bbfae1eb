"""What is applied to CoreDNS' objects: the Corefile that ``dns`` decided and the number of replicas.

Refuses a decision for any other namespace: only kube-system/coredns is ours to write. The Deployment itself belongs to
whoever installed CoreDNS; as long as it is not there, its replicas are nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proto.dns import CoreDNSDecision
from proto.objects import ConfigMap, Deployment
from services.cluster.core.workloads import COREDNS

MANAGER = "airmesh-dns"
COREFILE = "Corefile"
_NAMESPACE, _NAME = COREDNS
CONFIG_MAP_PATH = f"/api/v1/namespaces/{_NAMESPACE}/configmaps/{_NAME}"
DEPLOYMENT_PATH = f"/apis/apps/v1/namespaces/{_NAMESPACE}/deployments/{_NAME}"


def steps(
    decision: CoreDNSDecision, config: ConfigMap | None, deployment: Deployment | None
) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Paths and server-side apply bodies that bring CoreDNS to the decision; none when it is there."""
    if decision.namespace != _NAMESPACE:
        return ()
    metadata = {"name": _NAME, "namespace": _NAMESPACE}
    result: list[tuple[str, Mapping[str, Any]]] = []
    if config is None or dict(config.content).get(COREFILE) != decision.corefile:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {COREFILE: decision.corefile}}
        result.append((CONFIG_MAP_PATH, body))
    if deployment is not None and deployment.replicas != decision.replicas:
        spec = {"replicas": decision.replicas}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        result.append((DEPLOYMENT_PATH, body))
    return tuple(result)
