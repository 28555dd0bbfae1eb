"""Health: named conditions and notes, on loopback as /livez, /readyz and /metrics, and in micro service statistics.

Alive = the loop turns (these pages answer). Ready = every condition holds; /readyz names those that do not, with the
reason. Prometheus metrics are those of the process-wide registry of prometheus_client.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client import REGISTRY, Gauge, generate_latest

_READY = Gauge("airmesh_ready", "1 while the service is ready")
_CONDITION = Gauge("airmesh_condition", "1 while this condition of readiness holds", ["condition"])


class Condition:
    """One thing that must hold for the service to be ready; false until set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ok = False
        self.why = "not yet known"
        _CONDITION.labels(name).set(0)

    def set(self, ok: bool, why: str = "") -> None:
        """Whether it holds, and if not, why (one sentence)."""
        self.ok = ok
        self.why = "" if ok else why
        _CONDITION.labels(self.name).set(int(ok))

    def latch(self, ok: bool, why: str) -> None:
        """Holds from the first time that it is ``ok``, whatever comes later; until then it says why not."""
        self.set(ok or self.ok, why)


class Health:
    """All conditions of a service and the pages that tell them."""

    def __init__(self) -> None:
        self._conditions: dict[str, Condition] = {}
        self.notes: dict[str, str] = {}
        """What a person should know though the service is ready, by name: a sentence each."""
        self._runner: web.AppRunner | None = None
        self.port = 0
        """Port that the pages are on, once they are."""

    def require(self, name: str) -> Condition:
        """The condition of this name; asked twice, the same one."""
        if name not in self._conditions:
            self._conditions[name] = Condition(name)
        return self._conditions[name]

    def note(self, name: str, sentence: str) -> None:
        """Says something under a name until it is said otherwise; an empty sentence takes it back."""
        if sentence:
            self.notes[name] = sentence
        else:
            self.notes.pop(name, None)

    @property
    def ready(self) -> bool:
        """True when every condition holds."""
        return all(condition.ok for condition in self._conditions.values())

    def missing(self) -> dict[str, str]:
        """Conditions that do not hold, and why."""
        return {name: condition.why for name, condition in self._conditions.items() if not condition.ok}

    async def serve(self, port: int) -> None:
        """Listen on loopback; raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        missing = self.missing()
        body = {"ready": not missing, "missing": missing, "notes": self.notes}
        return web.json_response(body, status=503 if missing else 200)

    async def _metrics(self, _request: web.Request) -> web.Response:
        _READY.set(int(self.ready))
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": "text/plain; version=0.0.4"})
