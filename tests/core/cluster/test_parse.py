"""Kubernetes objects in, the mesh's types out; and one clear error for each that is broken."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
import yaml

from proto.identity import NamedPort
from proto.objects import (
    KINDS,
    EndpointPort,
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
from services.cluster.core.parse import MAX_OBJECT, Malformed, parse, parse_object

SPELLING = {
    "Namespace": "v1", "Node": "v1", "Pod": "v1", "Service": "v1", "ConfigMap": "v1", "Deployment": "apps/v1",
    "EndpointSlice": "discovery.k8s.io/v1", "NetworkPolicy": "networking.k8s.io/v1", "IPPool": "crd.projectcalico.org/v1",
}  # fmt: skip
CLUSTER_WIDE = ("Namespace", "Node", "IPPool")


def written(kind: str, text: str, *, name: str = "x", meta: str = "{}") -> dict[str, Any]:
    """An object as the API would serve it; ``text`` is YAML of what stands beside its metadata."""
    metadata = {"name": name, "uid": "u-1", **yaml.safe_load(meta)}
    if kind not in CLUSTER_WIDE:
        metadata.setdefault("namespace", "prod")
    return {"apiVersion": SPELLING[kind], "kind": kind, "metadata": metadata, **(yaml.safe_load(text) or {})}


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


@pytest.mark.parametrize(
    ("name", "meta", "owner"),
    [
        ("bare", "{}", None),
        ("bare", "{annotations: {airmesh.io/keep-address: 'true'}}", Owner("prod", "Pod", "bare")),
        ("bare", "{annotations: {airmesh.io/keep-address: 'no'}}", None),
        ("bare", "{annotations: {cni.projectcalico.org/ipAddrs: '[\"10.1.2.3\"]'}}", Owner("prod", "Pod", "bare")),
        ("db-3", "{ownerReferences: [{kind: StatefulSet, name: db, controller: true}]}", Owner("prod", "StatefulSet", "db", 3)),
        ("db-0", "{ownerReferences: [{kind: StatefulSet, name: db, controller: true}], labels: {apps.kubernetes.io/pod-index: '7'}}", Owner("prod", "StatefulSet", "db", 0)),
        ("odd", "{ownerReferences: [{kind: StatefulSet, name: db, controller: true}], labels: {apps.kubernetes.io/pod-index: '7'}}", Owner("prod", "StatefulSet", "db", 7)),
        ("odd", "{ownerReferences: [{kind: StatefulSet, name: db, controller: true}]}", Owner("prod", "StatefulSet", "db", -1)),
        ("db-x", "{ownerReferences: [{kind: StatefulSet, name: db}]}", None),
        ("a-1-2", "{ownerReferences: [{kind: ReplicaSet, name: a-1, controller: true}], labels: {pod-template-hash: '1'}}", Owner("prod", "ReplicaSet", "a-1")),
        ("a-1-2", "{ownerReferences: [{kind: ReplicaSet, name: a-1, controller: true}], labels: {pod-template-hash: '1'}, annotations: {airmesh.io/keep-address: 'true'}}", Owner("prod", "Deployment", "a")),
        ("a-1-2", "{ownerReferences: [{kind: ReplicaSet, name: a-1, controller: true}], annotations: {airmesh.io/keep-address: 'true'}}", Owner("prod", "ReplicaSet", "a-1")),
        ("j-1", "{ownerReferences: [{kind: Job, name: j, controller: true}]}", Owner("prod", "Job", "j")),
    ],
)  # fmt: skip
def test_whom_a_kept_address_belongs_to(name: str, meta: str, owner: Owner | None) -> None:
    assert read("Pod", "spec: {}", name=name, meta=meta).owner == owner


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


def test_pod_of_few_words() -> None:
    assert read("Pod", "{spec: {}, status: {podIP: 10.0.0.1, podIPs: null}}").addresses == (ip_address("10.0.0.1"),)
    assert read("Pod", "spec: {containers: null}") == Pod(namespace="prod", name="x", uid="u-1", node="")


def test_node() -> None:
    found = read(
        "Node",
        """
        spec: {unschedulable: true}
        status:
          addresses: [{type: InternalIP, address: 172.30.0.11}, {type: Hostname, address: n1}, {type: InternalIP, address: 'fd00::b'}]
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
    ("text", "changes"),
    [
        ("{spec: {clusterIP: None, clusterIPs: [None]}}", {}),
        ("{spec: {clusterIP: 10.96.0.1}}", {"cluster_ips": (ip_address("10.96.0.1"),)}),
        ("{spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1']}}", {"cluster_ips": (ip_address("10.96.0.1"), ip_address("fd00::1"))}),
        ("{spec: {type: ExternalName, externalName: a.b, clusterIPs: ['']}}", {"type": "ExternalName"}),
        ("{spec: {ports: [{port: 80, targetPort: http}, {name: d, port: 53, protocol: UDP, nodePort: 30053}]}}", {"ports": (ServicePort("", 6, 80), ServicePort("d", 17, 53, 30053))}),
        ("{spec: {sessionAffinity: ClientIP}}", {"affinity_seconds": 10800}),
        ("{spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}}}", {"affinity_seconds": 600}),
        ("{spec: {sessionAffinity: None}}", {}),
        ("{spec: {internalTrafficPolicy: Local, externalTrafficPolicy: Local}}", {"internal_policy": "Local", "external_policy": "Local"}),
        ("{spec: {publishNotReadyAddresses: true}}", {"publish_not_ready": True}),
        ("{spec: {externalIPs: [192.0.2.1]}}", {"external_ips": (ip_address("192.0.2.1"),)}),
        ("{spec: {type: LoadBalancer}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2, ipMode: Proxy}, {hostname: a}]}}}", {"type": "LoadBalancer", "load_balancer_ips": (ip_address("192.0.2.1"),)}),
    ],
)  # fmt: skip
def test_service(text: str, changes: dict[str, Any]) -> None:
    assert read("Service", text) == Service(**{"namespace": "prod", "name": "x", "uid": "u-1", **changes})


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
        f"{{addressType: IPv4, ports: [{{name: http, port: 8080}}, {{port: null}}], endpoints: [{{addresses: [10.0.0.1], "
        f"conditions: {conditions}, nodeName: n1, targetRef: {{kind: Pod, uid: p-1}}}}]}}",
        meta="{labels: {kubernetes.io/service-name: svc}}",
    )
    assert found.service == "svc"
    assert found.ports == (EndpointPort("http", 6, 8080),)
    assert found.endpoints == (SliceEndpoint((ip_address("10.0.0.1"),), ready, serving, terminating, "n1", "p-1"),)


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("{cidr: 10.244.0.0/16}", {"cidr": ip_network("10.244.0.0/16"), "block_size": 26}),
        ("{cidr: 'fd00:10:244::/56'}", {"cidr": ip_network("fd00:10:244::/56"), "block_size": 122}),
        ("{cidr: 10.244.0.0/26}", {"cidr": ip_network("10.244.0.0/26"), "block_size": 26}),
        ("{cidr: 10.0.0.0/8, blockSize: 20, ipipMode: Always}", {"cidr": ip_network("10.0.0.0/8"), "block_size": 20, "ipip_mode": "Always"}),
        ("{cidr: 10.0.0.0/8, blockSize: 32, vxlanMode: CrossSubnet, ipipMode: Never}", {"cidr": ip_network("10.0.0.0/8"), "block_size": 32, "vxlan_mode": "CrossSubnet"}),
        ("{cidr: 10.0.0.0/8, natOutgoing: true, disabled: true, nodeSelector: a == 'b', allowedUses: [Workload], disableBGPExport: true}", {"cidr": ip_network("10.0.0.0/8"), "block_size": 26, "nat_outgoing": True, "disabled": True, "node_selector": "a == 'b'"}),
        ("{cidr: 10.0.0.0/8, ipipMode: '', vxlanMode: '', blockSize: 0}", {"cidr": ip_network("10.0.0.0/8"), "block_size": 26}),
    ],
)  # fmt: skip
def test_pool(spec: str, changes: dict[str, Any]) -> None:
    assert read("IPPool", f"spec: {spec}") == IPPool(**{"name": "x", **changes})


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


