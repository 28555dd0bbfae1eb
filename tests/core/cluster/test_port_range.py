"""Node ports outside the API server's range, by Events as its repair loop writes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from proto.objects import Service, ServicePort
from services.cluster.core.port_range import FRESH, REPORTER, check, path_of
from tests.golden.proto.samples import sample_of

NOW = datetime(2026, 11, 30, 18, 0, tzinfo=UTC).timestamp()
WEB = msgspec.structs.replace(
    sample_of(Service),
    namespace="shop",
    name="web",
    uid="u1",
    ports=(ServicePort("dns", 17, 53, 0), ServicePort("http", 6, 80, 30080)),
    health_check_port=30099,
)
SERVICES = {("shop", "web"): WEB}


def event(port: int = 30080, uid: str = "u1", **more: Any) -> bytes:
    """One as kube-apiserver 1.36 wrote it, read as core/v1."""
    written = {
        "metadata": {"name": "web.18bcb0a4", "namespace": "shop", "creationTimestamp": "2026-11-30T17:59:00Z"},
        "involvedObject": {"kind": "Service", "namespace": "shop", "name": "web", "uid": uid, "apiVersion": "v1"},
        "reason": "PortOutOfRange",
        "message": f"Port {port} is not within the port range 31000-31999; please recreate service",
        "source": {},
        "firstTimestamp": None,
        "lastTimestamp": None,
        "type": "Warning",
        "eventTime": "2026-11-30T17:59:00.512345Z",
        "action": "PortAllocation",
        "reportingComponent": REPORTER,
        "reportingInstance": f"{REPORTER}-host",
    }
    return json.dumps({**written, **more}).encode()


def test_the_event_is_the_evidence_and_the_fix_is_of_that_port() -> None:
    (one,) = check([event(), event()], SERVICES, (31000, 30080), NOW)
    assert (one.code, one.about) == ("nodeport-out-of-range", "Service shop/web")
    assert one.cause == "node port 30080 of shop/web is outside the API server's range 31000-31999"
    assert "is not within the port range 31000-31999" in one.observed[0].text
    assert '"path": "/spec/ports/1/nodePort", "value": 31001}' in one.fixes[0].command, "31000 is another's"
    assert one.since == int(NOW - 60)


def test_a_health_check_port_has_the_range_too() -> None:
    (one,) = check([event(30099)], SERVICES, (31000, 30080), NOW)
    assert one.fixes[0].command.endswith("""-p '{"spec": {"externalTrafficPolicy": "Local"}}'""")


@pytest.mark.parametrize(
    "about_the_past",
    [
        event(30081),
        event(uid="of one that was deleted"),
        event(involvedObject={"kind": "Service", "namespace": "shop", "name": "other", "uid": "u1"}),
        event(eventTime="2026-11-30T17:19:00Z"),
        event(eventTime=None),
        event(eventTime="yesterday"),
        event(message="Port 30080 is not allocated; repairing"),
        event(reportingComponent="somebody"),
        b"{",
        b"{}",
    ],
)
def test_what_is_over_or_is_not_the_repair_loops_is_no_finding(about_the_past: bytes) -> None:
    assert not list(check([about_the_past], SERVICES, (31000, 30080), NOW))


def test_one_that_lasts_is_renewed_in_its_series() -> None:
    old: dict[str, Any] = {"eventTime": "2026-11-30T12:00:00Z"}
    renewed = {"count": 9, "lastObservedTime": "2026-11-30T17:30:00.000000Z"}
    (one,) = check([event(**old, series=renewed)], SERVICES, (31000, 30080), NOW)
    assert one.since == int(NOW - 6 * 3600)
    assert not list(check([event(**old, series=renewed)], SERVICES, (), NOW + FRESH))


def test_only_these_events_are_asked_for() -> None:
    assert path_of("shop")[0] == "/api/v1/namespaces/shop/events"
    assert path_of() == ("/api/v1/events", "reason=PortOutOfRange,involvedObject.kind=Service")
