"""ADD and DEL while the agent is killed at random: no address is ever two pods', and nothing is left."""

from __future__ import annotations

import random
import threading
import time

import pytest

from proto.objects import Pod
from tests.bpf.world import run
from tests.netns.dataplane.mesh import Answer, Mesh, wait_for

pytestmark = pytest.mark.privileged

PODS = 40
KILLS = 5
WORKERS = 4


def test_no_address_is_two_pods_and_nothing_is_left(node: Mesh) -> None:
    chance = random.Random(5)
    pods = [
        Pod(namespace="shop", name=f"storm-{i}", uid=f"uid-storm{i}", node="n1", labels=(("app", "storm"),))
        for i in range(PODS)
    ]
    node.put(*pods)
    spaces = [node.empty_namespace() for _ in pods]
    time.sleep(1.5)
    ledger: dict[str, int] = {}
    kills: list[float] = []
    clashes: list[str] = []
    lock = threading.Lock()
    stop = threading.Event()

    def settle(verb: str, i: int) -> Answer:
        """As a runtime does: again until it is answered."""
        deadline = time.monotonic() + 40
        while True:
            answer = node.cni(verb, f"storm{i}", spaces[i], pods[i])
            if answer.code == 0 or time.monotonic() > deadline:
                return answer
            assert answer.body["code"] in (11, 102), answer
            if answer.body["code"] == 102:
                node.cni("DEL", f"storm{i}", spaces[i], pods[i])
            time.sleep(0.05)

    def attach(i: int) -> list[str]:
        answer = settle("ADD", i)
        assert answer.code == 0, f"storm-{i} was never attached: {answer}"
        got = [entry["address"] for entry in answer.body["ips"]]
        with lock:
            clashes.extend(f"{one} is {ledger[one]}'s and {i}'s" for one in got if one in ledger)
            ledger.update(dict.fromkeys(got, i))
        return got

    def detach(i: int, got: list[str]) -> None:
        with lock:
            for one in got:
                del ledger[one]
        for _ in range(1 + i % 3):
            assert settle("DEL", i).code == 0
        wait_for("the interface to go", lambda: "eth0" not in run("ip", "-n", spaces[i], "-br", "link"), 20)

    def live(worker: int) -> None:
        """Even pods stay; odd ones come and go for as long as the agent is killed."""
        try:
            for i in range(worker, PODS, WORKERS):
                got = attach(i)
                passes = 0
                while i % 2 and (passes == 0 or (len(kills) < KILLS and passes < 12)):
                    passes += 1
                    detach(i, got)
                    if len(kills) < KILLS:
                        got = attach(i)
                    else:
                        break
                else:
                    if i % 2:
                        detach(i, got)
        except AssertionError as error:
            clashes.append(str(error))

    def kill() -> None:
        while len(kills) < KILLS and not stop.wait(chance.uniform(0.3, 0.9)):
            node.kill("dataplane")
            kills.append(time.monotonic())
            node.start_dataplane()

    workers = [threading.Thread(target=live, args=(number,)) for number in range(WORKERS)]
    killer = threading.Thread(target=kill)
    for thread in (*workers, killer):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    killer.join()
    assert not clashes
    assert len(kills) == KILLS
    assert len(ledger) == PODS, "two addresses for each of the pods that stay"
    wait_for("the agent", lambda: node.cni("STATUS", "").code == 0, 20)
    routed = run("ip", "-n", node.netns, "route", "show", "proto", "187").split()
    assert {f"{word}/32" for word in routed if word.count(".") == 3} == {one for one in ledger if "." in one}
    for i in range(0, PODS, 2):
        assert settle("DEL", i).code == 0
    wait_for("routes to go", lambda: run("ip", "-n", node.netns, "route", "show", "proto", "187") == "")
    wait_for("links to go", lambda: run("ip", "-n", node.netns, "-br", "link").count("@") == 1)
