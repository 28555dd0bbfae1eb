"""An API server that can be hurt: lists, watches, bookmarks and writes as the real one does, and its faults on demand.

The real server cannot be asked to expire a watch at a chosen moment, to fall silent, or to send an event twice; that is
all this one is for. What it serves is a function of what was put into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from tests.natsd import free_port

PATHS = {
    "Namespace": ("/api/v1", "namespaces"),
    "Node": ("/api/v1", "nodes"),
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "FelixConfiguration": ("/apis/crd.projectcalico.org/v1", "felixconfigurations"),
    "FelixConfiguration.v3": ("/apis/projectcalico.org/v3", "felixconfigurations"),
    "IPPool.v3": ("/apis/projectcalico.org/v3", "ippools"),
    "IPPool": ("/apis/crd.projectcalico.org/v1", "ippools"),
    "CalicoNodeStatus": ("/apis/crd.projectcalico.org/v1", "caliconodestatuses"),
    "CalicoNodeStatus.v3": ("/apis/projectcalico.org/v3", "caliconodestatuses"),
    **{
        f"{kind}{version}": (group, f"{kind.lower()}s")
        for kind in ("BGPConfiguration", "BGPPeer", "BGPFilter")
        for version, group in (("", "/apis/crd.projectcalico.org/v1"), (".v3", "/apis/projectcalico.org/v3"))
    },
}
V3 = ".v3"
"""Ends the name of a kind that has a second spelling."""
Fault = Callable[[web.Request], web.StreamResponse | None]


def status(code: int, reason: str, message: str = "because", seconds: int | None = None) -> dict[str, Any]:
    details = {} if seconds is None else {"retryAfterSeconds": seconds}
    return {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


class ApiServer:
    """Start with ``start``; ``url`` is plain HTTP on loopback."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = {kind: {} for kind in PATHS}
        self.absent: set[str] = set()
        self.version = 100
        self.compacted = 0
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        self.bookmarks = "sometimes"
        self.duplicate = False
        self.silent = False
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.applied: list[tuple[str, str, dict[str, Any]]] = []
        self.events: dict[str, dict[str, Any]] = {}
        self.reviews: dict[str, dict[str, Any]] = {}
        """What is said of a token (status of a TokenReview)."""
        self.url = ""
        self._changed = asyncio.Condition()
        self._watchers: set[web.StreamResponse] = set()
        self._errors: list[dict[str, Any]] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._port = self._port or free_port()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Listening ends and every connection is cut; ``start`` brings it back on the same port."""
        self.drop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # What is in it

    async def put(self, kind: str, written: dict[str, Any], namespace: str = "", name: str = "x") -> dict[str, Any]:
        """Make or change an object; its uid stays while it lives."""
        before = self.objects[kind].get((namespace, name))
        metadata = {"name": name, "uid": f"{kind}-{name}-{self.version}", **written.get("metadata", {})}
        if namespace:
            metadata["namespace"] = namespace
        if before is not None:
            metadata["uid"] = before["metadata"]["uid"]
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        made = {**copy.deepcopy(written), "metadata": metadata}
        self.objects[kind][namespace, name] = made
        await self._record("MODIFIED" if before else "ADDED", kind, made)
        return made

    async def delete(self, kind: str, namespace: str = "", name: str = "x") -> None:
        gone = copy.deepcopy(self.objects[kind].pop((namespace, name)))
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        await self._record("DELETED", kind, gone)

    async def _record(self, what: str, kind: str, written: dict[str, Any]) -> None:
        self.history.append((self.version, what, kind, written))
        async with self._changed:
            self._changed.notify_all()

    # How it can be hurt

    def compact(self) -> None:
        """Forget all history: a watch or a continue token from before is 410."""
        self.version += 1
        self.compacted = self.version

    def drop(self) -> None:
        """Cut every watch in the middle of whatever it does."""
        for watcher in list(self._watchers):
            request = getattr(watcher, "_req", None)
            if request is not None and request.transport is not None:
                request.transport.abort()

    async def speak(self) -> None:
        """End the silence."""
        self.silent = False
        async with self._changed:
            self._changed.notify_all()

    async def send_error(self, code: int, reason: str) -> None:
        """An ERROR event into every watch there is, which then ends."""
        self._errors.append(status(code, reason))
        async with self._changed:
            self._changed.notify_all()

    def refuse(self, times: int, code: int, reason: str, *, when: str = "", retry_after: str = "") -> None:
        """Refuse the next so many requests whose line contains ``when``."""
        left = [times]

        def fault(request: web.Request) -> web.StreamResponse | None:
            if left[0] <= 0 or when not in f"{request.method} {request.path_qs}":
                return None
            left[0] -= 1
            headers = {"Retry-After": retry_after} if retry_after else {}
            return web.json_response(status(code, reason), status=code, headers=headers)

        self.faults.append(fault)

    def lists(self, kind: str) -> int:
        """Whole lists that were begun."""
        path = "/".join(PATHS[kind])
        return sum(
            line.startswith(f"GET {path}?") and "watch=" not in line and "continue=" not in line
            for line in self.requests
        )

    # How it answers

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        for fault in self.faults:
            answer = fault(request)
            if answer is not None:
                return answer
        if request.method == "PATCH":
            return await self._apply(request)
        if request.method == "POST":
            return await self._create(request)
        kind = _listed(request.path)
        if kind is None or kind in self.absent:
            return web.json_response(status(404, "NotFound"), status=404)
        if request.query.get("watch"):
            return await self._watch(request, kind)
        return self._list(request, kind)

    def _selected(self, request: web.Request, kind: str) -> list[dict[str, Any]]:
        field = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        found = [o for (_, name), o in sorted(self.objects[kind].items()) if not field or name == field]
        parts = request.path.split("/")
        if "namespaces" in parts[:-1]:
            namespace = parts[parts.index("namespaces") + 1]
            found = [o for o in found if o["metadata"].get("namespace") == namespace]
        return found

    def _list(self, request: web.Request, kind: str) -> web.StreamResponse:
        limit = int(request.query.get("limit", "0")) or 10**9
        at, version = 0, self.version
        if token := request.query.get("continue"):
            version, at = (int(part) for part in token.split(":"))
            if version < self.compacted:
                return web.json_response(status(410, "Expired", "continue token is too old"), status=410)
        found = self._selected(request, kind)
        metadata = {"resourceVersion": str(version)}
        if at + limit < len(found):
            metadata["continue"] = f"{version}:{at + limit}"
        return web.json_response({"kind": f"{kind}List", "metadata": metadata, "items": found[at : at + limit]})

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        if version < self.compacted:
            return web.json_response(status(410, "Expired", "too old resource version"), status=410)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._watchers.add(response)
        field = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        try:
            async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                await self._send(response, kind, version, field)
        except TimeoutError:
            if self.bookmarks != "never" and not self.silent:
                with contextlib.suppress(ConnectionError):
                    await response.write(self._bookmark(kind))
            if self.silent:
                # A stopped server does not even close its connections.
                await asyncio.sleep(3600)
        except ConnectionError:
            pass
        finally:
            self._watchers.discard(response)
        return response

    async def _send(self, response: web.StreamResponse, kind: str, version: int, field: str) -> None:
        earlier = len(self._errors)
        while True:
            async with self._changed:
                await self._changed.wait_for(partial(self._has_news, version, earlier))
                errors = self._errors[earlier:]
                new = [entry for entry in self.history if entry[0] > version]
            for error in errors:
                await response.write(_line("ERROR", error))
                return
            for at, what, whose, written in new:
                version = at
                if whose != kind or (field and written["metadata"]["name"] != field):
                    continue
                for _ in range(2 if self.duplicate else 1):
                    await response.write(_line(what, written))
            if self.bookmarks == "always":
                await response.write(self._bookmark(kind))

    def _has_news(self, version: int, earlier: int) -> bool:
        news = bool(self._errors[earlier:]) or (bool(self.history) and self.history[-1][0] > version)
        return news and not self.silent

    def _bookmark(self, kind: str) -> bytes:
        return _line("BOOKMARK", {"kind": kind, "metadata": {"resourceVersion": str(self.version)}})

    async def _apply(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.applied.append((request.path, request.query["fieldManager"], body))
        if request.content_type == "application/merge-patch+json":  # it says neither kind nor name
            path, name = request.path.rsplit("/", 1)
            body = {**body, "kind": _listed(path), "metadata": {**body["metadata"], "name": name}}
        kind = body["kind"] + (V3 if body.get("apiVersion") == "projectcalico.org/v3" else "")
        name, namespace = body["metadata"]["name"], body["metadata"].get("namespace", "")
        if kind == "Event":
            self.events[name] = body
            return web.json_response(body)
        there = copy.deepcopy(self.objects[kind].get((namespace, name)))
        version = body["metadata"].get("resourceVersion", "")
        if version and version != (there or {"metadata": {}})["metadata"].get("resourceVersion"):
            self.applied.pop()
            return web.json_response(status(409, "Conflict"), status=409)
        if there is None:
            there = {"metadata": {}}
        metadata = there["metadata"]
        if "annotations" in body["metadata"]:
            metadata["annotations"] = {**metadata.get("annotations", {}), **body["metadata"]["annotations"]}
        for section in ("data", "spec"):
            if section in body:
                there[section] = {**there.get(section, {}), **body[section]}
        for condition in body.get("status", {}).get("conditions", []):
            conditions = there.setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [one for one in conditions if one["type"] != condition["type"]] + [condition]
        metadata.pop("resourceVersion", None)
        await self.put(kind, there, namespace, name)
        return web.json_response(there)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if request.path.endswith("/tokenreviews"):
            return web.json_response({**body, "status": self.reviews.get(body["spec"]["token"], {})}, status=201)
        name = body["metadata"]["name"]
        if name in self.events:
            return web.json_response(status(409, "AlreadyExists"), status=409)
        self.events[name] = body
        return web.json_response(body, status=201)


def _listed(path: str) -> str | None:
    """The kind whose objects a path lists."""
    found = (
        kind for kind, (api, plural) in PATHS.items() if path.startswith(f"{api}/") and path.endswith(f"/{plural}")
    )
    return next(found, None)


def _line(what: str, written: dict[str, Any]) -> bytes:
    return json.dumps({"type": what, "object": written}).encode() + b"\n"
