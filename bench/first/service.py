"""What a Service costs a new connection, beside the real kube-proxy in nftables mode, at 1 and at 1,000 Services.

    python -m bench.first.service [ROUNDS] [SECONDS]

What a Service adds is the median duration of a connection (connect, one byte there and back, reset) through the
Service's address less that to its one endpoint itself, from the same pod in the same round. kube-proxy's is also taken
against a node without kube-proxy: its rules turn connection tracking on for everything that the node forwards, which
the first difference does not show (airmesh's own tracking, which policy needs, is on in both of its terms). Both sides
serve the same Services of the same API server; kube-proxy runs in a kernel-routed node of `ground`. Client and
server share one CPU.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial

from bench.first import ground, proxy
from bench.first.figures import summary, table
from bench.first.ground import PORTS, Ends
from bench.first.stage import NAME, Stage, stage

SERVICES = (1, 1000)
_AT_ONCE = 250


@dataclass(slots=True, kw_only=True)
class Way:
    """One side: its pods, its Service's address, and what was measured (µs): direct and through the address."""

    name: str
    ends: Ends
    virtual: str
    direct: dict[int, list[float]] = field(default_factory=dict)
    through: dict[int, list[float]] = field(default_factory=dict)

    def costs(self, services: int) -> list[float]:
        """Through less direct, a value a round."""
        return [two - one for one, two in zip(self.direct[services], self.through[services], strict=True)]


def objects(namespace: str, name: str, address: str) -> list[dict[str, object]]:
    """A Service without selector, and its one endpoint."""
    port = {"name": "rr", "protocol": "TCP", "port": PORTS["rr"]}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": [port]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-0",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "bench"},
            },
            "addressType": "IPv4",
            "ports": [port],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    ]


def answers(on: Stage, ends: Ends, address: str) -> bool:
    """Whether a client's connection to a Service's address succeeds."""
    argv = ["nsenter", f"--net={ends.client}", on.program("rr"), "connect", address, str(PORTS["rr"]), "0.01"]
    return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0


def fill(on: Stage, namespace: str, address: str, first: int, last: int) -> None:
    """Services `first` to `last`, each with an endpoint."""
    for begin in range(first, last + 1, _AT_ONCE):
        end = min(last, begin + _AT_ONCE - 1)
        some = [one for number in range(begin, end + 1) for one in objects(namespace, f"s{number}", address)]
        on.apply(*some, verb="create")


def measure(on: Stage, rounds: int, seconds: float) -> str:
    """The table."""
    mesh, kernel, plain = ground.mesh(on), ground.kernel(on), ground.kernel(on, 3)
    on.serve(plain.server, "rr", PORTS["rr"])
    without: dict[int, list[float]] = {}
    namespace = on.pods_namespace()
    ways = []
    for name, ends in (("airmesh", mesh), ("kube-proxy", kernel)):
        on.serve(ends.server, "rr", PORTS["rr"])
        on.apply(*objects(namespace, name, ends.address))
        address = on.get("service", "-n", namespace, name)["spec"]["clusterIP"]
        ways.append(Way(name=name, ends=ends, virtual=address))
    node = f"/run/netns/am-{NAME}-k1"
    proxy.start(on, node, kernel)
    had = 1
    for services in SERVICES:
        if services > had:
            fill(on, namespace, mesh.address, had + 1, services)
            had = services
            last = on.get("service", "-n", namespace, f"s{services}")["spec"]["clusterIP"]
            on.until("kube-proxy knows the last", partial(programmed, on, node, last), 120)
            on.until("airmesh knows the last", partial(answers, on, mesh, last), 120)
        for way in ways:
            on.until(f"{way.name} answers through its Service", partial(answers, on, way.ends, way.virtual))
        on.run(["sleep", "2"])
        for number in range(rounds):
            for way in ways if number % 2 else reversed(ways):
                for kept, address in ((way.direct, way.ends.address), (way.through, way.virtual)):
                    kept.setdefault(services, []).append(connection(on, way.ends, address, seconds))
            without.setdefault(services, []).append(connection(on, plain, plain.address, seconds))
            print(f"{services} services: round {number + 1} of {rounds}", file=sys.stderr)
    return f"{rounds} rounds of {seconds} s, microseconds.\n\n" + report(ways[0], ways[1], without)


def programmed(on: Stage, netns: str, address: str) -> bool:
    """Whether kube-proxy's rules name an address."""
    return address in proxy.ruleset(on, netns)


def connection(on: Stage, ends: Ends, address: str, seconds: float) -> float:
    """Median duration of a connection, µs."""
    return summary(on.pinned(ends.client, "rr", "connect", address, str(PORTS["rr"]), str(seconds))).p50_us


def text(values: list[float]) -> str:
    """`0.9 [0.8-1.1]`."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def report(mine: Way, its: Way, without: dict[int, list[float]]) -> str:
    """One line for each number of Services."""
    rows = []
    for services in SERVICES:
        ours, theirs = mine.costs(services), its.costs(services)
        whole = [two - one for one, two in zip(without[services], its.through[services], strict=True)]
        adds = statistics.median(ours)
        rows.append(
            (
                f"{services:,}",
                text(mine.direct[services]),
                text(ours),
                text(its.direct[services]),
                text(theirs),
                f"{adds / statistics.median(theirs):.2f}",
                text(whole),
                f"{adds / statistics.median(whole):.2f}",
            )
        )
    head = ("Services", "airmesh: direct", "its Service adds", "kube-proxy: direct", "its Service adds", "ratio")
    return table((*head, "over a node without kube-proxy", "ratio"), rows)


def main() -> None:
    """Print the table."""
    rounds, seconds = (sys.argv[1:] + ["8", "0.7"][len(sys.argv) - 1 :])[:2]
    with stage() as on:
        print(measure(on, int(rounds), float(seconds)))


if __name__ == "__main__":
    main()
