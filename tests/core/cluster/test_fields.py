"""Nothing is taken in silence: every field of every kind that is read has a decision, and each one is tried."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import yaml

import kit.bgp
from kit.models import ENCRYPTS, SERVED
from kit.pools import judge_pools
from proto.annotations import HONOURED
from proto.annotations import REFUSED as WISHES_REFUSED
from proto.annotations import REPORTED as WISHES_REPORTED
from proto.objects import KINDS, IPPool, Namespace, Node, Pod
from services.cluster.core.parse import NAMES, Malformed, read
from services.cluster.core.spellings import AGAIN
from services.dataplane.core.ipam.addressing import BadWish, Supply, plan_addresses
from tests.core.cluster.fields import (
    CRDS,
    WORDS,
    Field,
    decisions,
    is_annotation,
    of_the_api,
    of_the_code,
    of_the_crd,
)

DECIDED = dict(decisions())
KIND_NAMED = {NAMES[kind.type]: kind for kind in KINDS}
CLUSTER_WIDE = ("Node", "Namespace", *(NAMES[kind.type] for kind in AGAIN))


@pytest.fixture(autouse=True)
def bgp_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes of the fields once nodes speak BGP."""
    monkeypatch.setattr(kit.bgp, "SERVED", True)


def test_every_field_has_one_decision() -> None:
    twice = [field for field, times in Counter(field for field, _ in decisions()).items() if times > 1]
    assert twice == []
    assert set(DECIDED.values()) == set(WORDS)
    listed = {field for field in DECIDED if not is_annotation(field)}
    assert of_the_api() | of_the_crd() == listed


def test_both_spellings_of_a_kind_are_the_same() -> None:
    for name in ("ippools", "felixconfigurations", "bgpconfigurations", "bgppeers", "bgpfilters", "caliconodestatuses"):
        first, again = (
            yaml.safe_load((CRDS / f"{spelling}{name}.yaml").read_text())["spec"] for spelling in ("", "v3-")
        )
        assert (first.pop("group"), again.pop("group")) == ("crd.projectcalico.org", "projectcalico.org")
        assert (first["versions"][0].pop("name"), again["versions"][0].pop("name")) == ("v1", "v3")
        assert first == again


def test_what_is_read_is_what_is_acted_on() -> None:
    """A field that the code decodes is not others', and one that it does not decode is nothing but others'."""
    code = of_the_code()
    acted_on = {field for field, word in DECIDED.items() if word != "others'" and not is_annotation(field)}
    assert code - acted_on == set(), "read, and said to be others'"
    assert acted_on - code == set(), "said to be acted on, and not read"


def test_every_annotation_has_a_decision() -> None:
    listed = {field: word for field, word in DECIDED.items() if is_annotation(field)}
    known = {(kind, name): "honoured" for kind, names in HONOURED.items() for name in names}
    known |= {(kind, name): "refused" for kind, names in WISHES_REFUSED.items() for name in names}
    known |= {(kind, name): "told" for kind, names in WISHES_REPORTED.items() for name in names}
    assert listed == known


def made(kind: str, text: str, name: str = "x") -> dict[str, Any]:
    """An object of the kind, as the API serves it."""
    written: dict[str, Any] = yaml.safe_load(text)
    metadata = {"name": name, "uid": "u", **written.pop("metadata", {})}
    if kind not in CLUSTER_WIDE:
        metadata["namespace"] = "prod"
    return {"metadata": metadata, **written}


def with_annotation(kind: str, name: str, value: str = '["1"]') -> dict[str, Any]:
    return {**made(kind, "spec: {}"), "metadata": {**made(kind, "{}")["metadata"], "annotations": {name: value}}}


