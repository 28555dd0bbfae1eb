"""The kinds of airmesh before a real API server: what people write is taken, what nothing can mean is refused.

What the API server takes, ``cluster`` reads (``services.cluster.core.parse``); what it refuses, ``cluster`` would
refuse too, where somebody else's CRD lets it pass. Both are asked here of the same texts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import yaml

from kit.models import asked
from kit.pools import judge_pools
from proto.objects import (
    KIND_OF,
    BGPConfiguration,
    BGPPeer,
    CalicoNodeStatus,
    FelixConfiguration,
    IPPool,
    Kind,
)
from services.cluster.core.node_status import status_body, status_path
from services.cluster.core.parse import Malformed, parse_object
from services.cluster.core.spellings import AGAIN
from tests.core.cluster.test_node_status import NOW, REPORTED
from tests.core.kit.test_models import ALL
from tests.kubeapi import KubeApi

ROOT = Path(__file__).parents[3]
CRDS = ROOT / "deploy" / "kubernetes" / "crds"
MODELS = ROOT / "examples" / "models"
SCENARIOS = sorted((ROOT / "examples" / "scenarios").glob("*.yaml"))
GROUPS = ("crd.projectcalico.org/v1", "projectcalico.org/v3")


class Kubectl:
    """A person with kubectl."""

    def __init__(self, config: Path) -> None:
        self._config = config

    def __call__(self, *arguments: str, text: str = "") -> str:
        argv = [str(Path(sys.executable).parent / "kubectl"), f"--kubeconfig={self._config}", *arguments]
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def kubectl(kube_api: KubeApi) -> Iterator[Kubectl]:
    """With the kinds there; what was made of them is taken away in the end."""
    run = Kubectl(kube_api.kubeconfig())
    run("apply", "--server-side", "--force-conflicts", "-k", str(CRDS))
    run("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    end = time.monotonic() + 60
    while any(group not in run("api-versions") for group in GROUPS):  # discovery follows a moment later
        assert time.monotonic() < end
        time.sleep(0.1)
    yield run
    for kind in ("ippools", "felixconfigurations", "bgpconfigurations", "bgppeers", "bgpfilters", "caliconodestatuses"):
        for group in ("crd.projectcalico.org", "projectcalico.org"):
            run("delete", f"{kind}.{group}", "--all", "--wait=false")


def test_the_models_of_the_examples() -> None:
    """What each asks for, once all models are served."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for path in MODELS.glob("*.yaml"):
        for written in yaml.safe_load_all(path.read_text()):
            read = parse_object({**written, "metadata": {**written["metadata"], "uid": "u"}})
            if isinstance(read, IPPool):
                found.setdefault(path.stem, []).append(asked(read, ALL))
    assert found == {
        "ipip": [("ipip",)],
        "vxlan": [("host-gw", "vxlan")] * 2,
        "flannel": [("vxlan",)],
        "auto": [("host-gw", "ipip", "vxlan", "wireguard")],
    }


