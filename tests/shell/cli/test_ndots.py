"""Fewer dots at admission, by a real API server: which pods get them, and that a person's own word is never changed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.error import HTTPError

import pytest

from cli import ndots
from cli.faults import Declined, Usage
from cli.install.kubernetes import Kubernetes
from tests.kubeapi import KubeApi

NDOTS = {"name": "ndots", "value": "2"}
Options = list[dict[str, str]]


def options(api: KubeApi, namespace: str, labels: dict[str, str] | None = None, **spec: Any) -> Options:
    """Of a pod's resolv.conf as the API server admits the pod, without making it."""
    pod = {
        "metadata": {"name": f"p-{uuid.uuid4().hex[:6]}", "labels": labels or {}},
        "spec": {"containers": [{"name": "c", "image": "c"}], **spec},
    }
    made = api.call("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
    found: Options = made["spec"].get("dnsConfig", {}).get("options", [])
    return found


def wait_for(api: KubeApi, namespace: str, expected: Options, labels: dict[str, str] | None = None) -> None:
    """The API server's own caches follow after a moment."""
    end = time.monotonic() + 90
    while (found := options(api, namespace, labels)) != expected:
        assert time.monotonic() < end, found
        time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def unpolicied(kube_api: KubeApi) -> Iterator[None]:
    """Other tests' pods are none of this policy's."""
    yield
    for one in ndots.policies():
        with suppress(HTTPError):
            kube_api.call("DELETE", ndots.path_of(one))


@pytest.fixture
def namespace(kube_api: KubeApi) -> Iterator[str]:
    name = f"dots-{uuid.uuid4().hex[:6]}"
    kube_api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    kube_api.call("DELETE", f"/api/v1/namespaces/{name}")


def ask(api: KubeApi, verb: str, namespace: str) -> str:
    act = {"apply": ndots.apply, "revert": ndots.revert}[verb]
    return ndots.asked(act, f"ndots/{namespace}", str(api.kubeconfig()), "")


def test_pods_of_a_namespace_get_fewer_dots_but_for_their_own_word(kube_api: KubeApi, namespace: str) -> None:
    assert "restart" in ask(kube_api, "apply", namespace)
    wait_for(kube_api, namespace, [NDOTS])
    own = [{"name": "ndots", "value": "4"}, {"name": "timeout", "value": "1"}]
    assert options(kube_api, namespace, dnsConfig={"options": own}) == own
    assert options(kube_api, namespace, dnsConfig={"options": own[1:]}) == [own[1], NDOTS]
    assert options(kube_api, namespace, dnsConfig={"options": []}) == [NDOTS]
    assert options(kube_api, namespace, dnsConfig={}) == [NDOTS]
    assert options(kube_api, namespace, dnsConfig={"searches": ["example.org"]}) == [NDOTS]
    assert options(kube_api, namespace, {ndots.LABEL: "5"}) == [{"name": "ndots", "value": "5"}], "the pod's own label"
    assert options(kube_api, namespace, {ndots.LABEL: "many"}) == []
    assert options(kube_api, namespace, dnsPolicy="Default") == []
    assert options(kube_api, namespace, dnsPolicy="None", dnsConfig={"nameservers": ["192.0.2.1"]}) == []
    assert options(kube_api, namespace, hostNetwork=True) == []
    assert options(kube_api, namespace, hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet") == [NDOTS]
    ask(kube_api, "revert", namespace)
    wait_for(kube_api, namespace, [])
    wait_for(kube_api, namespace, [NDOTS], {ndots.LABEL: "2"})
    with pytest.raises(Declined, match="has no such label"):
        ask(kube_api, "revert", namespace)


def test_a_persons_label_stays(kube_api: KubeApi, namespace: str) -> None:
    kube_api.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {ndots.LABEL: "3", "team": "red"}}})
    with pytest.raises(Declined, match="by somebody else"):
        ask(kube_api, "apply", namespace)
    with pytest.raises(Declined, match="by somebody else"):
        ask(kube_api, "revert", namespace)
    labels = kube_api.call("GET", f"/api/v1/namespaces/{namespace}")["metadata"]["labels"]
    assert (labels[ndots.LABEL], labels["team"]) == ("3", "red")


def test_what_cannot_be_is_refused(kube_api: KubeApi) -> None:
    with pytest.raises(Declined, match="there is no namespace"):
        ask(kube_api, "revert", "nowhere")
    assert ndots.asked(ndots.apply, "cache-prefetch", "", "") == "", "a proposal of another kind"
    with pytest.raises(Usage, match="no name of a namespace"):
        ask(kube_api, "apply", "No/Where")
    with pytest.raises(Declined, match="you may not"):
        ndots.asked(ndots.apply, "ndots/default", str(kube_api.kubeconfig("nobody")), "")


def test_an_api_server_without_the_policy_is_refused(kube_api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndots, "_GROUP", "/apis/admissionregistration.k8s.io/v0")
    with (
        Kubernetes(str(kube_api.kubeconfig())) as api,
        pytest.raises(Declined, match="has no MutatingAdmissionPolicy") as refused,
    ):
        ndots.apply(api, "default")
    assert "1.36" in refused.value.remedy