REFUSED: dict[Field, str] = {
    ("IPPoolSpec", "ipipMode"): "spec: {cidr: 'fd00::/56', ipipMode: Always}",
    ("IPPoolSpec", "vxlanMode"): "spec: {cidr: 10.0.0.0/16, ipipMode: CrossSubnet, vxlanMode: Always}",
    ("IPPoolSpec", "namespaceSelector"): "spec: {cidr: 10.0.0.0/16, namespaceSelector: team == 'a'}",
    ("IPPoolSpec", "allowedUses"): "spec: {cidr: 10.0.0.0/16, allowedUses: [LoadBalancer]}",
    ("IPPoolSpec", "nodeSelector"): "spec: {cidr: 10.0.0.0/16, nodeSelector: zone in (a)}",
    ("BGPPeerSpec", "localWorkloadSelector"): "spec: {localWorkloadSelector: all(), asNumber: 65001}",
}
NODES_OWN = {
    "asNumber": "64513",
    "nodeToNodeMeshEnabled": "false",
    "nodeMeshPassword": "{secretKeyRef: {name: a, key: b}}",
    "nodeMeshMaxRestartTime": "90s",
    "serviceClusterIPs": "[{cidr: 10.96.0.0/12}]",
    "serviceExternalIPs": "[]",
    "serviceLoadBalancerIPs": "[{cidr: 192.0.2.0/24}]",
    "serviceLoadBalancerAggregation": "Disabled",
}
"""What counts for all nodes, said in one node's own BGPConfiguration."""
REPORTED: dict[Field, tuple[str, str, str]] = {
    ("ObjectMeta", "annotations"): (
        "Pod",
        "{metadata: {annotations: {airmesh.io/keep-adress: 'true'}}, spec: {}}",
        "metadata.annotations['airmesh.io/keep-adress']",
    ),
    ("FelixConfigurationSpec", "vxlanPort"): (
        "FelixConfiguration",
        "{metadata: {name: node.n1}, spec: {vxlanPort: 8472}}",
        "spec.vxlanPort",
    ),
    ("FelixConfigurationSpec", "vxlanVNI"): (
        "FelixConfiguration",
        "{metadata: {name: node.n1}, spec: {vxlanVNI: 1, vxlanMTU: 1400}}",
        "spec.vxlanVNI",
    ),
    ("FelixConfigurationSpec", "wireguardEnabled"): (
        "FelixConfiguration",
        "{metadata: {name: node.n1}, spec: {wireguardEnabled: true}}",
        "spec.wireguardEnabled",
    ),
    ("FelixConfigurationSpec", "wireguardEnabledV6"): (
        "FelixConfiguration",
        "{metadata: {name: node.n1}, spec: {wireguardEnabledV6: false}}",
        "spec.wireguardEnabledV6",
    ),
    ("FelixConfigurationSpec", "*"): (
        "FelixConfiguration",
        "{metadata: {name: default}, spec: {vxlanVNI: 1, floatingIPs: Disabled, bpfEnabled: false, logFilePath: ''}}",
        "spec.bpfEnabled, spec.floatingIPs",
    ),
    **{
        ("BGPConfigurationSpec", field): (
            "BGPConfiguration",
            f"{{metadata: {{name: node.n1}}, spec: {{listenPort: 1790, {field}: {value}}}}}",
            f"spec.{field}",
        )
        for field, value in NODES_OWN.items()
    },
    ("BGPConfigurationSpec", "*"): (
        "BGPConfiguration",
        "{metadata: {name: default}, spec: {asNumber: 64512, localWorkloadPeeringIPV4: 10.0.0.1}}",
        "spec.localWorkloadPeeringIPV4",
    ),
    ("BGPPeerSpec", "*"): (
        "BGPPeer",
        "spec: {peerIP: 10.0.0.1, asNumber: 65001, failureDetectionMode: BFDIfDirectlyConnected, extensions: {}}",
        "spec.extensions, spec.failureDetectionMode",
    ),
    ("ServicePort", "protocol"): (
        "Service",
        "spec: {clusterIP: 10.96.0.9, ports: [{port: 80}, {port: 90, protocol: SCTP}]}",
        "spec.ports[1].protocol",
    ),
    ("ContainerPort", "hostPort"): (
        "Pod",
        "spec: {containers: [{ports: [{containerPort: 80, hostPort: 80, protocol: SCTP}]}]}",
        "spec.containers[0].ports[0].hostPort",
    ),
}


def those(word: str, *, annotation: bool) -> set[Field]:
    return {field for field, said in DECIDED.items() if said == word and is_annotation(field) == annotation}


def test_each_refusal_and_each_word_is_tried() -> None:
    assert those("refused", annotation=False) == REFUSED.keys()
    assert those("told", annotation=False) == REPORTED.keys()