TAKEN = (
    ("IPPool", "{cidr: 10.9.0.0/16, ipipMode: CrossSubnet, vxlanMode: Never}"),
    ("IPPool", "{cidr: 10.9.0.0/16, ipipMode: Never, vxlanMode: Always}"),
    ("IPPool", "{cidr: 'fd09::/56', vxlanMode: CrossSubnet, ipipMode: Never}"),
    ("FelixConfiguration", "{vxlanPort: 8472, vxlanVNI: 1, vxlanMTU: 0, ipipMTU: 1280, bpfEnabled: true}"),
    ("FelixConfiguration", "{wireguardEnabled: true, wireguardListeningPort: 51821, routeTableRanges: [{min: 1}]}"),
    ("FelixConfiguration", "{vxlanPort: 51820, wireguardListeningPort: 51821}"),
    ("BGPConfiguration", "{asNumber: 64512, nodeToNodeMeshEnabled: false, logSeverityScreen: Info}"),
    ("BGPConfiguration", "{asNumber: '1.10', communities: [{name: red, value: '65000:1'}], unheardOf: 1}"),
    ("BGPConfiguration", "{prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [red, '1:2:3']}], listenPort: 1790}"),
    ("BGPConfiguration", "{serviceClusterIPs: [{cidr: 10.96.0.0/12}], serviceLoadBalancerAggregation: Disabled}"),
    ("BGPConfiguration", "{nodeMeshPassword: {secretKeyRef: {name: a, key: b}}, nodeMeshMaxRestartTime: 90s}"),
    ("BGPPeer", "{peerIP: '[fd00::1]:1790', asNumber: 65001, nodeSelector: rack == 'a' || has(b), ttlSecurity: 1}"),
    ("BGPPeer", "{peerSelector: has(rr), reversePeering: Manual, keepOriginalNextHop: true, filters: [a, b]}"),
    ("BGPPeer", "{peerIP: 10.0.0.1, asNumber: '1.10', node: n1, password: {secretKeyRef: {name: a, key: b}}}"),
    ("BGPFilter", "{importV4: [{action: Accept, cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {min: 16}}]}"),
    ("BGPFilter", "{exportV6: [{action: Accept, source: RemotePeers, interface: '*.a', asPathPrefix: [1, '1.10']}]}"),
    ("BGPFilter", "{exportV4: [{action: Accept, peerType: eBGP, operations: [{prependASPath: {prefix: [7, 7]}}]}]}"),
    ("BGPFilter", "{}"),
    ("CalicoNodeStatus", "{node: n1}"),
    ("CalicoNodeStatus", "{node: n1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 0}"),
)
REFUSED = (
    ("IPPool", "{cidr: 10.9.0.0/16, ipipMode: Always, vxlanMode: CrossSubnet}", "cannot both be in use"),
    ("IPPool", "{cidr: 'fd09::/56', ipipMode: CrossSubnet}", "IPIP carries IPv4 only"),
    ("IPPool", "{cidr: 10.9.0.0/16, vxlanMode: Sometimes}", "Unsupported value"),
    ("FelixConfiguration", "{vxlanVNI: 16777216}", "spec.vxlanVNI"),
    ("FelixConfiguration", "{vxlanVNI: 0}", "spec.vxlanVNI"),
    ("FelixConfiguration", "{vxlanPort: 70000}", "spec.vxlanPort"),
    ("FelixConfiguration", "{vxlanMTU: 1279}", "below 1280, which IPv6 needs of every link"),
    ("FelixConfiguration", "{wireguardMTUV6: 1000}", "below 1280"),
    ("FelixConfiguration", "{vxlanPort: 51820}", "choose another vxlanPort"),
    ("FelixConfiguration", "{wireguardListeningPort: 4788}", "choose another vxlanPort"),
    ("FelixConfiguration", "{wireguardListeningPort: 65535}", "spec.wireguardListeningPort"),
    ("FelixConfiguration", "{wireguardEnabled: 'yes'}", "must be of type boolean"),
    ("BGPConfiguration", "{listenPort: 0}", "spec.listenPort"),
    ("BGPConfiguration", "{logSeverityScreen: Loud}", "spec.logSeverityScreen"),
    ("BGPConfiguration", "{communities: [{name: a, value: '1'}]}", "spec.communities[0].value"),
    ("BGPConfiguration", "{prefixAdvertisements: [{cidr: 10.0.0.0/8}]}", "communities"),
    ("BGPPeer", "{}", "peerIP is missing"),
    ("BGPPeer", "{peerIP: 10.0.0.1, peerSelector: all()}", "peerSelector is there beside peerIP"),
    ("BGPPeer", "{peerIP: 10.0.0.1, asNumber: 1, node: n1, nodeSelector: all()}", "nodeSelector is there beside node"),
    ("BGPPeer", "{peerIP: 10.0.0.1, asNumber: 1, ttlSecurity: 256}", "spec.ttlSecurity"),
    ("BGPPeer", "{peerIP: 10.0.0.1, asNumber: 1, localWorkloadSelector: all()}", "no session is held with pods"),
    ("CalicoNodeStatus", "{classes: [BGP]}", "spec.node"),
    ("CalicoNodeStatus", "{node: n1, classes: [All]}", "Unsupported value"),
    ("CalicoNodeStatus", "{node: n1, updatePeriodSeconds: -1}", "spec.updatePeriodSeconds"),
    ("BGPFilter", "{importV4: [{action: Drop}]}", "Unsupported value"),
    ("BGPFilter", "{importV4: [{action: Accept, cidr: 10.0.0.0/8}]}", "cidr and matchOperator belong together"),
    ("BGPFilter", "{importV6: [{action: Accept, source: RemotePeers}]}", "source is there in a rule of import"),
    ("BGPFilter", "{exportV4: [{action: Accept, prefixLength: {min: 3}}]}", "prefixLength is there without cidr"),
    ("BGPFilter", "{exportV4: [{action: Accept, priority: 7}]}", "unknown field"),
    ("BGPFilter", "{exportV4: [{action: Accept, operations: [{}]}]}", "spec.exportV4[0].operations[0]"),
    ("BGPFilter", "{exportV4: [{action: Reject, operations: [{setPriority: {value: 1}}]}]}", "or write action Accept"),
)


