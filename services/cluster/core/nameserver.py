"""What is applied to CoreDNS' objects: the Corefile that ``dns`` decided and the number of replicas.

A Corefile is one string that people write, too: it is written over only where it is the very text that ``dns`` made its
decision of, in the version that the API server has now. Refuses a decision for any other namespace: only
kube-system/coredns is ours to write. The Deployment itself belongs to whoever installed CoreDNS; as long as it is not
there, its replicas are nobody's, and where an autoscaler sets them they are the autoscaler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proto.dns import CoreDNSDecision, digest_of
from proto.objects import ConfigMap, Deployment
from services.cluster.core.workloads import COREDNS

MANAGER = "airmesh-dns"
COREFILE = "Corefile"
_NAMESPACE, _NAME = COREDNS
CONFIG_MAP_PATH = f"/api/v1/namespaces/{_NAMESPACE}/configmaps/{_NAME}"
DEPLOYMENT_PATH = f"/apis/apps/v1/namespaces/{_NAMESPACE}/deployments/{_NAME}"


def steps(
    decision: CoreDNSDecision, config: ConfigMap | None, deployment: Deployment | None, *, version: str = ""
) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Paths and server-side apply bodies that bring CoreDNS to the decision; none when it is there.

    ``version``: resourceVersion of the ConfigMap. The API server refuses the write (409) when it has another by then.
    """
    if decision.namespace != _NAMESPACE:
        return ()
    metadata = {"name": _NAME, "namespace": _NAMESPACE}
    result: list[tuple[str, Mapping[str, Any]]] = []
    text = dict(config.content).get(COREFILE) if config is not None else None
    if text != decision.corefile and (digest_of(text) if text is not None else "") == decision.of:
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**metadata, "resourceVersion": version} if config is not None else metadata,
            "data": {COREFILE: decision.corefile},
        }
        result.append((CONFIG_MAP_PATH, body))
    if deployment is not None and not deployment.scaled_by and deployment.replicas != decision.replicas:
        spec = {"replicas": decision.replicas}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        result.append((DEPLOYMENT_PATH, body))
    return tuple(result)
