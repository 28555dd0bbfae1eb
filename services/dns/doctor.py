"""What `dns` looks at when the mesh is asked what is wrong: CoreDNS' servers, its Corefile and its upstreams.

Servers and upstreams are asked by UDP while the question is open, all at once and each a few times; the fastest answer
counts. A server that is silent may be so by policy, which lets pods ask and not this agent: `policy` is asked then,
and the server is named as unchecked. Its view of objects is of its own: what is decided does not wait for it. Nothing
is kept.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from chassis.bus.client import Bus, View
from chassis.faults import Refused, Unavailable
from chassis.runtime.checks import NotChecked
from chassis.runtime.service import Runtime
from proto.codec import Malformed, join, kind_prefix
from proto.dns import CoreDNSDecision
from proto.findings import DoctorRequest, Finding
from proto.net import Address
from proto.objects import KIND_OF, ConfigMap, Deployment, EndpointSlice, Service
from proto.requests import ExplainRequest, Explanation
from proto.subjects import OBJECTS, POLICY_EXPLAIN
from services.dns.core.doctor import examine
from services.dns.core.doctor.upstreams import Upstream
from services.dns.core.question import NS, PORT, A, Answer, answer, name_of_api, question
from services.dns.core.servers import servers
from services.dns.settings import Settings

TIMES = 3
PATIENCE = 1.0
"""Seconds that one query may take."""
TOGETHER = 64
"""Servers and upstreams that are asked at most: the first by their addresses."""
_KINDS = (Service, EndpointSlice, ConfigMap, Deployment)
T = TypeVar("T")


def start(runtime: Runtime[Settings], decisions: View) -> None:
    """Answer from now on; ``decisions`` mirrors the bucket ``dns``."""
    settings = runtime.settings
    domain = settings.recipe().cluster_domain
    doctor = Doctor(runtime.bus, decisions, service=settings.dns_service, domain=domain)
    runtime.checks.add(examine.CODES, doctor.check)
    runtime.checks.add((examine.SILENT,), doctor.silence)


class Doctor:
    """Two checks: ``check`` and ``silence``."""

    def __init__(self, bus: Bus, decisions: View, *, service: str, domain: str) -> None:
        kinds = {kind_prefix(KIND_OF[kind]): kind for kind in _KINDS}
        self._objects: View = bus.bucket(OBJECTS).watch(
            kinds,
            prefixes=tuple(f"{prefix}.{join(examine.NAMESPACE)}" for prefix in kinds),
            markers=tuple(kinds),
            name="doctor",
        )
        self._bus = bus
        self._decisions = decisions
        self._service = service
        self._domain = domain

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """All but silence; raises :class:`NotChecked` before objects are known."""
        if asked.kind not in ("all", "dns"):
            return ()
        facts = self._facts()
        wanted = examine.wanted_upstreams(facts.corefile)[:TOGETHER]
        answered = await asyncio.gather(*(_ask_upstream(one) for one in wanted))
        return examine.check(replace(facts, by_upstream=dict(zip(wanted, answered, strict=True))))

    async def silence(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Servers that answer nothing; raises :class:`NotChecked`, also where each of these may be so by policy."""
        if asked.kind not in ("all", "dns"):
            return ()
        facts = self._facts()
        wanted = sorted(facts.servers.values(), key=str)[:TOGETHER]
        name = name_of_api(self._domain)
        answered = await asyncio.gather(*(_ask(address, PORT, name) for address in wanted))
        facts = replace(facts, by_server=dict(zip(wanted, answered, strict=True)))
        silent = examine.silent_servers(facts)
        verdicts = await asyncio.gather(*(self._denied(address) for address in silent))
        denied = {address: reason for address, reason in zip(silent, verdicts, strict=True) if reason}
        if denied and len(denied) == len(silent):
            listed = ", ".join(map(str, denied))
            raise NotChecked(f"this agent may not ask {listed} at UDP port {PORT}: {next(iter(denied.values()))}")
        return examine.silence(facts, denied)

    async def _denied(self, server: Address) -> str:
        """Why policy lets no query of this agent through to a server; empty if it does, or if nobody says."""
        try:
            source = await _source(server)
            asked = ExplainRequest(source=source, destination=str(server), port=PORT, protocol=socket.IPPROTO_UDP)
            said = await self._bus.request(POLICY_EXPLAIN, asked, Explanation, timeout=PATIENCE)
        except (OSError, Refused, Unavailable, Malformed):
            return ""
        return "" if said.allowed else "; ".join(said.reasons)

    def _facts(self) -> examine.Facts:
        if not self._objects.synced:
            raise NotChecked(f"objects of kube-system are not known: {self._objects.why()}")
        slices = self._of(EndpointSlice)
        corefile = next((dict(one.content).get("Corefile") for one in self._of(ConfigMap)), None)
        services = [one for one in self._of(Service) if one.name == self._service]
        decided = [one.value for one in self._decisions.entries.values() if isinstance(one.value, CoreDNSDecision)]
        return examine.Facts(
            service=self._service,
            cluster_ips=services[0].cluster_ips if services else (),
            slices=slices,
            deployment=next(iter(self._of(Deployment)), None),
            replicas=decided[0].replicas if decided else None,
            corefile=corefile,
            servers=servers(slices, examine.NAMESPACE, self._service),
        )

    def _of(self, kind: type[T]) -> tuple[T, ...]:
        return tuple(one.value for one in self._objects.entries.values() if isinstance(one.value, kind))


async def _source(server: Address) -> str:
    """The address that packets to a server leave with. Raises OSError where none do."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Heard, remote_addr=(str(server), PORT))
    try:
        return str(transport.get_extra_info("sockname")[0])
    finally:
        transport.close()


async def _ask_upstream(upstream: Upstream) -> examine.Asked:
    """Its zone's own name, and for the root a name that nobody has, too."""
    address, port, zone = upstream.ip, upstream.port, upstream.zone
    if zone != ".":
        return await _ask(address, port, zone, kind=NS)
    known, invalid = await asyncio.gather(
        _ask(address, port, zone, kind=NS), _ask(address, port, f"{secrets.token_hex(6)}.invalid", times=1)
    )
    return examine.Asked(answer=known.answer, invalid=invalid.answer, times=known.times, name="the root")


async def _ask(address: Address, port: int, name: str, *, kind: int = A, times: int = TIMES) -> examine.Asked:
    """The fastest of several answers, asked one after the other."""
    answers = [await _once(address, port, name, kind) for _ in range(times)]
    known = [one for one in answers if one is not None]
    fastest = min(known, key=lambda one: one.milliseconds, default=None)
    return examine.Asked(answer=fastest, times=times, name=name)


async def _once(address: Address, port: int, name: str, kind: int) -> Answer | None:
    asked = question(name, secrets.randbelow(1 << 16), kind)
    loop = asyncio.get_running_loop()
    begun = time.monotonic()
    try:
        transport, heard = await loop.create_datagram_endpoint(_Heard, remote_addr=(str(address), port))
    except OSError:
        return None
    try:
        transport.sendto(asked)
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await heard.messages.get()
                found = answer(asked, message, (time.monotonic() - begun) * 1000)
                if found is not None:
                    return found
    except (TimeoutError, OSError):
        return None
    finally:
        transport.close()


class _Heard(asyncio.DatagramProtocol):
    """What comes back; a refusal by ICMP is silence."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue(maxsize=8)

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Keep the first few: more come from nobody honest."""
        if not self.messages.full():
            self.messages.put_nowait(data)
