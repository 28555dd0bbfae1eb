"""Jobs that failed: what their last pod said, and room for another of the same name."""

from __future__ import annotations

from collections.abc import Sequence

from cli.faults import Declined
from cli.install import names, rollout
from cli.install.kinds import Object, Ref, ref
from cli.install.kubernetes import Kubernetes


def pods_of(api: Kubernetes, job: str) -> list[Object]:
    """Those that a Job of this name has, or had and nobody has deleted."""
    return api.items("v1", "Pod", names.NAMESPACE, labels=f"batch.kubernetes.io/job-name={job}")


def why(api: Kubernetes, job: Ref) -> Declined:
    """The last line of the container that failed, and on which node."""
    for pod in sorted(
        pods_of(api, job.name), key=lambda one: str(one["metadata"].get("creationTimestamp")), reverse=True
    ):
        if container := rollout.failed_container(pod):
            said = api.log_of(names.NAMESPACE, pod["metadata"]["name"], container, lines=1) or "it said nothing"
            return Declined(
                f"{job} failed on node {pod['spec'].get('nodeName', '')}: {said}", "mend that, then run again"
            )
    return Declined(f"{job} failed", f"look at `kubectl --namespace {names.NAMESPACE} describe job {job.name}`")


def take_away(api: Kubernetes, work: Sequence[Object]) -> list[Ref]:
    """Those of these Jobs that failed before are deleted, so that they can be made anew; which they were."""
    failed = [ref(one) for one in work if rollout.failed(api.get(ref(one)) or {})]
    for one in failed:
        api.delete(one, foreground=True)
    return failed
