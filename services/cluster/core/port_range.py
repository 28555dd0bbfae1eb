"""Node ports outside the API server's range, by the Events of its own repair loop.

The range is a flag of kube-apiserver (``--service-node-port-range``), and no object says it. A Service keeps a port
that was given by another range; the server's repair loop looks each three minutes and writes a Warning on such a
Service. A Warning that lasts is renewed each half an hour, so one that is older than :data:`FRESH` is about the past.
Pure: the Events, the Services and the time in, findings out.

Source: kubernetes pkg/registry/core/service/portallocator/controller/repair.go; client-go tools/events
event_broadcaster.go; events.k8s.io/v1 as core/v1 serves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

import msgspec

from proto.findings import OBJECT, Expected, Finding, Fix, Observed, object_name
from proto.objects import Service
from services.cluster.core.diff import Name
from services.cluster.core.shapes import Shape

CODE = "nodeport-out-of-range"
REASON, REPORTER = "PortOutOfRange", "portallocator-repair-controller"
MOST = 128
"""Events that are read."""
FRESH = 2400.0
"""Seconds: half an hour, and two looks of the repair loop."""
_SENTENCE = re.compile(r"Port (\d{1,5}) is not within the port range (\d{1,5}-\d{1,5});")


class _Involved(Shape, frozen=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class _Series(Shape, frozen=True):
    last_observed_time: str | None = None


class _Event(Shape, frozen=True):
    involved_object: _Involved
    message: str = ""
    reason: str = ""
    event_time: str | None = None
    series: _Series | None = None
    reporting_component: str = ""


def path_of(namespace: str = "") -> tuple[str, str]:
    """Where these Events are listed, of one namespace or of all, and the field selector."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{within}/events", f"reason={REASON},involvedObject.kind=Service"


def ports_of(service: Service) -> frozenset[int]:
    """The node ports that it has, that of its health check too."""
    return frozenset({one.node_port for one in service.ports} | {service.health_check_port}) - {0}


def check(
    events: Iterable[bytes], services: Mapping[Name, Service], taken: Iterable[int], now: float
) -> Iterator[Finding]:
    """One finding for each port that a Service still has. ``services``: those that are asked about; ``taken``: node
    ports of all; ``now``: Unix seconds.
    """
    seen: set[tuple[Name, int]] = set()
    used = set(taken)
    for raw in events:
        try:
            event = msgspec.json.decode(raw, type=_Event)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            continue
        said = _SENTENCE.match(event.message)
        name = event.involved_object.namespace, event.involved_object.name
        service = services.get(name)
        if said is None or service is None or event.reporting_component != REPORTER:
            continue
        port, first, last = int(said[1]), _seconds(event.event_time), _last(event)
        same = event.involved_object.uid == service.uid
        if same and port in ports_of(service) and now - last <= FRESH and (name, port) not in seen:
            seen.add((name, port))
            free = _free(said[2], used)
            used.add(free)
            yield _finding(service, port, said[2], free, event.message, first)


def _free(ports: str, used: set[int]) -> int:
    """The first port of a range that nobody has; its first where all are taken."""
    first, last = map(int, ports.split("-"))
    return next((port for port in range(first, last + 1) if port not in used), first)


def _fix(service: Service, port: int, free: int) -> str:
    """The API server keeps a port that a Service leaves open; that of a health check it gives anew with its policy."""
    patch = f"kubectl -n {service.namespace} patch service {service.name}"
    index = next((at for at, one in enumerate(service.ports) if one.node_port == port), None)
    if index is not None:
        change = f'[{{"op": "replace", "path": "/spec/ports/{index}/nodePort", "value": {free}}}]'
        return f"{patch} --type=json -p '{change}'"
    policies = (f"""{patch} -p '{{"spec": {{"externalTrafficPolicy": "{one}"}}}}'""" for one in ("Cluster", "Local"))
    return " && ".join(policies)


def _finding(service: Service, port: int, ports: str, free: int, sentence: str, since: float) -> Finding:
    about = object_name("Service", service.namespace, service.name)
    return Finding(
        code=CODE,
        fault="nodeport",
        about=about,
        cause=f"node port {port} of {service.namespace}/{service.name} is outside the API server's range {ports}",
        expected=Expected(f"a node port of {ports}", "kube-apiserver --service-node-port-range"),
        observed=(
            Observed("report", f"Event {REASON} on {about}: {sentence}"),
            Observed("object", f"{about} has {port} still"),
        ),
        fixes=(
            Fix(
                command=_fix(service, port, free),
                risk=f"The Service is given another node port: who asks for {port} finds nobody.",
                on="cluster",
            ),
        ),
        since=int(since),
        precedence=OBJECT,
    )


def _last(event: _Event) -> float:
    series = event.series.last_observed_time if event.series is not None else None
    return max(_seconds(event.event_time), _seconds(series))


def _seconds(stamp: str | None) -> float:
    """RFC 3339 as Unix seconds; 0 for what is none."""
    try:
        return datetime.fromisoformat(stamp or "").timestamp()
    except ValueError:
        return 0.0
