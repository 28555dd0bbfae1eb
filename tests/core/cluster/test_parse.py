"""Kubernetes objects in, the mesh's types out; and one clear error for each that is broken."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from proto.identity import NamedPort
from proto.objects import (
    KINDS,
    EndpointPort,
    FelixConfiguration,
    HostPort,
    IPBlock,
    IPPool,
    Node,
    Owner,
    Peer,
    Pod,
    PolicyPort,
    PolicyRule,
    Requirement,
    Selector,
    Service,
    ServicePort,
    SliceEndpoint,
)
from services.cluster.core.parse import MAX_OBJECT, Malformed, kind_of, parse, parse_object
from services.cluster.core.spellings import AGAIN

ROOT = Path(__file__).parents[3]
SPELLING = {
    "Deployment": "apps/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "FelixConfiguration": "crd.projectcalico.org/v1",
    "IPPool": "crd.projectcalico.org/v1",
    "BGPConfiguration": "crd.projectcalico.org/v1",
    "BGPPeer": "crd.projectcalico.org/v1",
    "BGPFilter": "crd.projectcalico.org/v1",
}
CLUSTER_WIDE = ("Namespace", "Node", *(kind.type.__name__ for kind in AGAIN))


def written(kind: str, text: str, *, name: str = "x", meta: str = "{}") -> dict[str, Any]:
    """An object as the API would serve it; ``text`` is YAML of what stands beside its metadata."""
    metadata = {"name": name, "uid": "u-1", **yaml.safe_load(meta)}
    if kind not in CLUSTER_WIDE:
        metadata.setdefault("namespace", "prod")
    return {"apiVersion": SPELLING.get(kind, "v1"), "kind": kind, "metadata": metadata, **(yaml.safe_load(text) or {})}


def read(kind: str, text: str, **more: str) -> Any:
    return parse_object(written(kind, text, **more))


def policy(spec: str) -> Any:
    return read("NetworkPolicy", f"spec: {spec}")


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ("{podSelector: {}}", True, False),
        ("{podSelector: {}, policyTypes: []}", True, False),
        ("{podSelector: {}, egress: []}", True, False),
        ("{podSelector: {}, egress: [{}]}", True, True),
        ("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", True, False),
        ("{podSelector: {}, policyTypes: [Egress]}", False, True),
        ("{podSelector: {}, policyTypes: [Ingress, Egress]}", True, True),
    ],
)
def test_policy_types_default_as_the_api_does(spec: str, ingress: bool, egress: bool) -> None:
    found = policy(spec)
    assert (found.applies_ingress, found.applies_egress) == (ingress, egress)
    assert egress or found.egress == ()


def test_a_rule_keeps_peers_and_ports() -> None:
    found = policy("""
      podSelector: {matchLabels: {role: db}, matchExpressions: [{key: tier, operator: In, values: [b, a, b]}]}
      ingress:
      - from:
        - podSelector: {matchLabels: {role: api}}
          namespaceSelector: {}
        - ipBlock: {cidr: 10.0.0.9/8, except: [10.1.0.0/16, 10.2.3.4/32]}
        ports: [{port: 5432}, {protocol: UDP, port: dns}, {protocol: SCTP, port: 1000, endPort: 2000}, {protocol: UDP}]
      - {}
    """)
    assert found.pod_selector == Selector((("role", "db"),), (Requirement("tier", "In", ("a", "b")),))
    block = IPBlock(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"), ip_network("10.2.3.4/32")))
    assert found.ingress == (
        PolicyRule(
            peers=(Peer(Selector((("role", "api"),)), Selector()), Peer(ip_block=block)),
            ports=(PolicyPort(6, 5432), PolicyPort(17, port_name="dns"), PolicyPort(132, 1000, 2000), PolicyPort(17)),
        ),
        PolicyRule(),
    )


def test_selecting_nothing_said_is_every_pod_but_a_missing_peer_selector_is_none() -> None:
    assert policy("{}").pod_selector == Selector()
    peer = policy("{ingress: [{from: [{namespaceSelector: {}}]}]}").ingress[0].peers[0]
    assert (peer.pod_selector, peer.namespace_selector) == (None, Selector())


IN_SET = "ownerReferences: [{kind: StatefulSet, name: db, controller: true}]"
IN_REPLICAS = "ownerReferences: [{kind: ReplicaSet, name: a-1, controller: true}]"
INDEX = "labels: {apps.kubernetes.io/pod-index: '7'}"
HASH = "labels: {pod-template-hash: '1'}"
KEEP = "annotations: {airmesh.io/keep-address: 'true'}"


@pytest.mark.parametrize(
    ("name", "meta", "owner"),
    [
        ("bare", "", None),
        ("bare", KEEP, Owner("prod", "Pod", "bare")),
        ("bare", "annotations: {airmesh.io/keep-address: 'no'}", None),
        ("bare", "annotations: {cni.projectcalico.org/ipAddrs: '[\"10.1.2.3\"]'}", Owner("prod", "Pod", "bare")),
        ("db-3", IN_SET, Owner("prod", "StatefulSet", "db", 3)),
        ("db-0", f"{IN_SET}, {INDEX}", Owner("prod", "StatefulSet", "db", 0)),
        ("odd", f"{IN_SET}, {INDEX}", Owner("prod", "StatefulSet", "db", 7)),
        ("odd", IN_SET, Owner("prod", "StatefulSet", "db", -1)),
        ("db-x", "ownerReferences: [{kind: StatefulSet, name: db}]", None),
        ("a-1-2", f"{IN_REPLICAS}, {HASH}", Owner("prod", "ReplicaSet", "a-1")),
        ("a-1-2", f"{IN_REPLICAS}, {HASH}, {KEEP}", Owner("prod", "Deployment", "a")),
        ("a-1-2", f"{IN_REPLICAS}, {KEEP}", Owner("prod", "ReplicaSet", "a-1")),
        ("j-1", "ownerReferences: [{kind: Job, name: j, controller: true}]", Owner("prod", "Job", "j")),
    ],
)
def test_whom_a_kept_address_belongs_to(name: str, meta: str, owner: Owner | None) -> None:
    assert read("Pod", "spec: {}", name=name, meta=f"{{{meta}}}").owner == owner


def test_pod() -> None:
    found = read(
        "Pod",
        """
        spec:
          nodeName: n1
          serviceAccountName: robot
          hostNetwork: true
          containers:
          - ports: [{containerPort: 80, name: http}, {containerPort: 81}, {containerPort: 53, name: dns, protocol: UDP}]
          - {}
          initContainers:
          - {restartPolicy: Always, ports: [{containerPort: 90, name: side}]}
          - {ports: [{containerPort: 91, name: once}]}
        status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
        """,
        meta="{labels: {b: '2', a: '1'}, annotations: {airmesh.io/x: y, other.io/x: z, k8s.v1.cni.cncf.io/networks: n},"
        " deletionTimestamp: '2026-01-01T00:00:00Z'}",
    )
    assert found == Pod(
        namespace="prod",
        name="x",
        uid="u-1",
        node="n1",
        labels=(("a", "1"), ("b", "2")),
        annotations=(("airmesh.io/x", "y"), ("k8s.v1.cni.cncf.io/networks", "n")),
        service_account="robot",
        named_ports=(NamedPort("dns", 17, 53), NamedPort("http", 6, 80), NamedPort("side", 6, 90)),
        host_network=True,
        addresses=(ip_address("10.0.0.1"), ip_address("fd00::1")),
        phase="Running",
        terminating=True,
    )


def test_host_ports() -> None:
    spec = """
      containers:
      - ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81, hostPort: 0}, {containerPort: 82}]
      - ports: [{containerPort: 53, hostPort: 53, hostIP: 127.0.0.1, protocol: UDP}]
      - ports: [{containerPort: 80, hostPort: 8080}]
      initContainers:
      - {restartPolicy: Always, ports: [{containerPort: 90, hostPort: 90, hostIP: '::'}]}
      - {ports: [{containerPort: 91, hostPort: 91}]}
    """
    assert read("Pod", f"spec: {spec}").host_ports == (
        HostPort(6, 90, 90, ip_address("::")),
        HostPort(6, 8080, 80),
        HostPort(17, 53, 53, ip_address("127.0.0.1")),
    )
    assert read("Pod", f"spec: {spec}  hostNetwork: true").host_ports == ()


def test_pod_of_few_words() -> None:
    assert read("Pod", "{spec: {}, status: {podIP: 10.0.0.1, podIPs: null}}").addresses == (ip_address("10.0.0.1"),)
    assert read("Pod", "spec: {containers: null}") == Pod(namespace="prod", name="x", uid="u-1", node="")


def test_node() -> None:
    found = read(
        "Node",
        """
        spec: {unschedulable: true}
        status:
          addresses:
          - {type: InternalIP, address: 172.30.0.11}
          - {type: Hostname, address: n1}
          - {type: InternalIP, address: 'fd00::b'}
          conditions: [{type: MemoryPressure, status: 'False'}, {type: Ready, status: 'True'}]
        """,
        meta="{annotations: {airmesh.io/blocks: '10.244.0.0/26, fd00:10:244::/122'}}",
    )
    assert found == Node(
        name="x",
        uid="u-1",
        addresses=(ip_address("172.30.0.11"), ip_address("fd00::b")),
        blocks=(ip_network("10.244.0.0/26"), ip_network("fd00:10:244::/122")),
        ready=True,
        unschedulable=True,
    )
    assert read("Node", "{}") == Node(name="x", uid="u-1")


@pytest.mark.parametrize(
    ("spec", "meta", "leaving"),
    [
        ("{}", "{}", False),
        ("{taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}", "{}", False),
        ("{taints: [{key: ToBeDeletedByClusterAutoscaler, value: '1', effect: NoSchedule}]}", "{}", True),
        ("{}", "{deletionTimestamp: '2026-01-01T00:00:00Z'}", True),
    ],
)
def test_a_node_that_is_to_go(spec: str, meta: str, leaving: bool) -> None:
    assert read("Node", f"spec: {spec}", meta=meta).leaving == leaving


A, B = ip_address("10.96.0.1"), ip_address("fd00::1")
BALANCED = "{loadBalancer: {ingress: [{ip: 10.96.0.1}, {ip: 192.0.2.2, ipMode: Proxy}, {hostname: a}]}}"
PORTS = "{ports: [{port: 80, targetPort: http}, {name: d, port: 53, protocol: UDP, nodePort: 30053}]}"


@pytest.mark.parametrize(
    ("spec", "status", "changes"),
    [
        ("{clusterIP: None, clusterIPs: [None]}", "{}", {}),
        ("{clusterIP: 10.96.0.1}", "{}", {"cluster_ips": (A,)}),
        ("{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1']}", "{}", {"cluster_ips": (A, B)}),
        ("{type: ExternalName, externalName: a.b, clusterIPs: ['']}", "{}", {"type": "ExternalName"}),
        (PORTS, "{}", {"ports": (ServicePort("", 6, 80), ServicePort("d", 17, 53, 30053))}),
        ("{sessionAffinity: ClientIP}", "{}", {"affinity_seconds": 10800}),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}}",
            "{}",
            {"affinity_seconds": 600},
        ),
        ("{sessionAffinity: None}", "{}", {}),
        ("{internalTrafficPolicy: Local}", "{}", {"internal_policy": "Local"}),
        ("{externalTrafficPolicy: Local}", "{}", {"external_policy": "Local"}),
        ("{publishNotReadyAddresses: true}", "{}", {"publish_not_ready": True}),
        ("{externalIPs: ['fd00::1']}", "{}", {"external_ips": (B,)}),
        ("{type: LoadBalancer}", BALANCED, {"type": "LoadBalancer", "load_balancer_ips": (A,)}),
        ("{type: NodePort, healthCheckNodePort: 3}", "{}", {"type": "NodePort"}),
        ("{type: LoadBalancer, healthCheckNodePort: 3}", "{}", {"type": "LoadBalancer"}),
        (
            "{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30001}",
            "{}",
            {"type": "LoadBalancer", "external_policy": "Local", "health_check_port": 30001},
        ),
        (
            "{type: LoadBalancer, loadBalancerSourceRanges: [' 10.0.0.0/8 ', 'fd00::1/64']}",
            "{}",
            {"type": "LoadBalancer", "source_ranges": (ip_network("10.0.0.0/8"), ip_network("fd00::/64"))},
        ),
        ("{type: NodePort, loadBalancerSourceRanges: [10.0.0.0/8]}", "{}", {"type": "NodePort"}),
    ],
)
def test_service(spec: str, status: str, changes: dict[str, Any]) -> None:
    found = read("Service", f"{{spec: {spec}, status: {status}}}")
    assert found == Service(**{"namespace": "prod", "name": "x", "uid": "u-1", **changes})


OLD_RANGES = "annotations: {service.beta.kubernetes.io/load-balancer-source-ranges: '10.0.0.0/8, 192.0.2.1/32,'}"


@pytest.mark.parametrize(
    ("spec", "meta", "changes"),
    [
        ("{}", "labels: {service.kubernetes.io/service-proxy-name: ''}", {"fronted": False}),
        ("{}", "labels: {service.kubernetes.io/headless: ''}", {}),
        ("{}", "labels: {app: web}", {}),
        ("{}", "creationTimestamp: '1970-01-01T00:01:40Z'", {"created": 100}),
        ("{}", OLD_RANGES, {}),
        ("{type: LoadBalancer}", OLD_RANGES, {"type": "LoadBalancer", "source_ranges": ("10.0.0.0/8", "192.0.2.1/32")}),
        (
            "{type: LoadBalancer, loadBalancerSourceRanges: [10.1.0.0/16]}",
            OLD_RANGES,
            {"type": "LoadBalancer", "source_ranges": ("10.1.0.0/16",)},
        ),
    ],
)
def test_what_a_services_metadata_says(spec: str, meta: str, changes: dict[str, Any]) -> None:
    ranges = tuple(ip_network(text) for text in changes.pop("source_ranges", ()))
    expected = Service(namespace="prod", name="x", uid="u-1", source_ranges=ranges, **changes)
    assert read("Service", f"spec: {spec}", meta=f"{{{meta}}}") == expected


@pytest.mark.parametrize(
    ("conditions", "ready", "serving", "terminating"),
    [
        ("null", True, True, False),
        ("{}", True, True, False),
        ("{ready: false}", False, False, False),
        ("{ready: true}", True, True, False),
        ("{ready: false, serving: true, terminating: true}", False, True, True),
    ],
)
def test_endpoint_conditions(conditions: str, ready: bool, serving: bool, terminating: bool) -> None:
    found = read(
        "EndpointSlice",
        f"""
        addressType: IPv4
        ports: [{{name: http, port: 8080}}, {{port: null}}]
        endpoints:
        - addresses: [10.0.0.1]
          conditions: {conditions}
          nodeName: n1
          targetRef: {{kind: Pod, uid: p-1}}
        """,
        meta="{labels: {kubernetes.io/service-name: svc}}",
    )
    assert found.service == "svc"
    assert found.ports == (EndpointPort("http", 6, 8080),)
    assert found.endpoints == (SliceEndpoint((ip_address("10.0.0.1"),), ready, serving, terminating, "n1", "p-1"),)


@pytest.mark.parametrize(
    ("label", "fronted"),
    [("service.kubernetes.io/headless", False), ("service.kubernetes.io/service-proxy-name", True), ("app", True)],
)
def test_a_slice_for_names_alone(label: str, fronted: bool) -> None:
    found = read("EndpointSlice", "addressType: IPv4", meta=f"{{labels: {{{label}: ''}}}}")
    assert found.fronted == fronted


def test_an_endpoints_zone_and_hints() -> None:
    endpoints = """
      - {addresses: [10.0.0.1], zone: a, hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: n1}]}}
      - {addresses: [10.0.0.2], hints: {}}
    """
    first, second = read("EndpointSlice", f"addressType: IPv4\nendpoints: {endpoints}").endpoints
    assert (first.zone, first.for_zones, first.for_nodes) == ("a", ("a", "b"), ("n1",))
    assert (second.zone, second.for_zones, second.for_nodes) == ("", (), ())


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("{cidr: 10.0.0.0/8}", {}),
        ("{cidr: 'fd00:10:244::/56'}", {"cidr": ip_network("fd00:10:244::/56"), "block_size": 122}),
        ("{cidr: 10.244.0.0/26}", {"cidr": ip_network("10.244.0.0/26")}),
        ("{cidr: 10.0.0.0/8, blockSize: 20, ipipMode: Always}", {"block_size": 20, "ipip_mode": "Always"}),
        ("{cidr: 10.0.0.0/8, vxlanMode: CrossSubnet, ipipMode: Never}", {"vxlan_mode": "CrossSubnet"}),
        ("{cidr: 10.0.0.0/8, natOutgoing: true, disabled: true}", {"nat_outgoing": True, "disabled": True}),
        ("{cidr: 10.0.0.0/8, nodeSelector: a == 'b'}", {"node_selector": "a == 'b'"}),
        ("{cidr: 10.0.0.0/8, allowedUses: [Workload, Tunnel]}", {"allowed_uses": ("Workload", "Tunnel")}),
        ("{cidr: 10.0.0.0/8, assignmentMode: Manual}", {"assignment_mode": "Manual"}),
        ("{cidr: 10.0.0.0/8, assignmentMode: '', namespaceSelector: has(x)}", {"namespace_selector": "has(x)"}),
        ("{cidr: 10.0.0.0/8, ipipMode: '', vxlanMode: '', blockSize: 0, disableBGPExport: false}", {}),
        ("{cidr: 10.0.0.0/8, disableBGPExport: true}", {"disable_bgp_export": True}),
    ],
)
def test_pool(spec: str, changes: dict[str, Any]) -> None:
    plain = {"name": "x", "cidr": ip_network("10.0.0.0/8"), "block_size": 26}
    assert read("IPPool", f"spec: {spec}") == IPPool(**{**plain, **changes})


def test_a_pool_asks_for_what_calico_has_no_word_for() -> None:
    asks = "{annotations: {airmesh.io/model: auto}}"
    assert read("IPPool", "spec: {cidr: 10.0.0.0/8, ipipMode: Never, vxlanMode: ''}", meta=asks).model == "auto"


@pytest.mark.parametrize(
    ("asked", "spec", "says"),
    [
        ("auto", "ipipMode: Always", "auto is asked for beside spec.ipipMode Always; set spec.ipipMode to Never"),
        ("auto", "vxlanMode: CrossSubnet", "auto is asked for beside spec.vxlanMode CrossSubnet"),
        ("wireguard", "vxlanMode: Never", "'wireguard' is no model that can be asked for here; write auto"),
        ("Auto", "vxlanMode: Never", "'Auto' is no model"),
    ],
)
def test_a_pool_that_asks_for_two_models_or_for_none_that_there_is(asked: str, spec: str, says: str) -> None:
    with pytest.raises(Malformed) as caught:
        read("IPPool", f"spec: {{cidr: 10.0.0.0/8, {spec}}}", meta=f"{{annotations: {{airmesh.io/model: {asked}}}}}")
    assert caught.value.path == "metadata.annotations[airmesh.io/model]"
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("{}", {}),
        ("{vxlanPort: 8472, vxlanVNI: 1}", {"vxlan_port": 8472, "vxlan_vni": 1}),
        ("{vxlanVNI: 16777215, vxlanPort: 65535}", {"vxlan_port": 65535, "vxlan_vni": 16777215}),
        ("{vxlanMTU: 1280, vxlanMTUV6: 0, ipipMTU: 9000}", {"vxlan_mtu": 1280, "vxlan_mtu_v6": 0, "ipip_mtu": 9000}),
        (
            "{wireguardEnabled: true, wireguardEnabledV6: false}",
            {"wireguard_enabled": True, "wireguard_enabled_v6": False},
        ),
        ("{wireguardListeningPort: 4789, vxlanPort: 4791}", {"wireguard_listening_port": 4789, "vxlan_port": 4791}),
        ("{wireguardMTU: 1400, wireguardMTUV6: 1380}", {"wireguard_mtu": 1400, "wireguard_mtu_v6": 1380}),
        ("{vxlanPort: null, bpfEnabled: true, healthTimeoutOverrides: [{name: a}]}", {}),
    ],
)
def test_felix_configuration(spec: str, changes: dict[str, Any]) -> None:
    found = read("FelixConfiguration", f"spec: {spec}", name="default")
    assert found == FelixConfiguration(name="default", **changes)
    assert read("FelixConfiguration", "{}", name="node.n1") == FelixConfiguration(name="node.n1")


@pytest.mark.parametrize(
    ("kind", "name", "namespace"),
    [("ConfigMap", "other", "kube-system"), ("ConfigMap", "coredns", "prod"), ("Deployment", "web", "prod")],
)
def test_only_coredns_own_objects_are_kept(kind: str, name: str, namespace: str) -> None:
    assert read(kind, "{spec: {}}", name=name, meta=f"{{namespace: {namespace}}}") is None


def test_coredns_own_objects() -> None:
    meta = "{namespace: kube-system}"
    assert read("ConfigMap", "{data: {Corefile: x}}", name="coredns", meta=meta).content == (("Corefile", "x"),)
    found = read("Deployment", "{spec: {replicas: 0}, status: {readyReplicas: 2}}", name="coredns", meta=meta)
    assert (found.replicas, found.ready_replicas) == (0, 2)
    assert read("Deployment", "{spec: {}}", name="coredns", meta=meta).replicas == 1


@pytest.mark.parametrize(
    ("entry", "scaled_by"),
    [
        ("manager: kube-controller-manager, subresource: scale", "kube-controller-manager"),
        ("manager: kubectl, subresource: scale", ""),
        ("manager: kube-controller-manager, subresource: status", ""),
        ("manager: airmesh-dns", ""),
    ],
)
def test_an_autoscaler_is_known_by_the_subresource_that_it_writes(entry: str, scaled_by: str) -> None:
    """``managedFields`` as an API server has them after ``kubectl autoscale`` and after ``kubectl scale``."""
    other = "{manager: kubectl, fieldsV1: {f:spec: {f:template: {}}}}"
    owned = f"{{{entry}, fieldsV1: {{f:spec: {{f:replicas: {{}}}}}}}}"
    meta = f"{{namespace: kube-system, managedFields: [{other}, {owned}]}}"
    assert read("Deployment", "{spec: {replicas: 5}}", name="coredns", meta=meta).scaled_by == scaled_by


def test_slices_of_host_names_are_nobodys() -> None:
    assert read("EndpointSlice", "{addressType: FQDN, endpoints: [{addresses: [a.example]}]}") is None


BROKEN = [
    tuple(part.strip() for part in line.split(" | "))
    for line in (Path(__file__).parent / "broken.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("kind", "text", "path", "part"), BROKEN)
def test_one_clear_error(kind: str, text: str, path: str, part: str) -> None:
    with pytest.raises(Malformed) as caught:
        read(kind, text)
    whose = "x" if kind in CLUSTER_WIDE else "prod/x"
    assert str(caught.value).startswith(f"{kind} {whose}: ")
    assert caught.value.path == path
    assert part in str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "text", "path", "part"), BROKEN[:20])
def test_bytes_and_mappings_are_refused_alike(kind: str, text: str, path: str, part: str) -> None:
    found = next(one for one in KINDS if one.type.__name__ == kind)
    with pytest.raises(Malformed) as of_mapping:
        parse(found, written(kind, text))
    with pytest.raises(Malformed) as of_bytes:
        parse(found, msgspec.json.encode(written(kind, text)))
    assert (of_bytes.value.path, of_bytes.value.name) == (of_mapping.value.path, of_mapping.value.name)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": "Upper"}, "metadata.name"),
        ({"name": "a\n"}, "metadata.name"),
        ({"name": ""}, "metadata.name"),
        ({"name": "a" * 254}, "metadata.name"),
        ({"namespace": "a.b"}, "metadata.namespace"),
        ({"uid": ""}, "metadata.uid"),
        ({"namespace": ""}, "metadata.namespace"),
        ({"labels": {"a": "b" * 64}}, "metadata.labels[]"),
        ({"labels": {"": "b"}}, "metadata.labels"),
        ({"annotations": {"airmesh.io/x": "b" * 20000}}, "metadata.annotations[airmesh.io/x]"),
        ({"ownerReferences": [{"kind": "ReplicaSet"}]}, "metadata.ownerReferences[0]"),
    ],
)
def test_broken_metadata(change: dict[str, Any], path: str) -> None:
    broken = written("Pod", "spec: {}")
    broken["metadata"].update(change)
    with pytest.raises(Malformed) as caught:
        parse_object(broken)
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"metadata": 3}', b"[" * 100_000, b'{"metadata":{"name":{}}}']
)
def test_bytes_that_are_no_object(raw: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(Malformed):
            parse(kind, raw)


def test_an_object_larger_than_any() -> None:
    with pytest.raises(Malformed, match="larger"):
        parse(KINDS[0], b" " * (MAX_OBJECT + 1))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(Malformed, match="'Foo' of apiVersion 'v1' is not known"):
        parse_object({"apiVersion": "v1", "kind": "Foo", "metadata": {"name": "x"}})


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "examples").rglob("*.yaml")), *sorted((ROOT / "lab" / "manifests").glob("*.yaml"))],
    ids=lambda path: path.name,
)
def test_every_example_is_understood(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kind = kind_of(document["apiVersion"], document["kind"])
        if kind is not None:
            parse(kind, {**document, "metadata": {"namespace": "prod", "uid": "u-1", **document["metadata"]}})
