"""Round trips, connections, throughput and packets by each model of routing, beside the kernel's routing and VXLAN.

    python -m bench.models [ROUNDS] [SECONDS]      (some ten minutes on a quiet machine)

One pair of pods, isolated by a policy that allows what is measured; between two measurements of ours the pools are
edited, as a person would, and the model is measured when both nodes' routes are its own and the pods' links have its
MTU. Beside them stand pairs of nodes whose programs decide nothing: what no model gets below. Every round measures all
ways; each begins with another one. Only models that this release serves are measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from functools import partial

from bench.first import ground
from bench.first.datapath import ask, prove_guarded, serve
from bench.first.figures import Summary
from bench.first.ground import Ends
from bench.first.stage import Stage, stage
from bench.models.floor import floor
from bench.models.ground import kernel_vxlan
from bench.models.report import FLOORS, HOST_GW, IPIP, KERNEL, KERNEL_VXLAN, VXLAN, WIREGUARD, figures_of, report
from kit.models import SERVED
from lab.cluster import models
from lab.tour.ways import addresses_of, model_of

LINKS_SECONDS = 6.0
"""Within which living pods' links follow the pools."""


def client_address(on: Stage, ends: Ends) -> str:
    """The client's own IPv4 address."""
    said = json.loads(on.run(["nsenter", f"--net={ends.client}", "ip", "--json", "-4", "addr", "show", "dev", "eth0"]))
    return str(said[0]["addr_info"][0]["local"])


def change(on: Stage, ends: Ends, model: str) -> None:
    """The model taken by both nodes for the pods' addresses."""
    asyncio.run(models.ask(on.where, model))
    ways = (("n1", "n2", ends.address), ("n2", "n1", client_address(on, ends)))

    def taken() -> bool:
        for source, there, address in ways:
            argv = ["nsenter", f"--net={on.node(source).netns}", "ip", "--json", "route", "get", address]
            if model_of(json.loads(on.run(argv))[0], addresses_of(on.node(there))) != model:
                return False
        return True

    on.until(f"both nodes take {model}", taken, 90)
    time.sleep(LINKS_SECONDS)


def measure(on: Stage, rounds: int, seconds: float) -> str:
    """The tables."""
    mesh, plain, flannel = ground.mesh(on), ground.kernel(on), kernel_vxlan(on, 3)
    floors = {name: floor(on, 5 + 2 * index, model) for index, (model, name) in enumerate(FLOORS.items())}
    prove_guarded(on, mesh)
    for ends in (mesh, plain, flannel, *floors.values()):
        serve(on, ends)
    on.run(["sleep", "0.5"])
    ours = [model for model in (HOST_GW, VXLAN, IPIP, WIREGUARD) if model in SERVED]

    def prepare(model: str) -> Callable[[], Ends]:
        def act() -> Ends:
            change(on, mesh, model)
            return mesh

        return act

    ways: list[tuple[str, Callable[[], Ends]]] = [(KERNEL, lambda: plain), (KERNEL_VXLAN, lambda: flannel)]
    ways += [(name, partial(floors.__getitem__, name)) for name in floors]
    ways += [(model, prepare(model)) for model in ours]
    results: dict[tuple[str, str, str], list[Summary]] = {}
    for number in range(rounds):
        begin = number % len(ways)
        for name, way in ways[begin:] + ways[:begin]:
            ends = way()
            for figure in figures_of(name):
                found = ask(on, ends, figure.program, figure.verb, seconds)
                results.setdefault((name, figure.program, figure.verb), []).append(found)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    change(on, mesh, HOST_GW)
    return f"{rounds} rounds of {seconds} s.\n\n" + report(results)


def main() -> None:
    """Print the tables."""
    rounds, seconds = (sys.argv[1:] + ["6", "0.7"][len(sys.argv) - 1 :])[:2]
    with stage() as on:
        print(measure(on, int(rounds), float(seconds)))


if __name__ == "__main__":
    main()
