"""Traces over OTLP/HTTP, to a receiver on loopback that reads them with the protocol's own messages."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from chassis.telemetry.traces import Telemetry
from tests.natsd import NatsServer, free_port

REPOSITORY = Path(__file__).resolve().parents[4]
ANSWERS = """
from chassis.faults import Refused
from chassis.runtime.service import main
from chassis.runtime.settings import BaseSettings
from proto.requests import IpamShow, IpamState
from proto.subjects import IPAM_SHOW, event_subject
from proto.events import ServiceFault

async def build(runtime):
    async def answer(asked):
        runtime.log.info("asked")
        return IpamState(pools=(), blocks=(), owners=(), claims=())
    await runtime.bus.serve(IPAM_SHOW, IpamShow, answer)

raise SystemExit(main("ipam", BaseSettings, build))
"""
ASKS = """
import asyncio
from chassis.runtime.service import main
from chassis.runtime.settings import BaseSettings
from chassis.faults import Unavailable
from proto.requests import IpamShow, IpamState
from proto.subjects import IPAM_SHOW

async def build(runtime):
    async def ask():
        while True:
            try:
                with runtime.telemetry.span("journey", pod="shop/web") as span:
                    span.event("begun", reason="a test asked")
                    await runtime.bus.request(IPAM_SHOW, IpamShow(), IpamState, timeout=2)
                    runtime.log.info("done")
            except Unavailable:
                await asyncio.sleep(0.1)
                continue
            await asyncio.Event().wait()
    runtime.spawn("ask", ask())

raise SystemExit(main("cli", BaseSettings, build))
"""


class Receiver:
    def __init__(self) -> None:
        receiver = self
        self.spans: list[tuple[str, Any]] = []
        self.paths: set[str] = set()

        class OnPost(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", free_port()), OnPost)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        self.paths.add(path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_one_trace_spans_two_services(nats_server: NatsServer, receiver: Receiver, tmp_path: Path) -> None:
    processes = []
    for user, program in (("ipam", ANSWERS), ("cli", ASKS)):
        file = tmp_path / f"{user}.py"
        file.write_text(program)
        environ = {
            **nats_server.environment(user),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "PYTHONPATH": str(REPOSITORY),
            "PATH": os.environ["PATH"],
        }
        processes.append(subprocess.Popen([sys.executable, str(file)], env=environ, stderr=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and not {"journey", "answer airmesh.v1.ipam.show"} <= names(receiver):
        time.sleep(0.1)
    logs = []
    for process in processes:
        process.terminate()
        logs += [json.loads(line) for line in process.communicate(timeout=15)[1].splitlines()]
    by_name = {span.name: (service, span) for service, span in receiver.spans if not span.status.code}
    (_, journey), (_, ask), (service, answer) = (
        by_name[name] for name in ("journey", "ask airmesh.v1.ipam.show", "answer airmesh.v1.ipam.show")
    )
    assert service == "ipam"
    assert journey.trace_id == ask.trace_id == answer.trace_id
    assert (ask.parent_span_id, answer.parent_span_id) == (journey.span_id, ask.span_id)
    assert {a.key: a.value.string_value for a in journey.attributes} == {"pod": "shop/web"}
    assert journey.events[0].name == "begun"
    traced = {line["event"]: line["trace_id"] for line in logs if "trace_id" in line}
    assert traced["asked"] == traced["done"] == journey.trace_id.hex()
    assert receiver.paths == {"/v1/traces"}, "metrics have one way out, the page"


def test_all_that_is_kept_of_a_span_is_sent(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its times and types, when it has ended, and what an exporter's own names are for."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    parent, other = f"00-{'ab' * 16}-{'cd' * 8}-01", f"00-{'12' * 16}-{'34' * 8}-01"
    telemetry, before = Telemetry("ipam", "a", os.environ), time.time_ns()
    with (
        suppress(ValueError),
        telemetry.span(
            "work",
            parent,
            links=(other, "none"),
            waited=2.0,
            kind="SERVER",
            count=3,
            share=0.5,
            well=True,
            text="é",
        ) as span,
    ):
        span.event("begun", reason="a test")
        span.event("bare")
        span.set(count=4)
        raise ValueError("it: failed")
    with telemetry.span("root"):
        pass
    telemetry.stop()
    sent = {one.name: one for _, one in receiver.spans}
    work, root = sent["work"], sent["root"]
    assert (work.trace_id.hex(), work.parent_span_id.hex(), work.span_id.hex()) == ("ab" * 16, "cd" * 8, span.span_id)
    assert [(one.trace_id.hex(), one.span_id.hex()) for one in work.links] == [("12" * 16, "34" * 8)]
    values = {one.key: one.value for one in work.attributes}
    assert (values["count"].int_value, values["share"].double_value, values["well"].bool_value) == (4, 0.5, True)
    assert (values["text"].string_value, values["error.type"].string_value) == ("é", "ValueError")
    assert (work.kind, work.status.code, work.status.message) == (2, 2, "ValueError: it: failed")
    assert -2.5e9 < work.start_time_unix_nano - before < -1.5e9
    assert work.end_time_unix_nano - work.start_time_unix_nano >= 2e9
    assert [(one.name, [each.value.string_value for each in one.attributes]) for one in work.events] == [
        ("begun", ["a test"]),
        ("bare", []),
    ]
    assert all(work.start_time_unix_nano <= one.time_unix_nano <= work.end_time_unix_nano for one in work.events)
    assert (root.parent_span_id, root.kind, root.status.code) == (b"", 1, 0)
    assert root.trace_id != work.trace_id


def test_a_receiver_that_is_not_there_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    telemetry = Telemetry("ipam", "a", os.environ)
    with telemetry.span("unheard"):
        started = time.monotonic()
    telemetry.stop()
    assert time.monotonic() - started < 8


def names(receiver: Receiver) -> set[str]:
    return {span.name for _, span in receiver.spans if not span.status.code}
