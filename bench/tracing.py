"""What traces cost an ADD: a node's agent that sends every span to a receiver beside one that sends none.

    python -m bench.tracing [ROUNDS] [PODS]
    python -m bench.tracing spans
    python -m bench.tracing memory

The last prints by how much the resident memory of an agent grows until its ring of spans is full, with spans as each
has them. The one before prints what spans cost by themselves: that of an ADD, and those of Services that are made at 20
a second, with three changes each (itself, its slice, the slice when its pod is ready), on one node.

The first: two nodes in namespaces, each with real NATS, ipam, policy and dataplane
(``tests.netns.dataplane.mesh``), and the real executable. One node's agent sends every span, the other's none, and
pods come and go on both in turn, so that other work on the machine meets both alike: each pair is one ratio. In each
round the agents start again, the other way round. The time is the agent's own, from the request of the executable to
its answer: what the executable itself takes would only make the part of the traces look smaller. Beside it stands the
agent's processor time for a pod, its ADD and DEL, of all its threads. The receiver takes what comes and says yes, in
a process of its own. Addresses rest for a second alone, else a node's 2,048 would be used up. Packets meet no line of
this: programs in the kernel know no spans.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis.telemetry.ring import MOST_SPANS
from chassis.telemetry.traces import Telemetry
from proto.subjects import IPAM_CLAIM
from services.dataplane.core.loadbalancer.change_traces import ChangeTraces
from tests.bpf.world import inside
from tests.natsd import free_port
from tests.netns.dataplane.mesh import Mesh, mesh, wait_for

RECEIVER = """
import http.server, sys
from typing import Any

class Yes(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Yes).serve_forever()
"""
WARM_UP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Of pairs: the median of their ratios, and between which two it lies (95 %, by order statistics)."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median - 1:+.1%} [{self.least - 1:+.1%}, {self.most - 1:+.1%}]"


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Of (without, with). The rank of the interval's ends is that of the sign test, by the normal approximation of the
    binomial distribution. Raises ValueError for fewer than six pairs, which have no such interval.
    """
    if len(pairs) < 6:
        raise ValueError("an interval of 95 % needs six pairs")
    found, count = sorted(sent / kept for kept, sent in pairs), len(pairs)
    low = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return Ratio(median=statistics.median(found), least=found[low], most=found[count - 1 - low])


def come_and_go(nodes: Sequence[Mesh], pods: int, label: str) -> list[list[float]]:
    """Pods on these nodes in turn, one after the other; of each node the milliseconds of its ADDs."""
    begun = [len(ups(node)) for node in nodes]
    for number in range(pods):
        for node in nodes if number % 2 else reversed(nodes):
            with inside(node.netns):
                one = node.pod(f"{label}-{number}", patience=20, labels={"app": "bench"})
                node.cni("DEL", one.container, one.netns, one.pod)
                node.delete(one.pod)
    for node, before in zip(nodes, begun, strict=True):
        wait_for("every line", lambda node=node, before=before: len(ups(node)) >= before + pods)  # type: ignore[misc]
    return [ups(node)[before:] for node, before in zip(nodes, begun, strict=True)]


def ups(node: Mesh) -> list[float]:
    """Milliseconds of each ADD so far."""
    return [float(line["milliseconds"]) for line in node.log("dataplane") if line["event"] == "endpoint-up"]


def restart(node: Mesh, **environment: str) -> None:
    """The agent again, with other settings; it is back when an ADD succeeds, which the warm-up waits for."""
    node.kill("dataplane", signal.SIGTERM)
    with inside(node.netns):
        node.start_dataplane(AIRMESH_ADDRESS_COOLDOWN="1", **environment)


def span_microseconds(environment: Mapping[str, str], count: int = 1500) -> float:
    """Median of what the span of an ADD costs with its four events."""
    telemetry = Telemetry("bench", "bench", environment)
    about = {"k8s__namespace__name": "bench", "k8s__pod__name": "one", "k8s__node__name": "n1"}
    took = []
    for _ in range(count):
        begun = time.perf_counter()
        with telemetry.span("cni-add", f"00-{'ab' * 16}-{'cd' * 8}-01", waited=0.01, **about) as span:
            span.event("admitted")
            span.event("addressed", addresses="10.244.0.1,fd00::1")
            span.event("linked", ifindex=3)
            span.event("up")
        took.append((time.perf_counter() - begun) * 1e6)
    telemetry.stop()
    return statistics.median(took)


def change_microseconds(environment: Mapping[str, str], count: int = 3000) -> float:
    """Processor time of all threads that a change of a Service costs for its traces, from view to span."""
    telemetry, traces = Telemetry("bench", "bench", environment), ChangeTraces()
    begun = time.process_time()
    for number in range(count):
        name = "shop", f"s{number // 3}"
        traces.put(name, f"00-{number + 1:032x}-{'cd' * 8}-01")
        about = {
            traceparent: {"k8s__namespace__name": "shop", "k8s__object__kind": "Service", "k8s__object__name": name[1]}
            for traceparent in traces.choose({name}, float(number))
        }
        with telemetry.together("loadbalancer.apply", about, k8s__node__name="n1", airmesh__changes=1) as span:
            assert span is not None
            span.set(airmesh__changed=4)
        traces.keep(())
    telemetry.stop()
    return (time.process_time() - begun) / count * 1e6


@contextmanager
def receiving() -> Iterator[dict[str, str]]:
    """A receiver of spans; the environment in which they are sent there."""
    port = free_port()
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    with subprocess.Popen([sys.executable, "-c", RECEIVER, str(port)]) as receiver:
        try:
            yield traced
        finally:
            receiver.kill()


