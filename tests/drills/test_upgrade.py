"""`airmesh upgrade` to other images and back, while 50 TCP and 50 UDP flows run between pods, neighbours knock where
they may not enter, and pods start: no flow is lost, nobody who may not is heard.

The other images are this tree's own under another tag, so each server, service and agent is replaced by a new container
twice. In a lab whose agents are pods.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from deploy.images import plan
from lab.cluster import pods
from tests.drills.traffic import Traffic, street
from tests.labkit import Lab
from tests.podkit import TAG, airmesh, begin, finish

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1200)]
OTHER = "upgraded"


@pytest.fixture(scope="module")
def traffic(installed: Lab) -> Iterator[Traffic]:
    with street(installed) as made:
        yield made


def have_other_images(lab: Lab) -> None:
    """Every node's runtime has them under the other tag, too."""
    for host in lab.topology.nodes:
        ctr = ["ctr", "--address", str(lab.where.node(host.name).containerd_socket), "--namespace", "k8s.io", "images"]
        for there, other in zip(pods.image_names(TAG), pods.image_names(OTHER), strict=True):
            subprocess.run([*ctr, "tag", "--force", there, other], check=True, capture_output=True, timeout=60)


def tags(lab: Lab) -> set[str]:
    """Tags of the images that containers of airmesh run."""
    found = lab.get("pods", "--namespace", "airmesh-system", "--selector", "!airmesh.io/job")["items"]
    stay = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    return {one["image"].rpartition(":")[2] for pod in stay for one in pod["spec"]["containers"]}


def changed(lab: Lab, traffic: Traffic, *arguments: str) -> int:
    """How many pods started while `airmesh upgrade` ran; nothing was lost meanwhile."""
    running, started = begin(lab, "upgrade", *arguments), 0
    try:
        while running.poll() is None:
            name = f"new-{started}"
            traffic.space.pod(name, f"n{started % 3 + 1}", "new", wait=False)
            traffic.space.ready(name)
            lab.kubectl("delete", "pod", "--namespace", traffic.space.namespace, name, "--wait=false")
            started += 1
            traffic.unbroken()
    finally:
        said = finish(running)
    assert "airmesh is " in said, said
    time.sleep(1.0)  # of traffic since the last look
    traffic.unbroken()
    traffic.flowing()
    return started


def test_all_images_are_replaced_and_come_back_under_traffic(installed: Lab, traffic: Traffic) -> None:
    lab, own = installed, TAG or plan.tag()
    have_other_images(lab)
    traffic.flowing()
    assert tags(lab) == {own}
    there = changed(lab, traffic, "--tag", OTHER)
    assert tags(lab) == {OTHER}
    back = changed(lab, traffic, "--to", "previous")
    assert tags(lab) == {own}
    assert there > 0 < back, "no pod started meanwhile"
    assert "everything is as it should be" in airmesh(lab, "check")
    print(f"pods started: {there} + {back}; echoes {traffic.totals['echoed']}, knocks {traffic.totals['tries']}")
