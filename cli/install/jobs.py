"""What runs once: a node's seeds are put there, all that airmesh made there is taken away, the bus gets accounts. Pure.

A node's Job is bound to it by name, so a node reads no other's seeds: the API server lets a kubelet read only the
Secrets of pods that are bound to it. Its name says what it is about, so the same work is not done twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.install import names
from cli.install.kinds import Object
from cli.install.secrets import Host
from proto.admission import AUDIENCE

SEEDS = "seeds"
ACCOUNTS = "accounts"
REMOVE = "remove"
RENEW = "renew"
_PYTHON = ["/usr/bin/python3.11", "-P", "-m"]
_SECRET = "/run/secrets/airmesh"  # noqa: S105 - a folder
_DEADLINE_SECONDS = 600


def write_seeds(host: Host, image: str, about: str) -> Object:
    """Seeds of a node's agents, from its Secret into its folder. ``about``: a digest of them."""
    container = {
        "name": SEEDS,
        "image": image,
        "command": [*_PYTHON, "services.dataplane.seeds", _SECRET, "/etc/airmesh/seeds"],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": _security([]),
        "volumeMounts": [
            {"name": "secret", "mountPath": _SECRET, "readOnly": True},
            {"name": "seeds", "mountPath": "/etc/airmesh/seeds"},
        ],
    }
    volumes = [
        {"name": "secret", "secret": {"secretName": names.node_secret(host.name), "defaultMode": 0o400}},
        {"name": "seeds", "hostPath": {"path": "/etc/airmesh/seeds", "type": "DirectoryOrCreate"}},
    ]
    name = names.job(SEEDS, host.name, names.digest(about, host.uid, image))
    return _job(SEEDS, {"nodeName": host.name}, name, [container], volumes)


def renew(host: Host, image: str, settings: Mapping[str, str], about: str, *, at_once: bool) -> Object:
    """Another key for each agent of a node, made there, and let in by `cluster`. ``settings``: what agents are told;
    ``about``: which rotation.
    """
    said = {key: settings[key] for key in ("AIRMESH_NATS_URL", "AIRMESH_NATS_CA_FILE") if key in settings}
    containers = [
        {
            "name": role,
            "image": image,
            "command": [*_PYTHON, "chassis.bus.joining", role, "--now" if at_once else "--renew"],
            "env": [
                *({"name": key, "value": value} for key, value in said.items()),
                {"name": "AIRMESH_NODE", "value": host.name},
                {"name": "AIRMESH_NATS_SEED_FILE", "value": f"/etc/airmesh/seeds/{role}.seed"},
            ],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
            "securityContext": _security([]),
            "volumeMounts": [
                {"name": "seeds", "mountPath": "/etc/airmesh/seeds"},
                {"name": "bootstrap", "mountPath": "/run/secrets/airmesh-bootstrap", "readOnly": True},
                {"name": "admission", "mountPath": "/run/secrets/airmesh-admission", "readOnly": True},
                {"name": "bus-authority", "mountPath": "/etc/airmesh/bus", "readOnly": True},
            ],
        }
        for role in ("routing", "dataplane")
    ]
    token = {"serviceAccountToken": {"audience": AUDIENCE, "expirationSeconds": 3600, "path": "token"}}
    volumes = [
        {"name": "seeds", "hostPath": {"path": "/etc/airmesh/seeds", "type": "DirectoryOrCreate"}},
        {"name": "bootstrap", "secret": {"secretName": names.BOOTSTRAP, "defaultMode": 0o400}},
        {"name": "admission", "projected": {"sources": [token], "defaultMode": 0o400}},
        {"name": "bus-authority", "configMap": {"name": names.AUTHORITY, "optional": True}},
    ]
    return _job(RENEW, {"nodeName": host.name}, names.job(RENEW, host.name, about), containers, volumes)


