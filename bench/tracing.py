"""What traces cost an ADD: a node's agent that sends every span to a receiver beside one that sends none.

    python -m bench.tracing [ROUNDS] [PODS]

A node in a namespace with real NATS, ipam, policy and dataplane (``tests.netns.dataplane.mesh``), and the real
executable. In each round the agent is started both ways, in an order that changes, and PODS pods come and go one after
the other. The time is the agent's own, from the request of the executable to its answer: what the executable itself
takes would only make the part of the traces look smaller. The receiver takes what comes and says yes, in a process of
its own. Packets meet no line of this: programs in the kernel know no spans.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from chassis.telemetry.traces import Telemetry
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


def main(rounds: int = 6, pods: int = 40) -> None:
    """Print both medians of each round, and what is between them."""
    port = free_port()
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    with tempfile.TemporaryDirectory() as folder, mesh(Path(folder), "bt") as node:
        receiver = subprocess.Popen([sys.executable, "-c", RECEIVER, str(port)])
        os.environ |= traced  # the SDK reads it there
        kept, sent = span_microseconds({}), span_microseconds(os.environ)
        del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
        print(
            f"The span of an ADD, with its events: {kept:.1f} µs when it is kept, {sent:.1f} µs when it is sent too.\n"
        )
        try:
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
        finally:
            receiver.kill()
            receiver.wait()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
