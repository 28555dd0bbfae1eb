"""What comes from outside may be anything: API objects, settings. One clear error each, or a value that can be used.

Thousands of good inputs, each with one thing changed: a value of another type or far too large, a field too many or too
few, bytes flipped or cut. An error is one line that names the object and what to do; no other exception leaves.
(The CNI side of this stands in tests/core/dataplane/cni/test_cni.py.)
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from chassis.faults import SettingsFault
from chassis.runtime.settings import load
from proto import codec
from proto.objects import KIND_OF, Kind
from services.cluster.core.parse import NAMES, Malformed, kind_of, parse

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = re.compile(r"[-/_=.a-zA-Z0-9]+\Z")
"""What NATS takes as a key of a bucket."""
PER_KIND = 560
"""Changed objects of each kind: thirteen kinds make 7,280."""
SERVICES = ("cluster", "ipam", "routing", "policy", "dataplane", "dns")
PER_SERVICE = 850

META = "{name: x, namespace: prod, uid: u-1, labels: {app: a}, annotations: {airmesh.io/keep-address: 'true'}}"
GOOD = f"""
- {{apiVersion: v1, kind: Namespace, metadata: {{name: prod, uid: u-1, labels: {{kubernetes.io/metadata.name: prod}}}}}}
- apiVersion: v1
  kind: Node
  metadata: {{name: n1, uid: u-1, annotations: {{airmesh.io/blocks: '10.244.0.0/26,fd00:10:244::/122'}}}}
  spec: {{unschedulable: false, taints: [{{key: a, effect: NoSchedule}}]}}
  status: {{addresses: [{{type: InternalIP, address: 172.30.0.11}}], conditions: [{{type: Ready, status: 'True'}}]}}
- apiVersion: v1
  kind: Pod
  metadata: {{name: db-0, namespace: prod, uid: u-1, labels: {{app: a}},
    ownerReferences: [{{kind: StatefulSet, name: db, controller: true}}],
    annotations: {{cni.projectcalico.org/ipAddrs: '["10.1.2.3"]'}}}}
  spec: {{nodeName: n1, serviceAccountName: default, hostNetwork: false,
    containers: [{{name: c, ports: [{{name: http, containerPort: 80, protocol: TCP}}]}}]}}
  status: {{phase: Running, podIPs: [{{ip: 10.1.2.3}}, {{ip: 'fd00::3'}}]}}
- apiVersion: v1
  kind: Service
  metadata: {META}
  spec: {{type: ClusterIP, clusterIPs: [10.96.0.1, 'fd00:10:96::1'], externalIPs: [1.2.3.4], sessionAffinity: ClientIP,
    ports: [{{name: http, port: 80, targetPort: http, protocol: TCP, nodePort: 30000}}], selector: {{app: a}}}}
  status: {{loadBalancer: {{ingress: [{{ip: 1.2.3.4}}]}}}}