def remove(host: Host, dataplane: str, routing: str, about: str) -> Object:
    """Everything of airmesh on a node. ``about``: which uninstall, so that one that comes later is another Job.

    ``routing`` empty: its agent has never run there, and its image may be what is missing.
    """
    rights = ["NET_ADMIN", "SYS_ADMIN", "DAC_OVERRIDE"]
    steps = [("routes", routing, "services.routing.remove"), ("rest", dataplane, "services.dataplane.remove")]
    containers: list[dict[str, Any]] = [
        {
            "name": name,
            "image": image,
            "command": [*_PYTHON, module, "/host"],
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
            "securityContext": {**_security(rights), "seccompProfile": {"type": "Unconfined"}},
            "volumeMounts": [{"name": "host", "mountPath": "/host", "mountPropagation": "HostToContainer"}],
        }
        for name, image, module in steps
        if image
    ]
    volumes = [{"name": "host", "hostPath": {"path": "/", "type": "Directory"}}]
    return _job(REMOVE, {"nodeName": host.name}, names.job(REMOVE, host.name, about), containers, volumes)


def hand_over(name: str, image: str, settings: Mapping[str, str], *, authority: bool = False) -> Object:
    """Accounts for the bus' servers, or a wait for who takes its new key or certificate, as the Secret of the same name
    says. It runs where the bus does. ``settings``: what every agent is told; ``authority``: its Secret says whom it
    trusts.
    """
    said = {key: settings[key] for key in ("AIRMESH_NATS_URL", "AIRMESH_NATS_CA_FILE") if key in settings}
    if authority:
        said["AIRMESH_NATS_CA_FILE"] = f"{_SECRET}/ca.crt"
    container = {
        "name": ACCOUNTS,
        "image": image,
        "command": [*_PYTHON, "services.cluster.accounts", _SECRET],
        "env": [{"name": key, "value": value} for key, value in said.items()],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {**_security([]), "runAsUser": 65532, "runAsGroup": 65532},
        "volumeMounts": [
            {"name": "secret", "mountPath": _SECRET, "readOnly": True},
            {"name": "bus-authority", "mountPath": "/etc/airmesh/bus", "readOnly": True},
        ],
    }
    volumes = [
        {"name": "secret", "secret": {"secretName": name, "defaultMode": 0o440}},
        {"name": "bus-authority", "configMap": {"name": names.AUTHORITY, "optional": True}},
    ]
    made = _job(ACCOUNTS, {"nodeSelector": {names.BUS_NODE: "true"}}, name, [container], volumes)
    made["spec"]["template"]["spec"]["securityContext"] = {"fsGroup": 65532}
    return made


def does_the_same(one: Object, other: Object) -> bool:
    """Whether two Jobs run the same commands of the same images."""
    return _commands(one) == _commands(other)


def _commands(job: Object) -> list[tuple[str, list[str]]]:
    spec = job["spec"]["template"]["spec"]
    return [(one["image"], one["command"]) for one in (*spec.get("initContainers", ()), *spec["containers"])]


def _security(rights: list[str]) -> dict[str, Any]:
    capabilities = {"drop": ["ALL"], "add": rights} if rights else {"drop": ["ALL"]}
    return {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": capabilities,
    }


def _job(work: str, where: Mapping[str, Any], name: str, containers: list[Any], volumes: list[Any]) -> Object:
    labels = {names.PART_OF: "airmesh", names.NAME: work, names.JOB: work}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": names.NAMESPACE, "labels": labels},
        "spec": {
            "backoffLimit": 4,
            "activeDeadlineSeconds": _DEADLINE_SECONDS,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **where,
                    "serviceAccountName": "airmesh",
                    "automountServiceAccountToken": False,
                    "hostNetwork": True,
                    "dnsPolicy": "Default",
                    "restartPolicy": "Never",  # a pod that failed stays, with its last word
                    "priorityClassName": "system-node-critical",
                    "tolerations": [{"operator": "Exists"}],
                    "initContainers": containers[:-1],
                    "containers": containers[-1:],
                    "volumes": volumes,
                },
            },
        },
    }
