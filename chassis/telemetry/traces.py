"""Traces: makes spans (``spans.py``), keeps the latest (``ring.py``), and exports them when asked to (``otlp.py``).

Nothing leaves the process by itself unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set. Without an endpoint a span costs two
random numbers and its place in the ring: ids still travel (headers, KV envelopes) and stand in the logs, and
``airmesh trace`` asks all agents for what they keep. With one it is sent as the ring keeps it once it has ended, in the
same bounds. The OpenTelemetry SDK is imported only when it exports; an idle service stays small.

Attributes have the names of OpenTelemetry's semantic conventions where these have one, else begin with ``airmesh.``;
they are given as ``k8s__pod__name=…``. docs/telemetry.md has all of them, and a test compares.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from chassis.telemetry.ring import KeptSpan, SpanRing
from chassis.telemetry.spans import Attribute, Span, context_of, current_owner, entered, parent_of, plain

if TYPE_CHECKING:
    from chassis.telemetry.otlp import Otlp

TOGETHER = 64
"""Traces that one piece of work is told in, when it is about many changes at once."""
_OWNERS = ("k8s.namespace.name", "k8s.node.name")


class Telemetry:
    """Makes spans and keeps them; exports them when the environment names an OTLP endpoint."""

    def __init__(self, service: str, instance: str, environ: Mapping[str, str]) -> None:
        self._service = service
        self.ring = SpanRing()
        """The latest spans."""
        self._otlp: Otlp | None = None
        if environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            from chassis.telemetry.otlp import Otlp  # noqa: PLC0415 - the SDK is heavy: only for one who exports

            self._otlp = Otlp(service, instance)

    @contextmanager
    def span(
        self,
        name: str,
        parent: str = "",
        *,
        links: Sequence[str] = (),
        waited: float = 0.0,
        kind: str = "INTERNAL",
        **attributes: object,
    ) -> Iterator[Span]:
        """A span around a block; child of ``parent`` (a traceparent), else of the current span, else a new trace.

        ``links``: traceparents of other traces that the same work is part of. ``waited``: seconds since the work began,
        when that was before its trace was known. ``kind``: CLIENT of who asks another agent, SERVER of who answers.
        """
        trace_id, parent_id = parent_of(parent)
        named = plain(attributes)
        trace_id, span_id = trace_id or secrets.token_hex(16), secrets.token_hex(8)
        kept = KeptSpan(
            trace_id=trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=name,
            attributes=named,
            links=links[:TOGETHER],
            waited=waited,
        )
        owner = _owner(named)
        self.ring.put(owner, kept)
        span = Span(trace_id, span_id, kept, owner)
        error: BaseException | None = None
        try:
            with entered(span):
                yield span
        except BaseException as raised:
            error = raised
            raise
        finally:
            span.end(error)
            self.ring.settle(owner, kept)
            if self._otlp is not None:
                self._otlp.put(kept, kind)

    @contextmanager
    def together(
        self,
        name: str,
        parents: Iterable[str] | Mapping[str, Mapping[str, Any]],
        *,
        alone: bool = False,
        **attributes: Any,
    ) -> Iterator[Span | None]:
        """One piece of work for changes of several traces: a span in each, linked with the first, which is the current
        one within the block. Of more than TOGETHER parents the first. A mapping has attributes of each one's own.
        Without any parent there is no span, with ``alone`` one of a trace of its own.
        """
        own: Mapping[str, Mapping[str, Any]] = (
            parents if isinstance(parents, Mapping) else {parent: {} for parent in parents if parent}
        )
        first, *others = list(own)[:TOGETHER] or [""]
        if not first and not alone:
            yield None
            return
        with ExitStack() as stack:
            main = stack.enter_context(self.span(name, first, **attributes, **own.get(first, {})))
            for parent in others:
                stack.enter_context(self.span(name, parent, links=(main.traceparent,), **attributes, **own[parent]))
            with entered(main):
                yield main

    @contextmanager
    def following(self, traceparent: str) -> Iterator[None]:
        """What the block does belongs to this trace, as what a message caused does; without one it belongs to none."""
        trace_id, span_id = context_of(traceparent)
        if not trace_id:
            yield
            return
        with entered(Span(trace_id, span_id, owner=current_owner())):
            yield

    def stop(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        if self._otlp is not None:
            self._otlp.stop()


def _owner(attributes: Mapping[str, Attribute]) -> str:
    return next((str(attributes[name]) for name in _OWNERS if attributes.get(name)), current_owner())
