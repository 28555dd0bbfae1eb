"""Which part of the agent answers which verb of CNI.

Owns STATUS and GC; ADD, CHECK and DEL are ``attach``'s. Promises: STATUS is 0 only when an ADD could succeed; GC undoes
what two lists, a grace apart, both lack (be it in the address journal or in the kernel alone), goes on after a failure
and names all of them; while the agent stops, ADD says "try again later" and DEL goes on working.
"""

from __future__ import annotations

import time

from chassis.runtime.service import Runtime
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.cni.request import CniError, Code, Request, Verb
from services.dataplane.endpoint.attach import Attacher
from services.dataplane.ipam.journal import Journal
from services.dataplane.monitor.metrics import CNI_SECONDS
from services.dataplane.settings import Settings
from services.dataplane.signals import CallPriority


class Verbs:
    """Answers the calls of a runtime."""

    def __init__(
        self, runtime: Runtime[Settings], attacher: Attacher, journal: Journal, priority: CallPriority
    ) -> None:
        self._attacher = attacher
        self._journal = journal
        self._priority = priority
        self._unready = runtime.health.missing
        self._grace = runtime.settings.gc_grace
        self.stopping = False

    async def answer(self, request: Request) -> bytes:
        """The JSON of a successful answer. Raises CniError."""
        started, code = time.monotonic(), int(Code.INTERNAL)
        try:
            with self._priority.call():
                answer = await self._dispatch(request)
            code = 0
        except CniError as error:
            code = int(error.code)
            raise
        finally:
            CNI_SECONDS.labels(request.verb.value, code).observe(time.monotonic() - started)
        return answer

    async def _dispatch(self, request: Request) -> bytes:
        match request.verb:
            case Verb.ADD:
                if self.stopping:
                    raise CniError(Code.TRY_AGAIN_LATER, "the agent is stopping")
                return await self._attacher.add(request)
            case Verb.DEL:
                await self._attacher.delete(request.attachment)
                return b""
            case Verb.CHECK:
                return await self._attacher.check(request)
            case Verb.GC:
                return await self._collect(request)
            case _:
                return self._status()

    def _status(self) -> bytes:
        if self.stopping:
            raise CniError(Code.NOT_AVAILABLE, "the agent is stopping")
        missing = self._unready()
        if not missing:
            return b""
        code = Code.LIMITED_CONNECTIVITY if "datapath" in missing else Code.NOT_AVAILABLE
        raise CniError(code, "; ".join(f"{name}: {why}" for name, why in sorted(missing.items())))

    async def _collect(self, request: Request) -> bytes:
        if request.valid is None:
            return b""  # no list is not an empty list
        failures = []
        listed_at = self._journal.now()
        unrecorded = await self._attacher.unrecorded()
        ripe = self._journal.collect(set(request.valid), unrecorded, listed_at=listed_at, grace=self._grace)
        for container, interface in ripe:
            try:
                await self._attacher.delete(Attachment(container, interface))
            except CniError as error:
                failures.append(f"{container}/{interface}: {error.message}")
        if failures:
            raise CniError(Code.IO, "; ".join(failures))
        return b""