def test_slices_of_host_names_are_nobodys() -> None:
    assert read("EndpointSlice", "{addressType: FQDN, endpoints: [{addresses: [a.example]}]}") is None


BROKEN = [
    # kind, what stands beside metadata | path | part of the sentence
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: 70000}]}]}", "spec.ingress[0].ports[0].port", "65535"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: 0}]}]}", "spec.ingress[0].ports[0].port", ">= 1"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: '80'}]}]}", "spec.ingress[0].ports[0].port", "without quotes"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: HTTP}]}]}", "spec.ingress[0].ports[0].port", "not a port's name"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: true}]}]}", "spec.ingress[0].ports[0].port", "expected"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: 80, endPort: 79}]}]}", "spec.ingress[0].ports[0].endPort", "lower than"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: web, endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort", "named port"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort", "without a port"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{protocol: ICMP}]}]}", "spec.ingress[0].ports[0].protocol", "invalid enum"),
    ("NetworkPolicy", "spec: {ingress: [{ports: [{port: 80, prot: TCP}]}]}", "spec.ingress[0].ports[0]", "unknown field prot"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]", "names no peer"),
    ("NetworkPolicy", "spec: {ingress: [{from: [null]}]}", "spec.ingress[0].from[0]", "null"),
    ("NetworkPolicy", "spec: {ingress: [null]}", "spec.ingress[0]", "null"),
    ("NetworkPolicy", "spec: {ingress: {}}", "spec.ingress", "expected array"),
    ("NetworkPolicy", "spec: {ingress: [{to: [{podSelector: {}}]}]}", "spec.ingress[0]", "unknown field to"),
    ("NetworkPolicy", "spec: {egress: [{from: [{podSelector: {}}]}]}", "spec.egress[0]", "unknown field from"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{podselector: {}}]}]}", "spec.ingress[0].from[0]", "unknown field podselector"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}", "spec.ingress[0].from[0]", "two peers"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr", "no prefix length"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr", "not a CIDR"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/255.0.0.0}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr", "write 10.0.0.0/8"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr", "not a CIDR"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {}}]}]}", "spec.ingress[0].from[0].ipBlock", "missing required field cidr"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}", "spec.ingress[0].from[0].ipBlock.except[0]", "not inside"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}", "spec.ingress[0].from[0].ipBlock.except[0]", "not inside"),
    ("NetworkPolicy", "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}]}]}", "spec.ingress[0].from[0].ipBlock.except[0]", "not inside"),
    ("NetworkPolicy", "spec: {policyTypes: [ingress]}", "spec.policyTypes[0]", "invalid enum"),
    ("NetworkPolicy", "spec: {policyTypes: Ingress}", "spec.policyTypes", "expected array"),
    ("NetworkPolicy", "spec: {podSelector: {matchLabels: {a: 1}}}", "spec.podSelector.matchLabels[]", "expected str"),
    ("NetworkPolicy", "spec: {podSelector: {matchLabels: [a]}}", "spec.podSelector.matchLabels", "expected object"),
    ("NetworkPolicy", "spec: {podSelector: {role: db}}", "spec.podSelector", "unknown field role"),
    ("NetworkPolicy", "spec: {podSelector: {matchExpressions: [{key: a, operator: In}]}}", "spec.podSelector.matchExpressions[0].values", "at least one value"),
    ("NetworkPolicy", "spec: {podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}", "spec.podSelector.matchExpressions[0].values", "takes none"),
    ("NetworkPolicy", "spec: {podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}", "spec.podSelector.matchExpressions[0].operator", "invalid enum"),
    ("NetworkPolicy", "spec: {podSelector: {matchExpressions: [{operator: Exists}]}}", "spec.podSelector.matchExpressions[0]", "missing required field key"),
    ("NetworkPolicy", "spec: {tiers: []}", "spec", "unknown field tiers"),
    ("NetworkPolicy", "{}", "", "missing required field spec"),
    ("IPPool", "spec: {}", "spec", "missing required field cidr"),
    ("IPPool", "spec: {cidr: 10.244.1.0/16}", "spec.cidr", "write 10.244.0.0/16"),
    ("IPPool", "spec: {cidr: pods}", "spec.cidr", "no prefix length"),
    ("IPPool", "spec: {cidr: 10.244.0.0/28}", "spec.cidr", "smaller than one block"),
    ("IPPool", "spec: {cidr: 'fd00::/124'}", "spec.cidr", "smaller than one block"),
    ("IPPool", "spec: {cidr: 10.244.0.0/16, blockSize: 19}", "spec.blockSize", "20 to 32"),
    ("IPPool", "spec: {cidr: 'fd00::/64', blockSize: 64}", "spec.blockSize", "116 to 128"),
    ("IPPool", "spec: {cidr: 10.244.0.0/16, blockSize: 129}", "spec.blockSize", "128"),
    ("IPPool", "spec: {cidr: 'fd00::/64', ipipMode: Always}", "spec.ipipMode", "IPv4 only"),
    ("IPPool", "spec: {cidr: 10.0.0.0/8, ipipMode: Always, vxlanMode: Always}", "spec.vxlanMode", "Never"),
    ("IPPool", "spec: {cidr: 10.0.0.0/8, ipipMode: always}", "spec.ipipMode", "invalid enum"),
    ("IPPool", "spec: {cidr: 10.0.0.0/8, blocksize: 26}", "spec", "unknown field blocksize"),
    ("IPPool", "spec: {cidr: 10.0.0.0/8, natOutgoing: 'yes'}", "spec.natOutgoing", "expected bool"),
    ("Service", "spec: {ports: [{port: 0}]}", "spec.ports[0].port", ">= 1"),
    ("Service", "spec: {ports: [{port: 80, nodePort: 99999}]}", "spec.ports[0].nodePort", "65535"),
    ("Service", "spec: {type: Nodeport}", "spec.type", "invalid enum"),
    ("Service", "spec: {clusterIPs: [nonsense]}", "spec.clusterIPs[0]", "not an IP address"),
    ("Service", "spec: {externalIPs: ['fe80::1%eth0']}", "spec.externalIPs[0]", "zone"),
    ("Service", "{spec: {}, status: {loadBalancer: {ingress: [{ip: 1.2.3}]}}}", "status.loadBalancer.ingress[0].ip", "not an IP address"),
    ("Service", "spec: []", "spec", "expected object"),
    ("EndpointSlice", "{addressType: IPv4, endpoints: [{addresses: ['fd00::1']}]}", "endpoints[0].addresses[0]", "addressType IPv6"),
    ("EndpointSlice", "{addressType: IPv7}", "addressType", "invalid enum"),
    ("EndpointSlice", "{endpoints: []}", "", "missing required field addressType"),
    ("EndpointSlice", "{addressType: IPv4, endpoints: [{}]}", "endpoints[0]", "missing required field addresses"),
    ("Pod", "spec: {containers: [{ports: [{containerPort: http}]}]}", "spec.containers[0].ports[0].containerPort", "expected int"),
    ("Pod", "{spec: {}, status: {podIPs: [{ip: 300.1.1.1}]}}", "status.podIPs[0].ip", "not an IP address"),
    ("Pod", "spec: null", "spec", "expected object"),
    ("Node", "status: {addresses: [{type: InternalIP, address: n1}]}", "status.addresses[0].address", "not an IP address"),
]  # fmt: skip


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


def test_a_file_needs_neither_uid_nor_namespace() -> None:
    found = parse_object({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}, live=False)
    assert isinstance(found, Pod)
    assert (found.namespace, found.uid) == ("default", "")