- apiVersion: v1
  kind: ConfigMap
  metadata: {{name: coredns, namespace: kube-system, uid: u-1}}
  data: {{Corefile: '.:53 {{}}'}}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {{name: coredns, namespace: kube-system, uid: u-1}}
  spec: {{replicas: 2}}
  status: {{readyReplicas: 2}}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {{name: x-1, namespace: prod, uid: u-1, labels: {{kubernetes.io/service-name: x}}}}
  addressType: IPv4
  endpoints: [{{addresses: [10.1.2.3], conditions: {{ready: true, serving: true}}, nodeName: n1,
    targetRef: {{kind: Pod, name: db-0, namespace: prod}}}}]
  ports: [{{name: http, port: 80, protocol: TCP}}]
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {META}
  spec:
    podSelector: {{matchLabels: {{role: db}}, matchExpressions: [{{key: tier, operator: In, values: [a, b]}}]}}
    policyTypes: [Ingress, Egress]
    ingress: [{{from: [{{podSelector: {{}}, namespaceSelector: {{}}}},
      {{ipBlock: {{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}}}],
      ports: [{{port: 80, endPort: 90, protocol: TCP}}, {{port: http}}]}}]
    egress: [{{to: [{{podSelector: {{}}}}], ports: [{{protocol: UDP, port: 53}}]}}]
- apiVersion: crd.projectcalico.org/v1
  kind: FelixConfiguration
  metadata: {{name: default, uid: u-1}}
  spec: {{vxlanPort: 8472, vxlanVNI: 1, vxlanMTU: 1450, ipipMTU: 0, wireguardEnabled: true, wireguardEnabledV6: false,
    wireguardListeningPort: 51820, wireguardMTU: 1420, bpfEnabled: false}}
- apiVersion: crd.projectcalico.org/v1
  kind: IPPool
  metadata: {{name: pods, uid: u-1}}
  spec: {{cidr: 10.244.0.0/16, blockSize: 26, ipipMode: Never, vxlanMode: Never, natOutgoing: true,
    nodeSelector: all()}}
- apiVersion: crd.projectcalico.org/v1
  kind: BGPConfiguration
  metadata: {{name: default, uid: u-1}}
  spec: {{asNumber: 64512, nodeToNodeMeshEnabled: false, logSeverityScreen: Info, listenPort: 1790,
    communities: [{{name: rack, value: '64512:1'}}], serviceClusterIPs: [{{cidr: 10.96.0.0/12}}],
    prefixAdvertisements: [{{cidr: 10.244.0.0/16, communities: [rack, '64512:1:2']}}]}}
- apiVersion: crd.projectcalico.org/v1
  kind: BGPPeer
  metadata: {{name: tor-a, uid: u-1}}
  spec: {{peerIP: '172.31.0.1:1790', asNumber: '65000.1', nodeSelector: "rack == 'a'", sourceAddress: None,
    password: {{secretKeyRef: {{name: bgp-secrets, key: tor-a}}}}, filters: [racks], ttlSecurity: 1,
    maxRestartTime: 60s, numAllowedLocalASNumbers: 1}}
- apiVersion: crd.projectcalico.org/v1
  kind: BGPFilter
  metadata: {{name: racks, uid: u-1}}
  spec:
    importV4: [{{action: Accept, matchOperator: In, cidr: 10.0.0.0/8, prefixLength: {{min: 16, max: 26}}}}]
    exportV6: [{{action: Reject, source: RemotePeers}}]
- apiVersion: crd.projectcalico.org/v1
  kind: CalicoNodeStatus
  metadata: {{name: n1, uid: u-1}}
  spec: {{node: n1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 20}}
"""
OBJECTS: dict[str, dict[str, Any]] = {one["kind"]: one for one in yaml.safe_load(GOOD)}

DEEP: Any = None
for _ in range(40):
    DEEP = [DEEP]
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 70, 1e308, "", " ", "x", "\x00", "../../../etc/passwd", "a" * 5000,
    "\ud7ff\U0001f600",
    "a\nb", "10.0.0.0/33", "010.1.1.1", "fe80::1%eth0", "::ffff:1.2.3.4", "1.2.3.4/0", "*", ">", "a.b", "=2E", "$KV.x",
    [], {}, [None], [[]], {"": ""}, {"a": None}, {"a": {"b": {}}}, ["x"] * 300, DEEP, 65536, 4294967296, "NaN",
    {"matchLabels": {"a" * 400: "b"}}, {"x" * 300: "y"}, {"name": "../x"}, "é", "A", "-", ".", "..", "-a", "a-",
)  # fmt: skip


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*path, step)
        yield from paths_of(inner, (*path, step))


def changed(good: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The object with one thing changed, or two."""
    made = copy.deepcopy(good)
    for _ in range(chance.choice((1, 1, 1, 2))):
        path = chance.choice(list(paths_of(made)))
        within = made
        for step in path[:-1]:
            within = within[step]
        match chance.randrange(6):
            case 0:
                del within[path[-1]]
            case 1 if isinstance(within[path[-1]], dict):
                within[path[-1]][chance.choice(("x", "", "name", "spec", "a" * 400, "../x"))] = copy.deepcopy(
                    chance.choice(JUNK)
                )
            case 2 if isinstance(within[path[-1]], list) and within[path[-1]]:
                within[path[-1]] = within[path[-1]] * chance.choice((2, 90))
            case _:
                within[path[-1]] = copy.deepcopy(chance.choice(JUNK))
    return made


def mangled(text: bytes, chance: random.Random) -> bytes:
    """JSON with some bytes flipped, cut, doubled or put in."""
    raw = bytearray(text)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw))
        match chance.randrange(4):
            case 0:
                raw[at] = chance.randrange(256)
            case 1:
                del raw[at : at + chance.randint(1, 40)]
            case 2:
                raw[at:at] = raw[at : at + chance.randint(1, 40)]
            case _:
                raw[at:at] = chance.choice((b'"', b"{", b"]", b"\\u0000", b"\xff", b"null", b"1e999", b"[" * 2000))
        raw = raw or bytearray(b"x")
    return bytes(raw)


