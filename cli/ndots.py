"""Sets `ndots` of a namespace's pods as the person who asks may: a policy of admission, and the namespace's label.

The mesh itself gets no right to change namespaces: both go through the person's own kubeconfig. The label is a field of
our own manager, so a person's label is never written over, and taking ours back leaves theirs.

Source: kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy; server-side apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import yaml

from cli.faults import Declined, Usage
from cli.install.kinds import Object, Ref, ref
from cli.install.kubernetes import Kubernetes, Refusal
from cli.install.render import FOLDER
from cli.reports.dns_ndots import FEWER, PREFIX

LABEL = "airmesh.io/ndots"
"""On a Namespace or a Pod: the option `ndots` of pods' resolv.conf, 0 to 15."""
MANAGER = "airmesh-dns-ndots"
"""Field manager of the label."""
_GROUP = "/apis/admissionregistration.k8s.io/v1"
_PLURALS = {
    "MutatingAdmissionPolicy": "mutatingadmissionpolicies",
    "MutatingAdmissionPolicyBinding": "mutatingadmissionpolicybindings",
}
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def asked(act: Callable[[Kubernetes, str], str], name: str, kubeconfig: str, context: str) -> str:
    """What :func:`apply` or :func:`revert` came to, by a proposal's name; empty for another kind. Raises Complaints."""
    if not name.startswith(PREFIX):
        return ""
    namespace = name.removeprefix(PREFIX)
    if not _NAMESPACE.fullmatch(namespace):
        raise Usage(f"{namespace!r} is no name of a namespace", f"write it as {PREFIX}NAMESPACE")
    try:
        with Kubernetes(kubeconfig, context) as api:
            return act(api, namespace)
    except Refusal as refusal:
        raise refusal.complaint(name) from refusal


def policies() -> tuple[Object, ...]:
    """The policy and its bindings."""
    loaded: tuple[Any, ...] = tuple(yaml.safe_load_all((FOLDER / "ndots.yaml").read_text()))
    return loaded


def path_of(policy: Object) -> str:
    """Of one of :func:`policies`, in the API."""
    return f"{_GROUP}/{_PLURALS[policy['kind']]}/{policy['metadata']['name']}"


def apply(api: Kubernetes, namespace: str) -> str:
    """Pods that are made in the namespace from now on get fewer dots. Raises Declined, and ``Refusal``."""
    present, ours = _present(api, namespace)
    if present and not ours:
        raise _not_ours(namespace, present)
    for one in policies():
        try:
            _applied(api, path_of(one), one, force=True)
        except Refusal as refusal:
            if refusal.status == 404:
                raise Declined(
                    "this cluster's API server has no MutatingAdmissionPolicy of admissionregistration.k8s.io/v1",
                    "upgrade it to Kubernetes 1.36, or set dnsConfig.options ndots in the pods' templates",
                ) from None
            raise
    _label(api, namespace, {LABEL: str(FEWER)})
    return (
        f"pods made in {namespace} from now on have ndots:{FEWER}, unless their dnsConfig says another; restart those "
        f"that run (kubectl -n {namespace} rollout restart deployment), then see airmesh dns report -n {namespace}"
    )


def revert(api: Kubernetes, namespace: str) -> str:
    """What :func:`apply` did to the namespace is gone; the policy does nothing without a label. Raises Declined."""
    present, ours = _present(api, namespace)
    if not ours:
        said = f"was labelled {LABEL}={present} by somebody else" if present else "has no such label"
        raise Declined(f"nothing to take back: the namespace {namespace} {said}", "kubectl label takes out any label")
    _label(api, namespace, {})
    return f"pods made in {namespace} from now on have the kubelet's ndots; those that run keep theirs until a restart"


def _present(api: Kubernetes, namespace: str) -> tuple[str, bool]:
    """The namespace's label, empty where it has none, and whether it is ours. Raises Declined, and ``Refusal``."""
    found = api.get(Ref("v1", "Namespace", "", namespace))
    if found is None:
        raise Declined(f"there is no namespace {namespace}", "kubectl get namespaces lists them")
    metadata = found["metadata"]
    fields = (one["fieldsV1"] for one in metadata.get("managedFields") or () if one.get("manager") == MANAGER)
    ours = any(f"f:{LABEL}" in one.get("f:metadata", {}).get("f:labels", {}) for one in fields)
    return (metadata.get("labels") or {}).get(LABEL, ""), ours


def _label(api: Kubernetes, namespace: str, labels: dict[str, str]) -> None:
    """All labels that are ours. Raises Declined where another one has the label meanwhile."""
    wanted = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
    try:
        _applied(api, ref(wanted).path, wanted, force=False)
    except Refusal as refusal:
        if refusal.status == 409:
            raise _not_ours(namespace, refusal.message) from None
        raise


def _not_ours(namespace: str, said: str) -> Declined:
    return Declined(
        f"the namespace {namespace} is labelled {LABEL} by somebody else: {said}",
        f"take that label out first: kubectl label namespace {namespace} {LABEL}-",
    )


def _applied(api: Kubernetes, path: str, wanted: Object, *, force: bool) -> None:
    query = urlencode({"fieldManager": MANAGER, "force": str(force).lower(), "fieldValidation": "Strict"})
    api.call("PATCH", f"{path}?{query}", wanted, "application/apply-patch+yaml")
