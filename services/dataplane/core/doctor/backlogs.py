"""Check of pods whose programs do not accept connections as fast as they come.

A TCP socket that listens has a queue of connections that stand and that the program has not accepted. While there are
more of them than its backlog, the kernel drops the last packet of a handshake, and the client's SYN is sent again after
a second (net/ipv4/tcp_ipv4.c, ``sk_acceptq_is_full``; counted as ``ListenOverflows``). A queue may be full for a
moment: it counts when it was full in two looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from proto.findings import EFFECT, Expected, Finding, Fix, Observed, object_name

BACKLOG_FULL = "service-backlog-full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlogs:
    """What a pod's network namespace has."""

    queues: Mapping[int, tuple[int, int]]
    """Port of a listening socket → connections that wait to be accepted, and its backlog."""
    overflows: int
    """``ListenOverflows`` since the pod began."""

    @property
    def full(self) -> frozenset[int]:
        """Ports whose next handshake is dropped."""
        return frozenset(port for port, (waiting, backlog) in self.queues.items() if waiting > backlog)


def check(
    node: str, before: Mapping[str, Backlogs], now: Mapping[str, Backlogs], *, service: str = ""
) -> Iterator[Finding]:
    """Two looks, by ``namespace/pod``. ``service``: the one that is asked for, whose endpoints these pods are."""
    for pod, seen in sorted(now.items()):
        full = seen.full & before[pod].full if pod in before else frozenset()
        for port in sorted(full):
            waiting, backlog = seen.queues[port]
            namespace, _, name = pod.partition("/")
            more = seen.overflows - before[pod].overflows
            yield Finding(
                code=BACKLOG_FULL,
                fault="service",
                about=object_name("Pod", *pod.split("/", 1)),
                node=node,
                cause=f"{pod} does not accept what comes to its port {port}: its backlog overflows",
                expected=Expected(f"at most {backlog} connections that wait to be accepted"),
                observed=(
                    Observed(
                        "socket", f"port {port}: {waiting} connections wait, the backlog is {backlog}, in two looks"
                    ),
                    Observed("counter", f"ListenOverflows of the pod: {seen.overflows}, {more} of them meanwhile"),
                ),
                fixes=(
                    Fix(
                        command=f"kubectl -n {namespace} logs {name}  # why it does not accept",
                        risk="None. More replicas, or a longer backlog (listen(2), net.core.somaxconn), bridge peaks.",
                        on="cluster",
                    ),
                ),
                affects=(object_name("Service", *service.split("/", 1)),) if service else (),
                precedence=EFFECT - 5,
            )
