"""What traces cost an ADD: a node's agent that sends every span to a receiver beside one that sends none.

    python -m bench.tracing [ROUNDS] [PODS]
    python -m bench.tracing spans

The latter prints what spans cost by themselves: that of an ADD, and those of Services that are made at 20 a second,
with three changes each (itself, its slice, the slice when its pod is ready), on one node.

The former: a node in a namespace with real NATS, ipam, policy and dataplane (``tests.netns.dataplane.mesh``), and the
real executable. In each round the agent is started both ways, in an order that changes, and PODS pods come and go one
after the other. The time is the agent's own, from the request of the executable to its answer: what the executable
itself takes would only make the part of the traces look smaller. The receiver takes what comes and says yes, in a
process of its own. Packets meet no line of this: programs in the kernel know no spans.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chassis.telemetry.traces import Telemetry
from services.dataplane.core.loadbalancer.change_traces import ChangeTraces
from tests.natsd import free_port
from tests.netns.dataplane.mesh import Mesh, mesh, wait_for

RECEIVER = """
import http.server, sys

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


def added(node: Mesh, pods: int, label: str) -> list[float]:
    """Milliseconds of each ADD."""
    begun = sum(line["event"] == "endpoint-up" for line in node.log("dataplane"))
    for number in range(pods + WARM_UP):
        one = node.pod(f"{label}-{number}", patience=20, labels={"app": "bench"})
        node.cni("DEL", one.container, one.netns, one.pod)
        node.delete(one.pod)
    wait_for(
        "every line", lambda: sum(x["event"] == "endpoint-up" for x in node.log("dataplane")) >= begun + pods + WARM_UP
    )
    lines = [line for line in node.log("dataplane") if line["event"] == "endpoint-up"]
    return [float(line["milliseconds"]) for line in lines[begun + WARM_UP :]]


def restart(node: Mesh, **environment: str) -> None:
    """The agent again, with other settings; it is back when an ADD succeeds, which the warm-up waits for."""
    node.kill("dataplane", signal.SIGTERM)
    node.start_dataplane(**environment)


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


def main(rounds: int = 6, pods: int = 40) -> None:
    """Print both medians of each round, and what is between them."""
    with tempfile.TemporaryDirectory() as folder, mesh(Path(folder), "bt") as node, receiving() as traced:
        print_spans(traced)
        ratios = []
        print("| round | ADD p50, no spans sent | all spans sent | more |\n|---|---|---|---|")
        for number in range(rounds):
            took = {}
            for way in (False, True) if number % 2 else (True, False):
                restart(node, **(traced if way else {}))
                took[way] = statistics.median(added(node, pods, f"r{number}{'t' if way else 'p'}"))
            ratios.append(took[True] / took[False] - 1)
            print(f"| {number} | {took[False]:.2f} ms | {took[True]:.2f} ms | {ratios[-1]:+.1%} |", flush=True)
        print(f"\nMedian of {rounds} rounds of {pods} pods: {statistics.median(ratios):+.1%}.")


if __name__ == "__main__":
    if sys.argv[1:] == ["spans"]:
        with receiving() as receiver:
            print_spans(receiver)
    else:
        main(*map(int, sys.argv[1:]))
