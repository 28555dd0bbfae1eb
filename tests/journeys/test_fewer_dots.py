"""`airmesh dns apply ndots/NAMESPACE` on a cluster: what a resolv.conf says, how many queries a name costs a pod, and
the way back.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.paths import SOURCE
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged]

NAME = "kubernetes.default.svc.cluster.local"
"""It is there, and has four dots."""
SECONDS = 60.0
"""The API server's own caches follow a policy after a moment."""


def change(space: LabNamespace, verb: str) -> None:
    """`airmesh dns VERB` of the namespace's dots, as a person runs it."""
    kubeconfig = str(space.lab.where.kubeconfig)
    argv = [sys.executable, "-m", "cli", "dns", verb, f"ndots/{space.namespace}", "--kubeconfig", kubeconfig]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def unpolicied(lab: Lab) -> Iterator[None]:
    """Other tests' pods are none of this policy's."""
    yield
    kinds = "mutatingadmissionpolicybindings,mutatingadmissionpolicies"
    lab.kubectl("delete", kinds, "-l", "app.kubernetes.io/name=ndots")


def dots(space: LabNamespace, pod: str) -> int:
    """What a pod's resolver goes by."""
    said = re.search(r"ndots:(\d+)", space.lab.exec(space.namespace, pod, "cat", "/etc/resolv.conf"))
    assert said is not None
    return int(said[1])


def made_with(space: LabNamespace, wanted: int) -> str:
    """A pod that was admitted with so many dots."""
    end = time.monotonic() + SECONDS
    while True:
        name = f"dots-{wanted}-{uuid.uuid4().hex[:6]}"
        space.pod(name, "n1")
        if (found := dots(space, name)) == wanted:
            return name
        assert time.monotonic() < end, f"ndots:{found}, not {wanted}"
        space.lab.kubectl("delete", "pod", "-n", space.namespace, name)


def queries(space: LabNamespace, pod: str, airmesh: Callable[..., Any]) -> int:
    """How many queries one look-up of an IPv4 address costs a pod, by the datapath's count."""

    def asked() -> int:
        rows = airmesh("dns", "report", "-n", space.namespace)["pods"]
        return sum(row["queries"] for row in rows if row["pod"] == pod)

    before = asked()
    space.lab.exec(space.namespace, pod, "getent", "ahostsv4", NAME)
    space.lab.until("its queries are counted", lambda: asked() > before, 30)
    return asked() - before


def test_a_namespaces_pods_ask_for_less_until_it_is_taken_back(
    space: LabNamespace, airmesh: Callable[..., Any]
) -> None:
    many = made_with(space, 5)
    change(space, "apply")
    few = made_with(space, 2)
    assert (queries(space, many, airmesh), queries(space, few, airmesh)) == (4, 1)
    change(space, "revert")
    made_with(space, 5)
