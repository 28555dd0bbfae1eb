"""Pods come and go for an hour, and every 20 s an agent or a NATS server is killed: nothing of it stays.

In a lab whose agents are pods, brought there by `airmesh install` (``make drill-soak``, ``SOAK_MINUTES=``). One node's
agents, one server and one copy of each service are never killed: they show what a process gathers. The others show
what each new process finds: of them the memory is compared at one age. After a warm-up all pods go, and everything is
counted; after the soak it is counted again. Last, the lab goes down and proves that nothing is left.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.drills.pod_churn import RATE, PodChurn, churning
from tests.drills.soak import DEMANDED, Counts, Soak, more, spared, victims
from tests.drills.store import Janitor, janitor
from tests.drills.traffic import service_of, well
from tests.drills.trend import Series, Trend
from tests.labkit import Lab

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
WARM = max(150.0, MINUTES * 10)
"""Seconds before anything is counted: addresses rest for 130 s, so by then a node has all the blocks that it needs."""
KILL_SECONDS = 20.0
AGE = 60.0
"""At which processes that are killed are compared."""
JUDGED_MINUTES = 30
"""What is shorter shows its slopes and judges none: rings of spans and caches, which have a bound, still fill."""
LIMIT = 1.0
"""MiB that an hour may add."""
MESSAGE = 400.0 / (1 << 20)
"""MiB of a server for one message: the mark of a deleted key stays for an hour (``TOMBSTONE_SECONDS``), so that in the
first hour there are ever more of them.
"""
LINGER_SECONDS = 90.0
"""What stays of the last pods and kills: rules of identities without pods for 60 s, consumers of the dead for 30 s."""
REST_SECONDS = 300.0
"""Until there is no more than before."""
LOOSE = 4
"""Descriptors that the copies of an agent may have more at a moment: a request under way. Servers open and close files
of streams beside.
"""
LOOSE_SERVERS = 12


@pytest.fixture(scope="module")
def store(installed: Lab) -> Iterator[Janitor]:
    with janitor(installed) as made:
        yield made


def say(text: str) -> None:
    print(text, flush=True)


def soaked(soak: Soak, churn: PodChurn, seconds: float, order: Iterator[str]) -> float:
    """Pods and kills for so long; pods a second that came and went."""
    before, begun = churn.counts.copy(), time.monotonic()
    with churn.running():
        while (now := time.monotonic()) < begun + seconds:
            soak.look()
            soak.kill(next(order))
            done, past = churn.counts - before, time.monotonic() - begun
            rates = ", ".join(f"{kind} {done[kind]} ({done[kind] / past:.2f}/s)" for kind in ("kubelet", "drill"))
            failed = f"{len(churn.failures)} failures {churn.failures[-1:]}"
            say(f"{past / 60:5.1f} min: {soak.kills} kills, pods by {rates}, refused {done['again']}, {failed}")
            time.sleep(max(0.0, now + KILL_SECONDS - time.monotonic()))
        past = time.monotonic() - begun
    done = churn.counts - before
    return (done["kubelet"] + done["drill"]) / past


def allowed(nodes: int) -> dict[str, int]:
    """Of keys: a moment's demand may have given each node one more block of each family."""
    return {DEMANDED: 2 * nodes}


def rested(soak: Soak, store: Janitor, before: Counts | None = None) -> Counts:
    """Counts when all is well and no more than ``before`` (without it: when they are the same twice)."""
    well(soak.lab, REST_SECONDS)
    blocks = allowed(len(soak.nodes))

    def room(kind: str, name: str) -> int:
        if kind == "descriptors":
            return LOOSE_SERVERS if name == "nats" else LOOSE
        return blocks.get(name, 0) if kind == "keys" else 0

    time.sleep(0 if before else LINGER_SECONDS)
    end, last, same = time.monotonic() + REST_SECONDS, Counts(), 0
    while True:
        now = soak.counts(store)
        over = more(before or last, now, room)
        same = same + 1 if not over and not more(now, last, room) else 0
        if (before and not over) or same >= 2:
            return now
        assert time.monotonic() < end, "\n".join(over)
        if before:
            say(f"still more than before: {over}")
        last = now
        time.sleep(10)


def report(soak: Soak) -> dict[str, Trend]:
    """Slopes, printed."""
    trends = {name: series.trend(AGE) for name, series in sorted(soak.memory.items())}
    for name, trend in trends.items():
        say(f"{name}: MiB {trend}")
    say(f"messages in all streams: {soak.messages.trend(AGE)}")
    return trends


def limits(messages: Series, names: list[str]) -> dict[str, float]:
    """MiB an hour of each: a server has what the streams have more, too."""
    slope = messages.trend(AGE).slope
    marks = max(0.0, slope.estimate) * MESSAGE if slope else 0.0
    return {name: LIMIT + (marks if service_of(name) == "nats" else 0.0) for name in names}


@contextmanager
def counted(soak: Soak, store: Janitor) -> Iterator[None]:
    """What there is at the end is no more than at the beginning."""
    before = rested(soak, store)
    say(f"before: {before}")
    yield
    say(f"after: {rested(soak, store, before)}")


@pytest.mark.lab
@pytest.mark.privileged
@pytest.mark.slow
@pytest.mark.timeout((MINUTES * 60 + WARM) * 1.5 + 3600)
def test_an_hour_of_pods_and_kills_leaves_nothing_behind(installed: Lab, store: Janitor) -> None:
    running = installed.containers()
    alone = spared(running, installed.topology.nodes[-1].name)
    order = victims(set(running) - alone, Random(13))
    say(f"never killed: {sorted(alone)}")
    with churning(installed, f"soak-{uuid.uuid4().hex[:8]}") as churn:
        soaked(Soak(lab=installed, names=set(running)), churn, WARM, order)
        soak = Soak(lab=installed, names=set(running))
        with counted(soak, store):
            rate = soaked(soak, churn, MINUTES * 60, order)
            trends = report(soak)
        say(f"{rate:.2f} pods a second of {RATE}; failures: {churn.failures}")
    most = limits(soak.messages, list(trends))
    assert set(trends) == set(running)
    grown = {name: str(one) for name, one in trends.items() if one.grows(most[name])}
    assert MINUTES < JUDGED_MINUTES or grown == {}
    assert churn.failures == []
    assert soak.kills >= MINUTES * 60 / KILL_SECONDS / 2
    assert {name: trends[name].incarnations for name in alone} == dict.fromkeys(alone, 1)