def print_spans(traced: Mapping[str, str]) -> None:
    """What spans cost by themselves, kept and sent."""
    os.environ |= traced  # the SDK reads it there
    kept, sent = span_microseconds({}), span_microseconds(os.environ)
    changed, changed_sent = change_microseconds({}), change_microseconds(os.environ)
    for name in traced:
        del os.environ[name]
    print(f"The span of an ADD, with its events: {kept:.1f} µs when it is kept, {sent:.1f} µs when it is sent too.")
    each = f"{changed:.1f} and {changed_sent:.1f} µs"
    second = f"{60 * changed / 1e4:.2f} and {60 * changed_sent / 1e4:.2f} %"
    print(f"Of a change of a Service: {each} of a processor, so of 60 changes a second {second}.\n")


def fill(agent: str, count: int = 2 * MOST_SPANS) -> int:
    """KiB by which this process grows, by spans as this agent has them."""
    telemetry = Telemetry(agent, f"{agent}-1", {})
    before = resident()
    for number in range(count):
        parent = f"00-{number + 1:032x}-{number + 1:016x}-01"
        name = f"web-{number:09x}-abcde"
        about: dict[str, Any] = {"k8s__namespace__name": f"shop-{number % 7}"}
        of_object: dict[str, Any] = {"k8s__object__kind": "Pod", "k8s__object__name": name, **about}
        match agent:
            case "cluster":
                key = f"core.pod.worker-{number % 50}.shop-{number % 7}.{name}"
                with telemetry.span("cluster.upsert", airmesh__key=key, **of_object):
                    pass
            case "policy":
                with telemetry.span("policy.compile", parent, airmesh__revision=f"{number:032x}:{number}"):
                    pass
            case "ipam":
                subject = f"{IPAM_CLAIM}.worker-{number % 50}"
                messaging: dict[str, Any] = {"messaging__system": "nats", "messaging__operation__name": "answer"}
                with telemetry.span(f"answer {IPAM_CLAIM}", parent, messaging__destination__name=subject, **messaging):
                    pass
            case "routing":
                with telemetry.span("routing.install", parent, k8s__node__name="worker-1", airmesh__changes=2):
                    pass
            case "dataplane" if number % 2:
                named: dict[str, Any] = {"k8s__pod__name": name, "k8s__node__name": "worker-1", **about}
                with telemetry.span("cni-add", parent, waited=0.01, **named) as span:
                    span.event("admitted")
                    span.event("addressed", airmesh__addresses=f"10.244.{number % 256}.7,fd00:10:244::{number:x}")
                    span.event("linked", airmesh__ifindex=number)
                    span.event("up")
            case _:
                with telemetry.together("loadbalancer.apply", {parent: of_object}, k8s__node__name="worker-1") as main:
                    assert main is not None
                    main.set(airmesh__changed=4)
    assert len(telemetry.ring) == MOST_SPANS
    return resident() - before


def resident() -> int:
    """KiB of this process, when what is not used any more is given back."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def print_memory() -> None:
    """Of each agent, in a process of its own."""
    for agent in ("cluster", "policy", "ipam", "routing", "dataplane"):
        argv = [sys.executable, "-m", "bench.tracing", "memory", agent]
        print(f"{agent}: {subprocess.check_output(argv, text=True).strip()} KiB", flush=True)


def main(rounds: int = 6, pods: int = 60) -> None:
    """Print the medians of each round, and the ratio of all pairs."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        nodes = [stack.enter_context(mesh(folder, f"b{way}")) for way, folder in zip("tu", folders, strict=True)]
        pairs: list[tuple[float, float]] = []
        cpu: list[float] = []
        print(
            "| round | ADD p50, no spans sent | all spans sent | CPU a pod | all spans sent | ratio of pairs so far |"
        )
        print("|---|---|---|---|---|---|")
        for number in range(rounds):
            plain, sending = nodes if number % 2 else reversed(nodes)
            restart(plain)
            with inside(sending.netns), receiving() as traced:
                restart(sending, **traced)
                took, spent = measured((plain, sending), pods, f"r{number}")
            pairs += zip(*took, strict=True)
            cpu.append(spent[1] / spent[0] - 1)
            medians = " | ".join(f"{statistics.median(each):.2f} ms" for each in took)
            costs = " | ".join(f"{each:.2f} ms" for each in spent)
            print(f"| {number} | {medians} | {costs} | {ratio(pairs)} |", flush=True)
        middle = statistics.median(cpu)
        print(f"\n{len(pairs)} pairs: {ratio(pairs)} of the time; {middle:+.1%} of the CPU, median of {rounds} rounds.")


def measured(nodes: Sequence[Mesh], pods: int, label: str) -> tuple[list[list[float]], list[float]]:
    """Of each node, after a warm-up: milliseconds of its ADDs, and of its agent's processor time a pod."""
    come_and_go(nodes, WARM_UP, f"{label}w")
    before = [node.cpu_seconds("dataplane") for node in nodes]
    took = come_and_go(nodes, pods, label)
    after = [node.cpu_seconds("dataplane") for node in nodes]
    return took, [(late - early) / pods * 1e3 for early, late in zip(before, after, strict=True)]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["spans"]:
            with receiving() as receiver:
                print_spans(receiver)
        case ["memory"]:
            print_memory()
        case ["memory", agent]:
            print(fill(agent))
        case numbers:
            main(*map(int, numbers))
