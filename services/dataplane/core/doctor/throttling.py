"""Check of pods that their CPU limit holds up: CoreDNS' servers, or the endpoints of a Service that is asked for.

A cgroup with a CPU quota is stopped for the rest of each period in which it has used it up: queries and connections
then wait for up to a tenth of a second, again and again (Documentation/scheduler/sched-bwc.rst; ``nr_periods`` and
``nr_throttled`` of ``cpu.stat``). The counters are read twice, and what they rose by meanwhile counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from proto.findings import EFFECT, Expected, Finding, Fix, Observed, object_name

DNS_THROTTLED, SERVICE_THROTTLED = "dns-throttled", "service-throttled"
CODES = (DNS_THROTTLED, SERVICE_THROTTLED)
PART, LEAST = 0.1, 3
"""Part of the periods, and periods at least, in which a cgroup was stopped."""


class Periods(NamedTuple):
    """Counters of a cgroup."""

    all: int
    throttled: int


def parse(cpu_stat: str) -> Periods | None:
    """Of a ``cpu.stat``; None for a cgroup that counts no periods, which has no quota."""
    counted = dict(line.split() for line in cpu_stat.splitlines() if len(line.split()) == 2)
    try:
        return Periods(int(counted["nr_periods"]), int(counted["nr_throttled"]))
    except (KeyError, ValueError):
        return None


def check(
    node: str, service: str, before: Mapping[str, Periods], now: Mapping[str, Periods], *, dns: bool
) -> Iterator[Finding]:
    """Counters of two looks by ``namespace/pod``; ``service``: whose endpoints they are; ``dns``: of names."""
    for pod, counted in sorted(now.items()):
        periods = counted.all - before[pod].all if pod in before else 0
        stopped = counted.throttled - before[pod].throttled if pod in before else 0
        if stopped < LEAST or stopped < PART * periods:
            continue
        namespace, _, name = pod.partition("/")
        yield Finding(
            code=DNS_THROTTLED if dns else SERVICE_THROTTLED,
            fault="dns" if dns else "service",
            about=object_name("Service", *service.split("/", 1)),
            node=node,
            cause=f"{pod} is stopped by its CPU limit in {stopped} of {periods} periods: requests wait",
            expected=Expected(f"less than {PART:.0%} of the periods", object_name("Pod", namespace, name)),
            observed=(Observed("counter", f"cpu.stat: nr_throttled +{stopped}, nr_periods +{periods}, in two looks"),),
            fixes=(
                Fix(
                    command=f"kubectl -n {namespace} get pod {name} -o yaml  # raise resources.limits.cpu",
                    risk="A changed template starts new pods; more CPU is taken from whoever shares the node.",
                    on="cluster",
                ),
            ),
            affects=(object_name("Pod", namespace, name),),
            precedence=EFFECT - 6,
        )
