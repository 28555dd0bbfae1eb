"""Does an installation run, and is everything there that it needs: asked of the API server, judged purely.

A node is well when its agents say so: `cluster` writes their word on the Node (the condition NetworkUnavailable, the
taint of a node that was never ready).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.install import accounts, bootstrap, names, requirements, rollout, secrets
from cli.install.findings import Finding, note, well, wrong
from cli.install.kinds import WORKLOADS
from cli.install.kubernetes import Kubernetes
from proto.subjects import ROLES

_NEW_TOKEN = "make another: airmesh keys bootstrap-token"  # noqa: S105 - a sentence
_SOON = 7 * bootstrap.DAY
_SERVICES = ("cluster", "ipam", "policy", "dns", "routing", "dataplane")


def look(api: Kubernetes) -> Iterator[Finding]:
    """Every finding of the cluster. Raises Refusal."""
    version = str(api.call("GET", "/version")["gitVersion"])
    if requirements.version_of(version) < requirements.KUBERNETES:
        least = ".".join(map(str, requirements.KUBERNETES))
        yield wrong("Kubernetes", f"{version} is too old", f"upgrade it to {least} or newer")
    else:
        yield well("Kubernetes", version)
    nodes = api.items("v1", "Node")
    workloads = [one for kind in WORKLOADS for one in api.items("apps/v1", kind, names.NAMESPACE, labels=names.OURS)]
    if not workloads:
        yield wrong("airmesh", "it is not installed in this cluster", "install it: airmesh install")
        return
    pods = api.items("v1", "Pod", names.NAMESPACE, labels=names.OURS)
    yield from of_workloads(workloads, pods)
    found = api.items("v1", "Secret", names.NAMESPACE)
    yield from of_secrets({one["metadata"]["name"] for one in found}, nodes)
    yield from of_rotations(found)
    yield from of_bootstrap(found, int(time.time()))
    yield from of_nodes(nodes)
    yield from of_pools(requirements.pools(api))


def of_workloads(found: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Each runs as often as it should, all of one tag."""
    present = {one["metadata"]["name"] for one in found}
    for name in _SERVICES:
        if name not in present:
            yield wrong(name, "it is not there", "run `airmesh install` again")
    tags: dict[str, list[str]] = {}
    for one in found:
        name = one["metadata"]["name"]
        image = one["spec"]["template"]["spec"]["containers"][0]["image"]
        tags.setdefault(image.rpartition(":")[2], []).append(name)
        own = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(names.NAME) == name]
        seen, held = rollout.progress(one), rollout.obstacle(own)
        if seen.done:
            yield well(name, f"{seen.text} run")
        elif held is not None:
            yield wrong(name, held.sentence, held.remedy)
        else:
            yield wrong(name, f"{seen.text} run", f"look at `kubectl --namespace {names.NAMESPACE} get pods`")
    if len(tags) > 1:
        said = "; ".join(f"{tag}: {', '.join(sorted(whose))}" for tag, whose in sorted(tags.items()))
        yield wrong(
            "images", f"they have several tags: {said}", "finish the upgrade, or go back: airmesh upgrade --to previous"
        )


def of_secrets(there: set[str], nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Every user of the bus has its key."""
    wanted = [names.seed_secret(role.name) for role in ROLES if not role.per_node and not role.shared]
    if names.BUS_CONFIG in there:  # nodes make their own keys
        wanted += [names.OPERATOR, names.ADMISSION, names.BOOTSTRAP]
    else:
        wanted += [names.node_secret(one["metadata"]["name"]) for one in nodes]
    lacking = [name for name in wanted if name not in there]
    if lacking:
        yield wrong(
            "keys", f"{len(lacking)} Secrets are missing: {', '.join(lacking[:3])}", "run `airmesh install` again"
        )
    else:
        yield well("keys", f"{len(wanted)} Secrets")


def of_rotations(found: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """No old key is good any longer than it has to be."""
    begun = sorted(one["metadata"]["name"] for one in found if accounts.is_replaced(one))
    if begun:
        yield note(
            "keys",
            f"old keys are good beside new ones ({', '.join(begun[:3])}): run `airmesh keys rotate` again for them",
        )


def of_bootstrap(found: Sequence[Mapping[str, Any]], now: int) -> Iterator[Finding]:
    """A node that comes may ask for a key."""
    for one in found:
        if one["metadata"]["name"] == names.BOOTSTRAP:
            last = bootstrap.current(one)
            left = -1 if last is None or last.revoked else last.expires - now
            if left < 0:
                yield note("bootstrap token", "it has ended: no new node is let in", _NEW_TOKEN)
            elif left < _SOON:
                yield note("bootstrap token", f"it ends in {left // bootstrap.DAY} days", _NEW_TOKEN)


def of_nodes(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Each node's agents have said that they are ready."""
    ready = 0
    for node in nodes:
        name = node["metadata"]["name"]
        conditions = {one["type"]: one for one in node.get("status", {}).get("conditions") or ()}
        network = conditions.get("NetworkUnavailable", {})
        tainted = any(one["key"] == requirements.TAINT for one in node.get("spec", {}).get("taints") or ())
        if network.get("status") == "False" and network.get("reason") == "AirmeshReady" and not tainted:
            ready += 1
        elif network.get("status") == "True":
            yield wrong(
                f"node {name}",
                "its agents say that they are not ready",
                f"look at the log of its dataplane: {_log(name)}",
            )
        else:
            yield wrong(
                f"node {name}",
                "its agents have not said that they are ready",
                f"run `airmesh check --node` there; {_log(name)}",
            )
    if ready:
        yield well("nodes", f"{ready} of {len(nodes)} are ready")
    bus = [one for one in nodes if names.BUS_NODE in (one["metadata"].get("labels") or {})]
    if bus and len(bus) < 3:
        found = ", ".join(secrets.host_of(one).name for one in bus)
        yield note("bus", f"one server alone ({found}): while it is down, only what nodes hold themselves goes on")


def of_pools(pools: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Pods need an IPPool; of one that is refused the API has the reason."""
    for pool in pools:
        conditions = (pool.get("status") or {}).get("conditions") or ()
        said: Mapping[str, Any] = next((one for one in conditions if one.get("type") == "Allocatable"), {})
        if said.get("status") == "False" and said.get("reason") != "PoolDisabled":
            problem, _, remedy = str(said.get("message", "")).partition("; ")
            yield wrong("pools", f"IPPool {pool['metadata']['name']} gives no addresses: {problem}", remedy)
    if pools:
        yield well("pools", ", ".join(str(one["spec"].get("cidr", "")) for one in pools))
    else:
        yield wrong("pools", "there is no IPPool: no pod gets an address", "make one, or install with --pool CIDR")


def _log(node: str) -> str:
    return f"kubectl --namespace {names.NAMESPACE} get pods --field-selector spec.nodeName={node}"
