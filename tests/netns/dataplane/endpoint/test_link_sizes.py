"""A pod's link gets another MTU: both ends, from the node's namespace, and nothing else that the pod has."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import ip_address

import pytest

from linux.netns import command, open_netns
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.links import PodLink, Size
from services.dataplane.endpoint.links import Links
from tests.bpf.world import inside, namespace, run

pytestmark = pytest.mark.privileged
ADDRESSES = (ip_address("10.244.0.7"), ip_address("fd00:10:244::7"))
POD = PodLink(attachment=Attachment("sized", "eth0"), uid="u", addresses=ADDRESSES, mtu=1500)


@pytest.fixture
def made() -> Iterator[tuple[Links, str]]:
    """A node with one pod, whose second interface is somebody else's; and the pod's namespace."""
    name = f"am-size{os.getpid() % 10_000}"
    with ExitStack() as stack:
        node, pod = (stack.enter_context(namespace(f"{name}-{part}")) for part in "np")
        stack.enter_context(inside(f"{name}-n"))
        links = stack.enter_context(closing(Links()))
        descriptor = open_netns(f"/run/netns/{name}-p")
        try:
            index = links.create(POD, descriptor, lambda _, send: send([])).index
        finally:
            os.close(descriptor)
        links.bring_up(index, POD)
        run("ip", "-n", f"{name}-p", "link", "add", "net1", "type", "veth", "peer", "name", "net2")
        assert node
        assert pod
        yield links, f"{name}-p"


def mtu(netns: str, link: str) -> int:
    words = run("ip", "-n", netns, "-o", "link", "show", link).split()
    return int(words[words.index("mtu") + 1])


def size(links: Links, wanted: int) -> Size:
    link, mark = links.snapshot().ours()[POD.attachment]
    return Size(name=link.name, index=link.index, peer=link.peer, cookie=mark.cookie, before=link.mtu, mtu=wanted)


def mtus(links: Links, pod: str) -> tuple[int, int, int]:
    """Of the host's end, the pod's, and the pod's other interface."""
    link, _ = links.snapshot().ours()[POD.attachment]
    return link.mtu, mtu(pod, "eth0"), mtu(pod, "net1")


@pytest.mark.parametrize("wanted", [1280, 1400, 9000, 65535])
def test_both_ends_follow_and_the_pod_keeps_its_addresses(made: tuple[Links, str], wanted: int) -> None:
    links, pod = made
    for each in (wanted, 1500):
        assert links.resize([size(links, each)]) == ()
        assert mtus(links, pod) == (each, each, 1500)
    shown = run("ip", "-n", pod, "addr", "show", "eth0")
    assert all(str(address) in shown for address in ADDRESSES)
    assert "default" in run("ip", "-n", pod, "-6", "route")


def test_a_namespace_that_is_mounted_nowhere_is_found_by_its_process(made: tuple[Links, str]) -> None:
    links, pod = made
    with subprocess.Popen(command(f"/run/netns/{pod}", "sleep", "60")) as sleeper:
        try:
            while not os.readlink(f"/proc/{sleeper.pid}/exe").endswith("sleep"):
                time.sleep(0.01)
            run("umount", f"/run/netns/{pod}")
            try:
                assert links.resize([size(links, 1400)]) == ()
            finally:
                run("mount", "--bind", f"/proc/{sleeper.pid}/ns/net", f"/run/netns/{pod}")
        finally:
            sleeper.kill()
    assert mtus(links, pod) == (1400, 1400, 1500)


def test_one_that_is_not_found_stays_whole_and_keeps_nobody_else_from_it(made: tuple[Links, str]) -> None:
    links, pod = made
    lost = replace(size(links, 1400), name="lost", cookie=2**63)
    assert links.resize([lost]) == ("lost",)
    assert mtus(links, pod) == (1500, 1500, 1500), "one end alone would drop what the other sends"
    gone = replace(size(links, 9000), index=9999, peer=9998)
    assert links.resize([lost, gone, size(links, 1400)]) == ("lost",)
    assert mtus(links, pod) == (1400, 1400, 1500)


def test_what_an_end_refuses_leaves_both_as_they_were(made: tuple[Links, str]) -> None:
    """A pod may run a program that limits its link: that is its own matter."""
    links, pod = made
    tunnel = "link add vx0 type vxlan id 7 dstport 4789 remote 192.0.2.1 dev"
    run("ip", "-n", f"{pod[:-1]}n", *tunnel.split(), size(links, 0).name)  # takes no MTU above its link's
    for refused in (size(links, 67), replace(size(links, 9000), index=socket.if_nametoindex("vx0"))):
        assert links.resize([refused, size(links, 1400)]) == (refused.name,)
        assert mtus(links, pod) == (1400, 1400, 1500)