@pytest.mark.parametrize("field", REFUSED)
def test_an_object_that_cannot_be_honoured_gives_nothing(field: Field) -> None:
    kind = field[0].removesuffix("Spec")
    try:
        pool, _ = read(KIND_NAMED[kind], made(kind, REFUSED[field]))
    except Malformed as refused:
        assert refused.path == f"spec.{field[1]}", "it is never known"
        return
    assert isinstance(pool, IPPool)
    judged = judge_pools([pool])
    assert judged.enabled(pool.cidr.version) == ()
    assert f"spec.{field[1]}" in judged.problems[0]


@pytest.mark.parametrize("field", sorted(those("refused", annotation=True)))
def test_a_pod_whose_wish_cannot_be_had_does_not_start(field: Field) -> None:
    kind, name = field
    supply = Supply(families=(4,), asked=(4,))
    wishes = {"Pod": "example.org/x", "Namespace": "example.org/x", kind: name}
    pod, reported = read(KIND_NAMED["Pod"], with_annotation("Pod", wishes["Pod"]))
    space, reported_too = read(KIND_NAMED["Namespace"], with_annotation("Namespace", wishes["Namespace"]))
    assert isinstance(pod, Pod)
    assert isinstance(space, Namespace)
    refused = plan_addresses(pod, space, supply)
    assert isinstance(refused, BadWish)
    assert name in refused.why
    assert (reported, reported_too) == ((), ()), "said once, by the pod's own events"


@pytest.mark.parametrize("field", REPORTED)
def test_what_is_left_out_is_reported(field: Field) -> None:
    kind, text, path = REPORTED[field]
    value, reported = read(KIND_NAMED[kind], made(kind, text))
    assert value is not None
    assert [one.path for one in reported] == [path]
    sentence = reported[0].about(kind, "prod", "x")
    assert sentence.startswith(f"{kind} prod/x: {path} is not honoured: ")
    assert "; " in sentence, "with a remedy"


@pytest.mark.parametrize("field", sorted(those("told", annotation=True)))
def test_an_annotation_that_is_left_out_is_reported(field: Field) -> None:
    kind, name = field
    name = f"{name}ingressBandwidth" if name.endswith("/") else name
    _, reported = read(KIND_NAMED[kind], with_annotation(kind, name))
    assert [one.path for one in reported] == [f"metadata.annotations[{name}]"]
    _, empty = read(KIND_NAMED[kind], with_annotation(kind, name, ""))
    assert empty == (), "empty is no wish"


QUIET = (
    ("Pod", "{metadata: {annotations: {cni.projectcalico.org/podIP: 10.0.0.1/32, other/x: y}}, spec: {}}"),
    ("Pod", "{metadata: {annotations: {airmesh.io/keep-address: 'true'}}, spec: {}}"),
    ("Pod", "spec: {hostNetwork: true, containers: [{ports: [{containerPort: 9, hostPort: 9, protocol: SCTP}]}]}"),
    ("Pod", "spec: {containers: [{ports: [{containerPort: 9, protocol: SCTP}, {containerPort: 80, hostPort: 80}]}]}"),
    ("Node", "{metadata: {annotations: {airmesh.io/blocks: 10.0.0.0/26, projectcalico.org/IPv4VXLANTunnelAddr: x}}}"),
    (
        "Node",
        "{metadata: {annotations: {projectcalico.org/IPv4Address: 10.0.0.1/24, projectcalico.org/ASNumber: '7'}}}",
    ),
    ("BGPConfiguration", "{metadata: {name: node.n1}, spec: {listenPort: 1790, logSeverityScreen: Debug}}"),
    ("BGPConfiguration", "{metadata: {name: default}, spec: {asNumber: '1.10', ignoredInterfaces: [eth1]}}"),
    ("BGPPeer", "spec: {peerSelector: has(reflector), nodeSelector: '!has(reflector)'}"),
    ("BGPFilter", "spec: {exportV4: [{action: Reject}]}"),
    ("CalicoNodeStatus", "spec: {node: n1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 10}"),
    ("FelixConfiguration", "{metadata: {name: default}, spec: {vxlanPort: 8472, vxlanVNI: 1, ipipMTU: 0}}"),
    ("FelixConfiguration", "{metadata: {name: node.n1}, spec: {wireguardListeningPort: 4000, vxlanMTU: 1400}}"),
    ("FelixConfiguration", "{metadata: {name: default}}"),
    ("IPPool", "{metadata: {annotations: {airmesh.io/model: auto}}, spec: {cidr: 10.0.0.0/16, vxlanMode: Never}}"),
    ("Service", "spec: {clusterIP: None, ports: [{port: 90, protocol: SCTP}]}"),
    ("Service", "spec: {type: ExternalName, ports: [{port: 90, protocol: SCTP}]}"),
    ("NetworkPolicy", "spec: {podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}"),
)


