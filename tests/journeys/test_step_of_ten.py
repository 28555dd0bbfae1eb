"""Ten times as many queries at once: more CoreDNS is decided on and serves before names become slow or are lost."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

import pytest

from tests.drills.traffic import pid_in_pod
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "kubernetes.default.svc.cluster.local"
BEFORE, AFTER = 600, 6000
"""Queries a second: less than one replica is given, and more than two are."""
SECONDS = 45
DECIDED = 20.0
"""Seconds within which the first decision lands: two reports."""
TARGET_MS = 100.0
"""Of P99: a fiftieth of what a resolver waits before it asks again."""
LOST = 0.001


@dataclass(slots=True)
class Replicas:
    """Of CoreDNS, as they change: seconds since the step, wanted, ready."""

    changes: list[tuple[float, int, int]] = field(default_factory=list)

    @contextmanager
    def watched(self, lab: Lab) -> Iterator[None]:
        """Look twice a second."""
        begun, over = time.monotonic(), threading.Event()

        def look() -> None:
            while not over.wait(0.5):
                found = lab.get("deployment", "-n", "kube-system", "coredns")
                now = found["spec"]["replicas"], found["status"].get("readyReplicas", 0)
                if not self.changes or self.changes[-1][1:] != now:
                    self.changes.append((round(time.monotonic() - begun, 1), *now))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def asked(pod: int, server: str, rate: int, names: Path) -> tuple[list[float], int]:
    """So many queries a second out of a pod: milliseconds of each answer, and how many had none."""
    program = ["dnsperf", "-s", server, "-d", str(names), "-Q", str(rate), "-l", str(SECONDS), "-c", "40", "-T", "1"]
    argv = ["nsenter", f"--net=/proc/{pod}/ns/net", "--", *program, "-t", "2", "-v"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS + 60, check=True)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("> ")]
    return [float(line[-1]) * 1000 for line in lines if line[1] == "NOERROR"], sum(
        line[1] != "NOERROR" for line in lines
    )


def p99(milliseconds: list[float]) -> float:
    return sorted(milliseconds)[len(milliseconds) * 99 // 100]


def test_more_servers_are_decided_on_before_names_are_slow(lab: Lab, space: LabNamespace, tmp_path: Path) -> None:
    if which("dnsperf") is None:
        pytest.fail("dnsperf is not there: apt-get install --no-install-recommends dnsperf", pytrace=False)
    space.pod("load", "n1")
    pod = pid_in_pod(lab.get("pod", "-n", space.namespace, "load"))
    server = lab.get("service", "-n", "kube-system", "kube-dns")["spec"]["clusterIP"]
    names = tmp_path / "names"
    names.write_text(f"{NAME} A\n")
    quiet, _ = asked(pod, server, BEFORE, names)
    replicas = Replicas()
    with replicas.watched(lab):
        busy, lost = asked(pod, server, AFTER, names)
    each = AFTER * 5
    every_five = [round(p99(busy[at : at + each]), 1) for at in range(0, len(busy) - each // 2, each)]
    print(f"P99 {p99(quiet):.1f} ms before; of each 5 s after: {every_five} ms; lost {lost} of {len(busy) + lost}")
    print(f"seconds, replicas wanted, ready: {replicas.changes}")
    first, *more = replicas.changes
    grown = [at for at, wanted, _ in more if wanted > first[1]]
    assert grown, "nothing was decided"
    assert grown[0] <= DECIDED
    assert replicas.changes[-1][2] > first[2], "none of them serves"
    assert lost <= LOST * AFTER * SECONDS
    before_the_decision = busy[: max(each, int(AFTER * grown[0]))]
    assert p99(before_the_decision) <= TARGET_MS, "names were slow before more servers were decided on"
