"""A load that grows tenfold at once, as a real CoreDNS counts it: its first page after the step decides the replicas.

The queries are sent one after the other; how long a window was is said to the rule, so nothing depends on the clock.
"""

from __future__ import annotations

import socket
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from linux.netns import command
from services.dns.core.corefile import Recipe, render
from services.dns.core.question import is_answered, name_of_api, question
from services.dns.core.samples import Counts, parse, since
from services.dns.core.sizing import AHEAD_SECONDS, Rule, ahead, size
from tests.coredns import Room
from tests.kubeapi import KubeApi

pytestmark = pytest.mark.privileged
NAME = name_of_api("cluster.local")
WINDOW = 10.0
"""Seconds of a report."""
RULE = Rule(queries_each=5.0, most=100)
BEFORE, AFTER = 100, 1000
"""Queries of a window."""


def counted(room: Room) -> Counts:
    argv = command(room.path, "curl", "-sf", "-m", "20", "http://127.0.0.1:9153/metrics")
    return parse(subprocess.run(argv, capture_output=True, text=True, timeout=40, check=True).stdout)


def ask(room: Room, times: int) -> int:
    """How many of so many questions were answered."""
    answered = 0
    with room.bound(socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", 53))
        client.settimeout(20)
        for number in range(times):
            asked = question(NAME, number)
            client.send(asked)
            answered += is_answered(asked, client.recv(4096))
    return answered


@pytest.mark.parametrize("share", [1.0, 0.4], ids=["with a window", "within a window"])
def test_a_step_of_ten_is_decided_by_the_first_page_after_it(kube_api: KubeApi, tmp_path: Path, share: float) -> None:
    """``share``: how much of the window was left when the load grew. Of a part the trend makes more, until the next."""
    grown = int(AFTER * share + BEFORE * (1 - share))
    pages = []
    with Room(tmp_path, kube_api) as room, room.coredns(render(Recipe())) as server:
        assert server.starts()
        pages.append(counted(room))
        for times in (BEFORE, BEFORE, BEFORE, grown, AFTER):
            assert ask(room, times) == times
            pages.append(counted(room))
    queries = [since(before, after).queries / WINDOW for before, after in pairwise(pages)]
    rates = [(WINDOW * number, one) for number, one in enumerate(queries)]
    decided = [
        size(RULE, nodes=3, queries=ahead(rates[:seen], AHEAD_SECONDS), present=2, quiet_for=0).replicas
        for seen in range(3, 6)
    ]
    needed = AFTER / WINDOW / RULE.queries_each
    assert decided[0] == BEFORE / WINDOW / RULE.queries_each
    assert decided[1] >= needed * (1.0 if share == 1.0 else 0.5)
    assert decided[2] >= needed