@pytest.mark.parametrize(("kind", "text"), QUIET)
def test_of_what_is_honoured_or_others_nothing_is_reported(kind: str, text: str) -> None:
    value, reported = read(KIND_NAMED[kind], made(kind, text))
    assert value is not None
    assert reported == ()


def test_a_configuration_that_no_node_reads_is_reported_whole() -> None:
    _, reported = read(
        KIND_NAMED["FelixConfiguration"], made("FelixConfiguration", "spec: {vxlanPort: 1, other: 1}", "n1")
    )
    assert [one.path for one in reported] == ["metadata.name"]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("BGPConfiguration", "{other: 1}"),
        ("BGPPeer", "{peerIP: 10.0.0.1, asNumber: 65001, other: 1}"),
        ("BGPFilter", "{}"),
    ],
)
def test_bgp_that_nobody_serves_is_reported_whole(kind: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit.bgp, "SERVED", False)
    value, reported = read(KIND_NAMED[kind], made(kind, f"spec: {spec}", "default"))
    assert value is not None
    assert [one.about(kind, "", "default") for one in reported] == [
        f"{kind} default: spec is not honoured: no node speaks BGP yet; remove the object, and do not rely on it"
    ]
    annotated = with_annotation("Node", "projectcalico.org/ASNumber", "x")
    assert read(KIND_NAMED["Node"], annotated)[1] == (), "what another program wrote is nobody's matter yet"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IPv4Address", "fd00::1/64"),
        ("IPv4Address", "10.0.0.256"),
        ("IPv6Address", "10.0.0.1"),
        ("ASNumber", "0"),
        ("ASNumber", "65536.1"),
        ("RouteReflectorClusterID", "1"),
        ("RouteReflectorClusterID", "0.0.0.0"),
    ],
)
def test_an_annotation_of_bgp_that_cannot_be_read_costs_the_node_nothing_else(name: str, value: str) -> None:
    annotations = {f"projectcalico.org/{name}": value, "airmesh.io/blocks": "10.244.0.0/26"}
    written = {"metadata": {"name": "n1", "uid": "u", "annotations": annotations}}
    node, reported = read(KIND_NAMED["Node"], written)
    assert isinstance(node, Node)
    assert (len(node.blocks), node.bgp) == (1, None)
    assert [one.path for one in reported] == [f"metadata.annotations[projectcalico.org/{name}]"]
    assert "; write " in reported[0].sentence or "; use " in reported[0].sentence


def test_encryption_that_nobody_serves_is_reported() -> None:
    """Never taken in silence: who asks for it must not rely on it."""
    asks = made("FelixConfiguration", "spec: {wireguardEnabled: true, wireguardEnabledV6: false}", "default")
    _, reported = read(KIND_NAMED["FelixConfiguration"], asks)
    assert [one.path for one in reported] == ([] if ENCRYPTS in SERVED else ["spec.wireguardEnabled"])


def test_of_many_fields_some_are_named_and_others_counted() -> None:
    many = {"metadata": {"name": "default", "uid": "u"}, "spec": {f"field{number:02}": 1 for number in range(40)}}
    _, reported = read(KIND_NAMED["FelixConfiguration"], many)
    assert len(reported) == 1
    assert reported[0].path.startswith("spec.field00, spec.field01, ")
    assert reported[0].path.endswith("spec.field07 and 32 more")


@pytest.mark.parametrize("kind", ["Node", "Namespace", "Service"])
def test_an_unknown_annotation_of_ours_is_reported_on_every_kind(kind: str) -> None:
    value, reported = read(KIND_NAMED[kind], with_annotation(kind, "airmesh.io/strange"))
    assert isinstance(value, Node | Namespace) or kind == "Service"
    assert [one.path for one in reported] == ["metadata.annotations['airmesh.io/strange']"]