def judge(kind: Kind, raw: bytes | Mapping[str, Any]) -> str:
    """``used``, ``unused`` or ``refused``; fails when it is none of these whole."""
    try:
        found = parse(kind, raw)
    except Malformed as error:
        text = str(error)
        assert "\n" not in text, text
        assert len(text) < 1000, text
        assert text.startswith(f"{NAMES[kind.type]} "), text
        assert "; " in text, f"no remedy: {text}"
        assert error.problem, text
        assert error.remedy, text
        return "refused"
    if found is None:
        return "unused"
    key = codec.object_key(found)
    assert KEY.match(key), key
    assert key.startswith(codec.kind_prefix(kind)), key
    assert ".." not in key, key
    assert codec.open_sealed(kind.type, codec.seal(found))[0] == found
    return "used"


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_a_changed_object_is_understood_or_refused_with_one_sentence(name: str) -> None:
    good, chance = OBJECTS[name], random.Random(name)
    kind = kind_of(good["apiVersion"], name)
    assert kind is not None
    assert judge(kind, good) == "used", "the good one is good"
    outcomes = []
    for number in range(PER_KIND):
        made: bytes | dict[str, Any] = changed(good, chance)
        if number % 3 == 1:
            made = json.dumps(made).encode("utf-8", "surrogatepass")
        elif number % 3 == 2:
            made = mangled(json.dumps(good).encode(), chance)
        try:
            outcomes.append(judge(kind, made))
        except Exception as error:
            error.add_note(f"{name} {number}: {str(made)[:1500]}")
            raise
    assert outcomes.count("refused") >= PER_KIND / 5, "changes that nobody minds change nothing"
    assert {kind.__name__ for kind in KIND_OF} == set(OBJECTS)


def settings_of(service: str) -> tuple[type[Any], dict[str, str]]:
    """A service's settings and an environment they are content with."""
    kind: type[Any] = importlib.import_module(f"services.{service}.settings").Settings
    environment = {
        "AIRMESH_NATS_URL": "nats://127.0.0.1:4222",
        "AIRMESH_NATS_SEED_FILE": "/run/seed",
        "AIRMESH_NATS_USER": service,
        "AIRMESH_HEALTH_PORT": "0",
        "AIRMESH_LOG_LEVEL": "info",
        "AIRMESH_NODE": "n1",
        "AIRMESH_STATE_DIR": "/var/lib/airmesh",
        "AIRMESH_UPLINKS": "eth0",
        "AIRMESH_GATEWAY": "false",
        "AIRMESH_KUBECONFIG": "/etc/kubeconfig",
    }
    return kind, environment


@pytest.mark.parametrize("service", SERVICES)
def test_a_changed_setting_is_understood_or_refused_by_name(service: str) -> None:
    kind, good = settings_of(service)
    load(kind, good)
    variables = sorted({f"AIRMESH_{field.upper()}" for field in kind.__dataclass_fields__})
    chance, refused = random.Random(service), 0
    texts = [value for value in JUNK if isinstance(value, str)]
    texts += ["-1", "0", "1e400", "nan", "inf", "99999999999999999999", "true", "1,2", ",", "0x10", "1_000", "٣", "½"]
    for _ in range(PER_SERVICE):
        environment = dict(good)
        variable = chance.choice(variables)
        if chance.random() < 0.1:
            environment.pop(variable, None)
        else:
            environment[variable] = chance.choice(texts)
        try:
            loaded = load(kind, environment)
            numbers = [n for n in map(loaded.__getattribute__, kind.__dataclass_fields__) if isinstance(n, int | float)]
            assert all(0 <= number < float("inf") for number in numbers), environment[variable]
        except SettingsFault as fault:
            refused += 1
            sentence = str(fault)
            assert variable in sentence, sentence
            assert "\n" not in sentence, sentence
            assert len(sentence) < 500, sentence
    assert refused >= PER_SERVICE / 20


@pytest.mark.parametrize(
    ("service", "variable", "value"),
    [
        ("cluster", "AIRMESH_HEALTH_PORT", "many"),
        ("ipam", "AIRMESH_LOG_LEVEL", "lo\nud"),
        ("routing", "AIRMESH_NATS_USER", None),
        ("policy", "AIRMESH_POLICY_SHARDS", "1000000"),
        ("dataplane", "AIRMESH_ADDRESS_COOLDOWN", "nan"),
        ("dns", "AIRMESH_HEALTH_PORT", "-1"),
    ],
)
def test_a_service_with_a_wrong_setting_says_so_and_ends(service: str, variable: str, value: str | None) -> None:
    _, good = settings_of(service)
    environment = {**good, variable: value or ""}
    if value is None:
        del environment[variable]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("AIRMESH_")}
    done = subprocess.run(
        [sys.executable, "-m", f"services.{service}"],
        cwd=REPOSITORY,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert variable in done.stderr
