"""The health check servers for load balancers: one port a Service, and one for the node.

Owns the listening sockets: one for each health-check node port and one for the node as a whole. Promises: they follow
the Services (present state, planned and applied); a port that cannot be had is told once, tried again at each full pass
and stands in nobody's way; a request has lines of at most 4 KiB and five seconds, is the last of its connection, and at
most 128 are served at once (the next is hung up on, which a prober takes for a failure). Answers are computed when
asked, so they are never old.

Unlike packets, these answers need the agent: while it is down, load balancers take the node out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus

from aiohttp import web

from chassis.runtime.reconcile import Dirty, Done
from chassis.telemetry.log import Log
from kit.once import Once
from proto.codec import object_key
from proto.objects import EndpointSlice, Node, Service
from services.dataplane.core.loadbalancer.health_checks import (
    Answer,
    Checks,
    Page,
    node_answer,
)
from services.dataplane.core.loadbalancer.service_objects import Name
from services.dataplane.feed import Feed

MAX_REQUESTS = 128
READ_SECONDS = 5.0
BACKLOG = 64
MAX_LINE = 4096
MAX_HEADERS = 32
HEADERS = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", "Server": "airmesh"}

_UNHEARD = logging.Logger("health-check", logging.CRITICAL)
"""What strangers send is no line in our log."""


class HealthCheckServer:
    """Listens where pages are asked for, on all addresses of this network namespace."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._pages: dict[int, Page] = {}
        self._servers: dict[int, asyncio.Server] = {}
        self._http: web.Server | None = None
        self._once: Once[tuple[int, str]] = Once()

    @property
    def ports(self) -> frozenset[int]:
        """Ports that are listened on."""
        return frozenset(self._servers)

    async def apply(self, pages: Mapping[int, Page]) -> None:
        """Makes the listening ports those of ``pages``; one that stays keeps its socket."""
        for port in sorted(self._servers.keys() - pages.keys()):
            self._servers.pop(port).close()
            self._log.info("health-check-closed", port=port)
        self._pages = dict(pages)
        missing = sorted(pages.keys() - self._servers.keys())
        failed = [(port, why) for port in missing if (why := await self._open(port))]
        for port, why in self._once.take(failed, time.monotonic()):
            remedy = "end what listens there, or let the Service have another healthCheckNodePort"
            self._log.error("health-check-not-open", port=port, error=why, remedy=remedy)

    async def close(self) -> None:
        """Listens nowhere any more."""
        await self.apply({})
        if self._http is not None:
            await self._http.shutdown(1.0)

    async def _open(self, port: int) -> str:
        if self._http is None:
            self._http = web.Server(
                self._serve,
                keepalive_timeout=READ_SECONDS,
                lingering_time=0,
                max_line_size=MAX_LINE,
                max_field_size=MAX_LINE,
                max_headers=MAX_HEADERS,
                access_log=None,
                logger=_UNHEARD,
            )
        try:
            listener = _listen(port)
            self._servers[port] = await asyncio.get_running_loop().create_server(self._connection, sock=listener)
        except OSError as error:
            return str(error)
        self._log.info("health-check-open", port=port)
        return ""

    def _connection(self) -> asyncio.Protocol:
        assert self._http is not None
        return self._http() if len(self._http.connections) < MAX_REQUESTS else _HungUp()

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        transport = request.transport
        page = self._pages.get(transport.get_extra_info("sockname")[1]) if transport is not None else None
        if request.method not in ("GET", "HEAD"):
            answer = Answer(status=HTTPStatus.METHOD_NOT_ALLOWED, headers=(("Allow", "GET, HEAD"),))
        elif page is None:
            answer = Answer(status=HTTPStatus.NOT_FOUND)
        else:
            answer = page(request.path)
        response = web.Response(status=answer.status, body=answer.body, headers={**HEADERS, **dict(answer.headers)})
        response.force_close()
        return response


class _HungUp(asyncio.Protocol):
    """A connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class HealthChecks:
    """The pages of one node. ``healthy``: whether the agent keeps its tables; ``is_served``: whether a Service (by
    namespace and name) has its entries in them; ``port``: of the node's own page, 0 for none.
    """

    def __init__(
        self,
        server: HealthCheckServer,
        feed: Feed,
        healthy: Callable[[], bool],
        is_served: Callable[[str, str], bool],
        port: int,
    ) -> None:
        self._server = server
        self._feed = feed
        self._healthy = healthy
        self._is_served = is_served
        self._port = port
        self._last_healthy = 0.0
        self._checks = Checks(feed.node)

    async def apply(self, dirty: Dirty) -> Done:
        """Ports and answers as the objects have them now; before the watches are complete they stay as they are.
        Services without such a port, and their slices, are no reason to look.
        """
        whole = dirty.full or not dirty.keys or any(key.startswith("_") for key in dirty.keys)
        if self._feed.complete(Service) and self._feed.complete(EndpointSlice):
            changed = self._look_at_all() if whole else self._look_at(dirty.keys)
        else:
            changed = False
        if not (whole or changed):
            return Done()
        pages: dict[int, Page] = {port: self._page_of(port) for port in self._checks.by_port}
        if self._port:
            pages[self._port] = self._node_page
        await self._server.apply(pages)
        return Done()

    def _look_at_all(self) -> bool:
        self._checks = Checks(self._feed.node)
        for service in self._feed.all_of(Service):
            self._checks.put(object_key(service), service)
        for part in self._feed.all_of(EndpointSlice):
            self._checks.put(object_key(part), part)
        return self._checks.settle()

    def _look_at(self, keys: Collection[str]) -> bool:
        """What changed; whether it is about a Service that has such a port, or had one."""
        entries = self._feed.objects.entries
        asking: set[Name] = set()
        for key in keys:
            entry = entries.get(key)
            value = None if entry is None else entry.value
            name = self._checks.put(key, value if isinstance(value, Service | EndpointSlice) else None)
            asking |= {name} if name is not None else set()
        if asking:
            for part in self._feed.all_of(EndpointSlice):
                if (part.namespace, part.service) in asking:
                    self._checks.put(object_key(part), part)
        return self._checks.settle()

    def _page_of(self, port: int) -> Page:
        def page(_path: str) -> Answer:
            check = self._checks.by_port[port]
            return check.answer(healthy=self._healthy() and self._is_served(check.namespace, check.name))

        return page

    def _node_page(self, path: str) -> Answer:
        now, healthy = time.time(), self._healthy()
        if healthy:
            self._last_healthy = now
        return node_answer(
            path, healthy=healthy, eligible=self._is_eligible(), now=now, last_healthy=self._last_healthy
        )

    def _is_eligible(self) -> bool:
        """A Node that is about to be deleted, or is not there, gets no new traffic."""
        if not self._feed.complete(Node):
            return True
        node = self._feed.node_object()
        return node is not None and not node.leaving


def _listen(port: int) -> socket.socket:
    """A socket for both families, or for IPv4 where there is no IPv6. Raises OSError."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=BACKLOG)