PLURALS = {"CalicoNodeStatus": "caliconodestatuses"}


def written(group: str, kind: str, spec: str) -> dict[str, Any]:
    name = "other" if kind == "FelixConfiguration" else "tried"
    return {"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": yaml.safe_load(spec)}


def tried(api: KubeApi, one: dict[str, Any]) -> str:
    """What the API server says of an object that it is not to keep; empty when it takes it."""
    plural = PLURALS.get(one["kind"], f"{one['kind'].lower()}s")
    try:
        api.call("POST", f"/apis/{one['apiVersion']}/{plural}?dryRun=All&fieldValidation=Strict", one)
    except HTTPError as refused:
        return str(json.loads(refused.read())["message"])
    return ""


@pytest.mark.usefixtures("kubectl")
def test_the_examples_are_taken_as_they_stand(kube_api: KubeApi) -> None:
    for path in (*sorted(MODELS.glob("*.yaml")), *SCENARIOS):
        for one in yaml.safe_load_all(path.read_text()):
            assert tried(kube_api, one) == "", path
            read = parse_object({**one, "metadata": {**one["metadata"], "uid": "u"}})
            assert isinstance(read, FelixConfiguration | IPPool | BGPConfiguration | BGPPeer)
            if isinstance(read, IPPool):
                assert judge_pools([read], served=ALL).problems == ()


@pytest.mark.usefixtures("kubectl")
@pytest.mark.parametrize("group", GROUPS)
def test_what_means_something_is_taken_and_what_does_not_is_refused_in_one_sentence(
    kube_api: KubeApi, group: str
) -> None:
    for kind, spec in TAKEN:
        one = written(group, kind, spec)
        assert tried(kube_api, one) == "", spec
        assert parse_object({**one, "metadata": {**one["metadata"], "uid": "u"}}) is not None, spec
    for kind, spec, sentence in REFUSED:
        one = written(group, kind, spec)
        assert sentence in tried(kube_api, one), spec
        with pytest.raises(Malformed):
            parse_object({**one, "metadata": {**one["metadata"], "uid": "u"}})


@pytest.mark.usefixtures("kubectl")
@pytest.mark.parametrize(
    "kind", [KIND_OF[CalicoNodeStatus], *(kind for kind in AGAIN if kind.type is CalicoNodeStatus)]
)
def test_the_status_of_a_node_is_taken_as_it_is_written(kube_api: KubeApi, kind: Kind) -> None:
    one = written(kind.api_version, "CalicoNodeStatus", "{node: n1, classes: [Agent, BGP, Routes]}")
    kube_api.call("POST", f"{kind.api}/{kind.plural}", one)
    read = parse_object({**one, "metadata": {**one["metadata"], "uid": "u"}})
    assert isinstance(read, CalicoNodeStatus)
    body = status_body(kind, read, REPORTED, "airmesh v1", NOW)
    path = f"{status_path(kind, read.name)}?fieldManager=airmesh-cluster&force=true&fieldValidation=Strict"
    kube_api.call("PATCH", path, body, "application/apply-patch+yaml")
    found = kube_api.call("GET", f"{kind.api}/{kind.plural}/{read.name}")
    assert found["status"] == body["status"]
    assert found["spec"] == one["spec"]


def test_whoever_says_ippools_sees_those_that_count_first(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", text=json.dumps(written(GROUPS[0], "IPPool", "{cidr: 10.9.0.0/16}")))
    kubectl("apply", "-f", "-", text=json.dumps(written(GROUPS[1], "IPPool", "{cidr: 10.10.0.0/16}")))
    assert json.loads(kubectl("get", "ippool", "tried", "-o", "json"))["apiVersion"] == GROUPS[0]
    page = kubectl("get", "ippools.projectcalico.org", "tried").splitlines()
    columns = ["NAME", "CIDR", "BLOCK", "IPIP", "VXLAN", "MODEL", "NAT", "DISABLED", "ALLOCATABLE", "REASON", "AGE"]
    assert page[0].split() == columns
    auto = written(GROUPS[1], "IPPool", "{cidr: 10.10.0.0/16}")
    auto["metadata"]["annotations"] = {"airmesh.io/model": "auto"}
    kubectl("apply", "-f", "-", text=json.dumps(auto))
    assert " auto " in kubectl("get", "ippools.projectcalico.org", "tried")
