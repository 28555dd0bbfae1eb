"""The mission's scenario of a small cluster across two networks: Calico's pool with ``ipipMode``, its file as it is.

On the routed fabric, where packets of pods as they are go nowhere between the segments. What was on the wire is seen by
a capture at the bridge; that policy holds, by connections from inside of pods. The pool of the lab makes room for the
scenario's, whose addresses are the same: pods that have some live on.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from zlib import crc32

import pytest

from lab.cluster.capture import Capture
from lab.cluster.packets import IPIP, PLAIN, VXLAN
from lab.paths import SOURCE
from tests.drills.streams import taken
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab, raised

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1200)]

SCENARIO = SOURCE / "examples" / "scenarios" / "hybrid-ipip.yaml"
POOL = "default-ipv4-ippool"
WIRED_SECONDS = 60.0

FRIENDS_ALONE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: friends-alone, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{role: server}}}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{podSelector: {{matchLabels: {{role: friend}}}}}}]}}]
"""
PODS = {"server": "n2", "friend": "n1", "stranger": "n1", "near": "n3"}
"""Pod → node: n1 is on the first segment, n2 and n3 are on the second."""


@pytest.fixture(scope="module")
def routed() -> Iterator[Lab]:
    """A routed lab with the scenario's pool in the place of its own."""
    with raised(f"hyb{crc32(os.fsencode(SOURCE)):08x}", "--fabric", "routed") as made:
        made.kubectl("delete", "ippool", "default-ipv4")
        made.kubectl("apply", "-f", str(SCENARIO))
        yield made


@pytest.fixture(scope="module")
def space(routed: Lab) -> Iterator[LabNamespace]:
    """Pods on every node, `server` closed to all but `friend` and `near`'s role."""
    made = LabNamespace(routed, f"hybrid-{uuid.uuid4().hex[:8]}")
    routed.kubectl("create", "namespace", made.namespace)
    routed.apply(FRIENDS_ALONE.format(namespace=made.namespace))
    for name, node in PODS.items():
        made.pod(name, node, "friend" if name == "near" else name, wait=False)
    for name in PODS:
        made.ready(name)
    yield made
    routed.kubectl("delete", "namespace", made.namespace, "--wait=false")


def four(space: LabNamespace, name: str) -> str:
    return next(one for one in space.addresses(name) if "." in one)


def settled(space: LabNamespace, wanted: Callable[[str, str], str]) -> None:
    """Wait until the kernel's IPv4 routes between nodes are of the models wanted of each pair."""
    addresses = {PODS[name]: [four(space, name)] for name in ("friend", "server", "near")}

    def all_taken() -> bool:
        return all(model == wanted(one, other) for (one, other, _), model in taken(space.lab, addresses).items())

    space.lab.until("every pair's route is of its model", all_taken, WIRED_SECONDS)


def on_the_wire(space: LabNamespace, source: str, target: str) -> dict[str, int]:
    """What a connection from one pod to another was in between their nodes: packets of both ways, by tunnel."""
    ends = {four(space, source), four(space, target)}
    with Capture.of_lab(space.lab.topology) as wire:
        assert space.connects(source, four(space, target))
    found: dict[str, int] = {}
    for (_, packet), count in wire.seen.items():
        if set(map(str, packet.ends)) == ends:
            found[packet.tunnel] = found.get(packet.tunnel, 0) + count
    return found


def edit(lab: Lab, **fields: str) -> None:
    patch = ", ".join(f'"{name}": "{value}"' for name, value in fields.items())
    lab.kubectl("patch", "ippool", POOL, "--type=merge", f"--patch={{{chr(34)}spec{chr(34)}: {{{patch}}}}}")


def test_packets_of_pods_cross_the_fabric_as_protocol_4_alone(space: LabNamespace) -> None:
    settled(space, lambda *_: IPIP)
    assert set(on_the_wire(space, "friend", "server")) == {IPIP}
    assert set(on_the_wire(space, "near", "server")) == {IPIP}, "Always: between nodes of one segment, too"


def test_policy_holds_inside_of_the_tunnel(space: LabNamespace) -> None:
    settled(space, lambda *_: IPIP)
    assert space.connects("friend", four(space, "server"))
    assert not space.connects("stranger", four(space, "server"))


def test_cross_subnet_is_between_the_segments_only(space: LabNamespace) -> None:
    edit(space.lab, ipipMode="CrossSubnet")
    settled(space, lambda one, other: IPIP if "n1" in (one, other) else "host-gw")
    assert set(on_the_wire(space, "friend", "server")) == {IPIP}
    assert set(on_the_wire(space, "near", "server")) == {PLAIN}
    edit(space.lab, ipipMode="Always")
    settled(space, lambda *_: IPIP)


def test_the_same_wish_for_vxlan_in_calicos_other_spelling(space: LabNamespace) -> None:
    edit(space.lab, ipipMode="Never", vxlanMode="Always")
    settled(space, lambda *_: VXLAN)
    assert set(on_the_wire(space, "friend", "server")) == {VXLAN}
    edit(space.lab, ipipMode="Always", vxlanMode="Never")
    settled(space, lambda *_: IPIP)


def test_the_control_plane_reaches_pods_of_the_other_segment(space: LabNamespace) -> None:
    """It is no node and has no pods; its way to them is a gateway's."""
    settled(space, lambda *_: IPIP)

    def answered() -> bool:
        try:
            space.lab.inside(
                "cp", "curl", "-s", "-o", "/dev/null", "--max-time", "3", f"http://{four(space, 'near')}:8080/"
            )
        except AssertionError:
            return False
        return True

    space.lab.until("the control plane reaches a pod", answered, 30)
