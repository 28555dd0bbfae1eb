"""Lookups of external names by a pod: kubeadm's CoreDNS, NodeLocal DNSCache, and CoreDNS before and after its tuning.

    python -m bench.dns [--rounds 3] [--lookups 1000] [--delay-us 30000]     (some ten minutes, as root)

Each way has a network namespace of its own, all at once; a round measures each way with each load and C library, and
begins with another one. Tuning is the service's own: proposals by what was measured, one at a time, each judged by what
is measured after it, and taken back when it is worse.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

from bench.dns import ways
from bench.dns.ground import GLIBC, MUSL, Ground, Load, compiled, ground, make_pod
from bench.dns.report import Run, report
from services.dns.core.change import judge
from services.dns.core.corefile import Recipe, render
from services.dns.core.samples import since
from services.dns.core.tuning import Window, proposals, together, tuned
from tests.coredns import RESOLVER
from tests.kubeapi import KubeApi

FORMS = Path("tests/core/dns/corefiles")
RECIPE = Recipe(upstreams=(ip_address(RESOLVER),))
LOADS = {"20 names again and again": 0, "one lookup in ten of a new name": 100}
"""Each with its new names of 1,000 lookups."""
_CHANGES = 4
_WARM = 300


def measured(on: Ground, library: str, load: Load, seed: int) -> tuple[Window, Run]:
    """One run, after some lookups of the same names."""
    on.look_up(library, Load(lookups=_WARM, interval_us=load.interval_us, names=load.names), seed)
    before = on.counts()
    looked = on.look_up(library, load, seed + 1)
    counts = since(before, on.counts())
    label = next(name for name, fresh in LOADS.items() if fresh == load.fresh)
    window = Window(seconds=load.lookups * load.interval_us / 1e6, counts=counts)
    return window, Run(way=on.way.name, load=label, library=library, looked=looked, queries=counts.queries)


def tune(on: Ground, load: Load) -> str:
    """Bring what is proposed into the Corefile, one change at a time; what was kept and what was taken back."""
    settings: tuple[tuple[str, str], ...] = ()
    refused: list[str] = []
    said = []
    for number in range(_CHANGES):
        text = render(tuned(RECIPE, settings))
        window, _ = measured(on, GLIBC, load, number)
        found = proposals(window, RECIPE, settings, text, refused=refused)
        if not found:
            break
        proposed = together(settings, found[0].settings)
        on.write(render(tuned(RECIPE, proposed)))
        after, _ = measured(on, GLIBC, load, number)
        worse = judge(window.measured, after.measured, early=False)
        if worse is None:
            settings = proposed
            said.append(f"- `{found[0].name}` kept: {found[0].evidence}")
        else:
            on.write(text)
            refused.append(found[0].name)
            said.append(f"- `{found[0].name}` taken back: {worse}")
    return "\n".join(said) or "- nothing was proposed"


def _ways() -> tuple[ways.Way, ...]:
    kubeadm, node_local = (read_form(name) for name in ("kubeadm", "nodelocal"))
    text = render(RECIPE)
    return (
        ways.kubeadm(kubeadm),
        ways.node_local(node_local, kubeadm),
        ways.ours(text),
        ways.ours(text, ways.TUNED),
        ways.ours(text, ways.WITH_NDOTS, ways.FEWER_NDOTS),
    )


def read_form(name: str) -> str:
    """An installer's Corefile."""
    return (FORMS / f"{name}.Corefile").read_text()


def measure(asked: argparse.Namespace) -> str:
    """The tables. Raises `SystemExit` where a server does not start."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airmesh-bench-dns-")))
        api = KubeApi(folder / "kube")
        stack.callback(api.close)
        api.start()
        make_pod(api)
        programs = compiled(folder)
        load = Load(lookups=asked.lookups)
        grounds = []
        for number, way in enumerate(_ways()):
            (folder / str(number)).mkdir()
            made = ground(way, api, programs, folder / str(number), delay_us=asked.delay_us)
            grounds.append(stack.enter_context(made))
        said = [f"{on.way.name}\n\n{tune(on, load)}\n" for on in grounds if on.way.name in ways.TUNABLE]
        runs = []
        for number in range(asked.rounds):
            first = number % len(grounds)
            for on in grounds[first:] + grounds[:first]:
                for fresh in LOADS.values():
                    for library in (GLIBC, MUSL):
                        one = Load(lookups=asked.lookups, fresh=fresh)
                        runs.append(measured(on, library, one, 1000 * (number + 1))[1])
        order = [way.name for way in _ways()]
        return "\n".join((*said, report(sorted(runs, key=lambda run: order.index(run.way)))))


def main(words: Sequence[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.dns", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lookups", type=int, default=1000, help="of each way, load and C library in a round")
    parser.add_argument("--delay-us", type=int, default=30_000, help="how far away the resolver of external names is")
    sys.stdout.write(measure(parser.parse_args(words)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
