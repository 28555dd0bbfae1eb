"""A node's agent after an upgrade: what runs goes on, new maps are filled, then programs are switched to them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from linux import bpf
from services.dataplane.core.datapath.layout import Index
from services.dataplane.core.datapath.maps import CHOICE
from services.dataplane.core.datapath.service_layout import ChoiceKey
from services.dataplane.core.loadbalancer.choice import choice_key
from services.dataplane.datapath.maps import Table
from tests.bpf.former import BEFORE, REPLACED, as_before, change, ids, pins_of
from tests.bpf.world import inside
from tests.netns.dataplane.mesh import Listener, Mesh, RunningPod, dial, wait_for
from tests.netns.dataplane.policy.test_enforced import deny_ingress

pytestmark = pytest.mark.privileged


class Wire:
    """A connection that a pod has begun with another, over each family."""

    def __init__(self, client: RunningPod, server: RunningPod, port: int, stack: ExitStack) -> None:
        self._ends = []
        for address in server.addresses:
            with inside(server.netns):
                listening = stack.enter_context(
                    socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
                )
            with inside(client.netns):
                near = stack.enter_context(socket.create_connection((address, port), 2))
            far = stack.enter_context(listening.accept()[0])
            far.settimeout(2)
            self._ends.append((near, far))

    def goes_on(self) -> bool:
        try:
            for near, far in self._ends:
                near.sendall(b"word")
                far.sendall(far.recv(4))
                if near.recv(4) != b"word":
                    return False
        except TimeoutError:
            return False
        return True


@contextmanager
def guarded(node: Mesh, name: str) -> Iterator[tuple[RunningPod, RunningPod, Listener, Wire]]:
    """A pod to which nobody may begin anything, and one that it is connected to: only as answers of a flow that is
    known do the other's packets reach it.
    """
    prober, target = node.pod(f"{name}-front"), node.pod(f"{name}-back")
    listener = Listener(prober.netns)
    policy = deny_ingress(f"{name}-front", f"{name}-front")
    with ExitStack() as stack:
        stack.callback(listener.close)
        wire = Wire(prober, target, 7000, stack)
        node.put(policy)
        wait_for("the policy", lambda: dial(target.netns, prober.four, 80, listener, 0.3) == "")
        assert wire.goes_on()
        yield prober, target, listener, wire
        node.delete(policy)
        wait_for("the policy gone", lambda: dial(target.netns, prober.four, 80, listener, 0.3) != "")
        assert wire.goes_on()


def count(node: Mesh, message: str) -> int:
    return sum(entry["event"] == message for entry in node.log("dataplane"))


def chosen_by(node: Mesh) -> ChoiceKey | None:
    """The key by which the programs that run choose backends."""
    fd = bpf.pinned(pins_of(node.pins)[CHOICE.name])
    try:
        return Table(fd, CHOICE, Index, ChoiceKey).get(Index(index=0))
    finally:
        os.close(fd)


def test_new_maps_are_filled_before_programs_use_them(node: Mesh) -> None:
    """Agents come and go while the bus is away: the old programs judge by what they know. With it, all is filled."""
    with guarded(node, "filled") as (prober, target, listener, wire):
        node.kill("dataplane")
        node.nats.kill()
        had = ids(node.pins)
        change(node.pins, "am_subjects", "am_ipcache", "am_backends", "am_cookies", "am_scratch")
        for _ in range(2):
            found = count(node, "endpoints-found")
            node.start_dataplane()
            wait_for("the agent", lambda found=found: count(node, "endpoints-found") > found)  # type: ignore[misc]
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                assert wire.goes_on()
            assert dial(target.netns, prober.four, 80, listener, 0.3) == ""
            assert dial(target.netns, prober.six, 80, listener, 0.3) == ""
            assert count(node, "programs-switched") == 0
            node.kill("dataplane")
        node.start_dataplane()
        node.nats.start()
        wait_for("the switch", lambda: wire.goes_on() and count(node, "programs-switched"), 30)
        assert dial(target.netns, prober.four, 80, listener, 0.3) == ""
        assert dial(target.netns, prober.six, 80, listener, 0.3) == ""
        assert wire.goes_on()
        now = ids(node.pins)
        assert {name for name in now if now[name] != had[name]} == {
            "am_subjects", "am_cidrs", "am_selected", "am_scope_peer", "am_scope_port", "am_scope_rule",
            "am_ipcache", "am_backends", "am_cookies", "am_scratch",
        }  # fmt: skip
        late = node.pod("filled-late", patience=20)  # services come back to the bus a few seconds after it
        assert dial(late.netns, prober.four, 80, listener, 0.3) == ""


def test_an_upgrade_from_one_hash_for_all_layouts(node: Mesh) -> None:
    with guarded(node, "hash") as (prober, target, listener, wire):
        had = ids(node.pins)
        node.kill("dataplane")
        as_before(node.pins, BEFORE)
        found, switched = count(node, "endpoints-found"), count(node, "programs-switched")
        node.start_dataplane()
        wait_for("the agent", lambda: wire.goes_on() and count(node, "endpoints-found") > found)
        assert wire.goes_on()
        assert dial(target.netns, prober.four, 80, listener, 0.3) == ""
        wait_for("the switch", lambda: count(node, "programs-switched") > switched, 60)  # to what tunnels need
        now = ids(node.pins)
        assert {name for name in now if now[name] != had[name]} == REPLACED
        assert chosen_by(node) == choice_key("cluster-uid-1"), "flows from outside choose backends as on other nodes"
        assert not (node.pins / f"v{BEFORE}").exists()
        assert wire.goes_on()
        assert count(node, "map-begins-empty") == 0


def test_conntrack_of_another_layout_is_reported(node: Mesh) -> None:
    with guarded(node, "told") as (prober, target, listener, wire):
        node.kill("dataplane")
        change(node.pins, "am_ct")
        node.start_dataplane()
        wait_for("what is lost", lambda: count(node, "map-begins-empty"))
        assert wire.goes_on(), "its next packet takes it up in the middle: it may begin what it likes"
        assert dial(target.netns, prober.four, 80, listener, 0.3) == ""
        assert "am_ct" in pins_of(node.pins)
