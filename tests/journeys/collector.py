"""An OTLP/HTTP receiver for tests: takes the spans that services send and lets a test ask for one trace.

It listens inside a lab's control namespace (the socket is made there, the server runs here), so that every agent
reaches it over the management network and nothing of the machine's own network is used.
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from linux.netns import NotANamespace, enter

MAX_BODY = 8 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """What a test looks at of a span."""

    trace: str
    span: str
    parent: str
    name: str
    service: str
    attributes: dict[str, str]


class FlowCollector:
    """Spans by trace id, as they arrive."""

    def __init__(self, namespace: Path, address: str, port: int = 4318) -> None:
        self._lock = threading.Lock()
        self._spans_by_trace: dict[str, list[Span]] = defaultdict(list)
        self._server = _Server(_listen_in(namespace, address, port), self.take)
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            for resource in request.resource_spans:
                service = next(
                    (a.value.string_value for a in resource.resource.attributes if a.key == "service.name"), ""
                )
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        attributes = {a.key: a.value.string_value or str(a.value.int_value) for a in span.attributes}
                        self._spans_by_trace[span.trace_id.hex()].append(
                            Span(
                                span.trace_id.hex(),
                                span.span_id.hex(),
                                span.parent_span_id.hex(),
                                span.name,
                                service,
                                attributes,
                            )
                        )

    def spans(self) -> list[Span]:
        with self._lock:
            return [span for spans in self._spans_by_trace.values() for span in spans]

    def trace_with(self, services: set[str], about: dict[str, str], timeout: float) -> list[Span]:
        """The first trace with a span that has these attributes and with spans of all ``services``, whole.

        Waits for it; fails with the best candidate's services, so that the test says who is missing.
        """
        deadline = time.monotonic() + timeout
        best: set[str] = set()
        while time.monotonic() < deadline:
            with self._lock:
                traces = [
                    list(spans)
                    for spans in self._spans_by_trace.values()
                    if any(about.items() <= span.attributes.items() for span in spans)
                ]
            for spans in traces:
                seen = {span.service for span in spans}
                if services <= seen and not orphans(spans):
                    return spans
                if len(seen & services) > len(best & services):
                    best = seen
            time.sleep(0.2)
        raise AssertionError(f"no trace of {about} spans {sorted(services)}; the best one has {sorted(best)}")


def orphans(spans: list[Span]) -> list[Span]:
    """Spans whose parent has not been sent (yet: each service sends its own in batches)."""
    known = {span.span for span in spans}
    return [span for span in spans if span.parent and span.parent not in known]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, take: object) -> None:
        super().__init__(("", 0), _Receiver, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.take = take


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 < length <= MAX_BODY:
            self.send_error(413)
            return
        body = self.rfile.read(length)
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path.endswith("/v1/traces"):
            self.server.take(body)  # type: ignore[attr-defined]  # _Server
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        return


def _listen_in(namespace: Path, address: str, port: int) -> socket.socket:
    """A listening socket in another network namespace; a thread enters it, since a namespace belongs to a thread."""
    made: list[socket.socket | OSError | NotANamespace] = []

    def make() -> None:
        try:
            enter(str(namespace))
            made.append(socket.create_server((address, port), backlog=64))
        except (OSError, NotANamespace) as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError | NotANamespace):
        raise made[0]
    return made[0]
