"""`airmesh install`, `upgrade`, `uninstall`, `check` before a real API server: whole, idempotent, or not at all."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from cli.install.names import NAMESPACE
from cli.install.requirements import RIGHTS
from proto.subjects import ROLES
from tests.natsd import NatsServer, free_port
from tests.shell.cli.install.conftest import APPS, BATCH, NODES, ROOT, World

SEED = re.compile(r"\bSU[A-Z2-7]{50,}")
CORE = f"/api/v1/namespaces/{NAMESPACE}"
INSTALL = ("install", "--uplinks", "eth0", "--pool", "10.244.0.0/16", "--timeout", "20")


def data(world: World, name: str) -> dict[str, str]:
    found = world.get(f"{CORE}/secrets/{name}")
    return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}


def seeds(world: World) -> dict[str, Any]:
    return {
        one["metadata"]["name"]: one["data"]
        for one in world.items(f"{CORE}/secrets")
        if one["metadata"]["name"].startswith(("airmesh-seed-", "airmesh-node-"))
    }


def image(world: World, plural: str, name: str) -> str:
    found = world.get(f"{APPS}/{plural}/{name}")
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"])


def pools(world: World) -> list[str]:
    return [one["spec"]["cidr"] for one in world.items("/apis/crd.projectcalico.org/v1/ippools")]


def nothing_is_left(world: World) -> None:
    assert world.get(CORE) is None, "the command ended before the namespace did: an installation now would fail"
    roles = "/apis/rbac.authorization.k8s.io/v1"
    for path in (f"{roles}/clusterroles", f"{roles}/clusterrolebindings", f"{roles}/namespaces/kube-system/roles"):
        assert [one for one in world.items(path) if one["metadata"]["name"].startswith("airmesh")] == []
    for node in NODES:
        found = world.get(f"/api/v1/nodes/{node}")
        assert "node.airmesh.io/bus" not in (found["metadata"].get("labels") or {})
        assert found["status"].get("conditions") in (None, []), "what agents said of the node is said no more"


@pytest.mark.timeout(300)
def test_a_whole_installation_its_upgrade_the_way_back_and_its_end(world: World) -> None:
    dry = world.airmesh(*INSTALL, "--dry-run")
    assert dry.code == 0, dry.err
    assert "+kind: DaemonSet" in dry.out
    assert not SEED.search(dry.out)
    assert world.get(CORE) is None, "a dry run changed something"

    world.speak = False
    done = world.airmesh(*INSTALL[:-1], "8")
    assert "revision 1" in done.out, done.err
    assert done.code == 1, "no node has said that it is ready"
    assert "node n2" in done.out
    assert world.order[0] == "nats", "the bus alone is waited for: cluster services and agents wait for each other"
    assert sorted(world.order) == ["cluster", "dataplane", "dns", "ipam", "nats", "policy", "routing"]
    assert pools(world) == ["10.244.0.0/16"]
    config = data(world, "airmesh-nats")["nats.conf"]
    assert "192.0.2.2:6222" in config
    assert '"type": "full"' in config, "accounts are handed to the servers that run"
    assert "dataplane-n3" not in config, "it names no node"
    assert world.get(f"{CORE}/secrets/airmesh-node-n3") is None, "a node makes its own keys"
    assert "BEGIN NATS USER JWT" in data(world, "airmesh-bootstrap")["token.creds"]
    operators = data(world, "airmesh-nats-operator")["operator.seed"].strip()
    assert operators not in str([data(world, "airmesh-admission"), data(world, "airmesh-bootstrap")])
    assert data(world, "airmesh-nats-tls").keys() == {"tls.crt", "tls.key", "ca.crt"}
    settings = [
        one["data"] for one in world.items(f"{CORE}/configmaps") if "AIRMESH_UPLINKS" in (one.get("data") or {})
    ]
    assert settings[0]["AIRMESH_NATS_URL"] == "nats://192.0.2.1:4222,nats://192.0.2.2:4222,nats://192.0.2.3:4222"
    assert settings[0]["AIRMESH_BUCKET_REPLICAS"] == "3"
    assert world.items(f"{BATCH}/jobs") == [], "they are cleared away"

    world.ready()
    checked = world.airmesh("check")
    assert checked.code == 0, checked.out
    assert "everything is as it should be" in checked.out

    # Once more: nothing changes, least of all a key.
    keys, before = seeds(world), [one["metadata"]["generation"] for one in world.items(f"{APPS}/daemonsets")]
    again = world.airmesh("install", "--timeout", "20")
    assert (again.code, "0 Secrets made" in again.err) == (0, True), again.err
    assert seeds(world) == keys
    assert [one["metadata"]["generation"] for one in world.items(f"{APPS}/daemonsets")] == before
    assert world.airmesh("install", "--dry-run").out == "no difference\n"

    world.order.clear()
    up = world.airmesh("upgrade", "--tag", "0.2.0", "--timeout", "20")
    assert up.code == 0, up.err
    assert world.order[-2:] == ["dataplane", "routing"], "nodes come last"
    assert image(world, "daemonsets", "dataplane").endswith("dataplane:0.2.0")
    back = world.airmesh("upgrade", "--to", "previous", "--timeout", "20")
    assert back.code == 0, back.err
    assert image(world, "deployments", "cluster").endswith("cluster:0.1.0")
    assert seeds(world) == keys

    # An upgrade to an image that nobody has: one sentence, and all is as before.
    world.no_image = "policy"
    bad = world.airmesh("upgrade", "--tag", "9.9.9", "--timeout", "20")
    world.no_image = ""
    assert bad.code == 4
    assert "policy:9.9.9 cannot be had on node n2" in bad.err
    assert "--registry" in bad.err
    for plural, name in (("deployments", "policy"), ("deployments", "cluster"), ("daemonsets", "dataplane")):
        assert image(world, plural, name).endswith(":0.1.0")

    end = world.airmesh("uninstall", "--yes", "--timeout", "20")
    assert end.code == 0, end.err
    nothing_is_left(world)
    assert pools(world) == ["10.244.0.0/16"], "pools are a person's"


def test_an_installation_that_fails_leaves_nothing(world: World) -> None:
    world.no_image = "ipam"
    done = world.airmesh(*INSTALL)
    assert done.code == 4
    assert "ipam:0.1.0 cannot be had on node n2 (ImagePullBackOff: not found)" in done.err
    nothing_is_left(world)


def test_one_that_is_killed_is_taken_up_by_the_next(world: World) -> None:
    world.rolls = False
    with world.command(*INSTALL) as running:
        deadline = time.monotonic() + 90
        while not world.items(f"{APPS}/statefulsets"):
            assert time.monotonic() < deadline, "it makes nothing"
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    keys = seeds(world)
    assert len(keys) == len([role for role in ROLES if not role.per_node and not role.shared])
    checked = world.airmesh("check")
    assert checked.code == 1
    world.rolls = True
    done = world.airmesh(*INSTALL)
    assert "revision 1" in done.out, done.err
    assert done.code == 0, "the command did not wait for what nodes say a moment later"
    assert seeds(world) == keys
    assert len(world.items(f"{APPS}/daemonsets")) == 2


def test_a_bus_with_other_users_is_named_and_one_with_ours_is_taken(world: World, nats_server: NatsServer) -> None:
    own = (*INSTALL, "--nats", nats_server.url)
    without = world.airmesh(*own)
    assert (without.code, world.get(CORE)) == (4, None)
    assert "they have no keys yet" in without.err
    printed = world.airmesh("keys", "accounts").out
    assert "dataplane-n3" in printed
    assert not SEED.search(printed)
    other = world.airmesh(*own)
    assert other.code == 4
    assert f"the NATS server at {nats_server.url} does not know airmesh's users" in other.err
    assert world.items(f"{APPS}/deployments") == []
    nats_server.config.write_text(nats_server.config.read_text().partition("accounts:")[0] + printed)
    nats_server.restart()
    done = world.airmesh(*own)
    assert "revision 1" in done.out, done.err
    assert world.items(f"{APPS}/statefulsets") == []


def test_who_may_not_learns_what_is_missing_and_nothing_is_begun(world: World) -> None:
    done = world.airmesh(*INSTALL, user="nobody")
    assert done.code == 4
    assert "you may not: get namespaces, create namespaces" in done.err
    assert len(done.err.strip().splitlines()) == 2
    assert world.get(CORE) is None


@contextmanager
def granted(world: World, rights: Sequence[tuple[str, str, str, str]]) -> Iterator[None]:
    """`nobody` has these rights alone, in all namespaces."""
    at, name = "/apis/rbac.authorization.k8s.io/v1", "of-a-test"
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    rules = [{"apiGroups": [group], "resources": [resource], "verbs": [verb]} for verb, group, resource, _ in rights]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "nobody"}]
    kinds = {
        "clusterroles": {**head, "kind": "ClusterRole", "rules": rules},
        "clusterrolebindings": {**head, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": subjects},
    }
    for plural, body in kinds.items():
        world.kube.call("POST", f"{at}/{plural}", body)
    try:
        yield
    finally:
        for plural in kinds:
            world.kube.call("DELETE", f"{at}/{plural}/{name}")


def test_who_lacks_one_right_learns_which_and_nothing_is_begun(world: World) -> None:
    """Also one that an installation needs when it fails alone."""
    lacking = ("delete", "", "secrets", NAMESPACE)
    with granted(world, [one for one in RIGHTS if one != lacking]):
        done = world.airmesh(*INSTALL, user="nobody")
    assert (done.code, "you may not: delete secrets\n" in done.err) == (4, True), done.err
    assert world.get(CORE) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_rights_that_are_asked_for_are_enough(world: World) -> None:
    with granted(world, RIGHTS):
        for arguments in (
            INSTALL,
            ("upgrade", "--tag", "0.2.0", "--timeout", "30"),
            ("upgrade", "--to", "previous", "--timeout", "30"),
            ("keys", "bootstrap-token", "--ttl", "1d"),
            ("keys", "rotate", "--service", "cli", "--now"),
            ("check",),
            ("uninstall", "--yes", "--timeout", "30"),
        ):
            done = world.airmesh(*arguments, user="nobody", timeout=120)
            assert done.code == 0, (arguments, done.err)
        nothing_is_left(world)
        world.no_image = "ipam"
        failed = world.airmesh(*INSTALL, user="nobody")
        assert "ipam:0.1.0 cannot be had" in failed.err
        nothing_is_left(world)


class OlderServer(BaseHTTPRequestHandler):
    """The API server as one of another version would be seen: what it says of that is all that is changed.

    What would write is answered with 501, and the command would say so.
    """

    world: World
    version = "v1.29.15"
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        said = self.world.kube.call("GET", self.path)
        if self.path == "/version":
            said["gitVersion"] = self.version
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def test_an_older_kubernetes_is_named_and_not_written_to(world: World, tmp_path: Path) -> None:
    OlderServer.world = world
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), OlderServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        config = yaml.safe_load(world.kube.kubeconfig().read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{server.server_port}"}
        own = tmp_path / "kubeconfig"
        own.write_text(yaml.safe_dump(config))
        for arguments in (INSTALL, ("upgrade",), ("keys", "rotate", "--all")):
            argv = [sys.executable, "-m", "cli", *arguments, "--kubeconfig", str(own)]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 4, done.stderr
            sentence = (
                "this cluster runs Kubernetes v1.29.15: airmesh needs 1.30 or newer\n  remedy: upgrade the cluster"
            )
            assert sentence in done.stderr
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    assert OlderServer.asked == ["/version"] * 3
    assert world.get(CORE) is None


def test_another_network_is_named_with_what_has_to_go_first(world: World) -> None:
    """Flannel's DaemonSet, as its manifest has it."""
    path = "/apis/apps/v1/namespaces/kube-system/daemonsets"
    labels = {"app": "flannel"}
    pod = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "kube-flannel", "image": "flannel:v0.26.1"}]},
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-flannel-ds"},
        "spec": {"selector": {"matchLabels": labels}, "template": pod},
    }
    world.kube.call("POST", path, body)
    try:
        done = world.airmesh("install", "--uplinks", "eth0", "--migrate")
        assert done.code == 4
        assert "this cluster runs Flannel, and pods of two networks would reach each other only if" in done.err
        assert "then delete DaemonSet kube-flannel-ds and ConfigMap kube-flannel-cfg; then on each node" in done.err
        assert world.get(CORE) is None
    finally:
        world.kube.call("DELETE", f"{path}/kube-flannel-ds")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("install",), 2, "--uplinks is not given"),
        (("install", "--uplinks", "eth0,"), 2, "is no interface"),
        (("install", "--uplinks", "eth0", "--nats", "http://x"), 2, "is not the URL of a NATS server"),
        (("install", "--uplinks", "eth0", "--pool", "10.0.0.1/8"), 2, "is no CIDR"),
        (("install", "--uplinks", "eth0", "--set", "AIRMESH_UPLINKS=eth1"), 2, "is no setting"),
        (("install", "--uplinks", "eth0", "--api-server", "x"), 2, "is not where an API server is"),
        (("install", "--uplinks", "eth0"), 4, "there is no IPPool"),
        (
            ("install", "--uplinks", "eth0", "--migrate"),
            4,
            "nothing is to be migrated: no Flannel, Calico or Cilium runs",
        ),
        (("upgrade",), 4, "airmesh is not installed in this cluster"),
        (("uninstall", "--yes"), 4, "airmesh is not installed in this cluster"),
        (("check",), 1, ""),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    world: World, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = world.airmesh(*arguments)
    assert done.code == code, done.err
    assert sentence in done.err
    assert world.get(CORE) is None
