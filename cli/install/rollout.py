"""How far a workload has come, and what holds it up, in one sentence: from its status and its pods'. Pure.

Source: k8s.io/api apps/v1, batch/v1 and core/v1; `kubectl rollout status` judges by the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cli.install import names

_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_NO_CONFIG = ("CreateContainerConfigError", "CreateContainerError")
_AGAIN = ("CrashLoopBackOff", "RunContainerError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One look."""

    done: bool
    text: str
    """`2 of 3`, for a person who waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """What keeps pods from running. ``final``: waiting does not help."""

    pod: str
    container: str
    sentence: str
    remedy: str
    final: bool


def progress(found: Mapping[str, Any]) -> Progress:
    """Of a Deployment, StatefulSet, DaemonSet or Job as the API serves it."""
    status: Mapping[str, Any] = found.get("status") or {}
    spec: Mapping[str, Any] = found["spec"]
    if found["kind"] == "Job":
        done = _holds(found, "Complete")
        return Progress(done=done, text="done" if done else "runs")
    seen = status.get("observedGeneration", 0) >= found["metadata"].get("generation", 1)
    if found["kind"] == "DaemonSet":
        wanted, updated = status.get("desiredNumberScheduled", 0), status.get("updatedNumberScheduled", 0)
        ready = status.get("numberAvailable", 0)
    else:
        wanted, updated = spec.get("replicas", 1), status.get("updatedReplicas", 0)
        ready = status.get("availableReplicas", 0)
        seen = seen and status.get("replicas", 0) == wanted
    done = seen and updated == wanted and ready >= wanted
    return Progress(done=done, text=f"{min(updated, ready)} of {wanted}" if seen else "not begun")


def failed(job: Mapping[str, Any]) -> bool:
    """Whether a Job has given up."""
    return _holds(job, "Failed")


def failed_container(pod: Mapping[str, Any]) -> str:
    """The container of a pod that ended otherwise than well; empty where none did."""
    for one in _containers(pod):
        if ((one.get("state") or {}).get("terminated") or {}).get("exitCode"):
            return str(one["name"])
    return ""


def has_begun(pod: Mapping[str, Any]) -> bool:
    """Whether any container of a pod has run, those that go first among them."""
    return any("waiting" not in (one.get("state") or {"waiting": {}}) for one in _containers(pod))


def _holds(job: Mapping[str, Any], condition: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Statuses of all its containers, those that go first before the others."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def obstacle(pods: Iterable[Mapping[str, Any]]) -> Obstacle | None:
    """The worst that is found: one that does not pass by itself goes first."""
    found = [one for pod in pods for one in _of_pod(pod)]
    return min(found, key=lambda one: not one.final, default=None)


def _of_pod(pod: Mapping[str, Any]) -> Iterable[Obstacle]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    node = pod.get("spec", {}).get("nodeName", "")
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Obstacle(
                pod=name,
                container="",
                sentence=f"pod {name} finds no node: {condition.get('message', condition.get('reason', ''))}",
                remedy="give it a node that has what it asks for",
                final=False,
            )
    for one in _containers(pod):
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), " ".join(str(waiting.get("message", "")).split())[:300]
        if reason in _NO_IMAGE:
            yield Obstacle(
                pod=name,
                container=one["name"],
                sentence=f"image {one['image']} cannot be had on node {node} ({reason}{': ' if said else ''}{said})",
                remedy="push or load it there, or name others with --registry and --tag",
                final=True,
            )
        elif reason in _NO_CONFIG:
            yield Obstacle(
                pod=name,
                container=one["name"],
                sentence=f"pod {name} on node {node} cannot be made ({reason}: {said})",
                remedy="mend what it names, then run this again",
                final=True,
            )
        elif reason in _AGAIN:
            last = (one.get("lastState") or {}).get("terminated") or {}
            # Of one that never began there is no log; the runtime's words are all there is.
            why = said if reason == "RunContainerError" else " ".join(str(last.get("message", "")).split())[:300]
            yield Obstacle(
                pod=name,
                container=one["name"],
                sentence=f"pod {name} on node {node} ends again and again{f' ({why})' if why else ''}",
                remedy=f"look at `kubectl --namespace airmesh-system logs {name} --previous`",
                final=False,
            )


def is_signed(bus: Mapping[str, Any]) -> bool:
    """Whether the servers of a StatefulSet trust an operator."""
    metadata = bus.get("spec", {}).get("template", {}).get("metadata", {})
    return names.BUS_ACCOUNTS in (metadata.get("annotations") or {})
