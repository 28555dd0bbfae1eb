"""The standing check of an agent: what comes and goes is told, counted, dated and answered from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
from prometheus_client import REGISTRY

from chassis.bus.client import Bus
from chassis.runtime.checks import NotChecked
from chassis.runtime.settings import BaseSettings
from proto.codec import kind_prefix, object_key
from proto.events import FindingEvent, ObjectFault
from proto.findings import DoctorRequest, Expected, Finding
from proto.objects import KIND_OF, Service
from proto.subjects import FINDING, OBJECTS, heard_subject, object_fault_subject
from tests.conftest import BusFor, RuntimeFor
from tests.golden.proto.samples import sample_of
from tests.nats_cluster import until
from tests.natsd import NatsServer

FOUND = Finding(
    code="nodeport-ephemeral",
    fault="nodeport",
    about="Service shop/web",
    node="n1",
    cause="the port is given away",
    expected=Expected(text="this"),
    observed=(),
    fixes=(),
)


class Sick:
    """What a check finds, or why it cannot look."""

    def __init__(self, *found: Finding) -> None:
        self.found = found
        self.why = ""

    async def __call__(self, _: DoctorRequest) -> Iterable[Finding]:
        if self.why:
            raise NotChecked(self.why)
        return self.found


def gauge(name: str, code: str = FOUND.code) -> float | None:
    return REGISTRY.get_sample_value(name, {"code": code})


async def heard_by(cli: Bus) -> tuple[list[FindingEvent], list[ObjectFault]]:
    events, faults = list[FindingEvent](), list[ObjectFault]()
    await cli.subscribe(heard_subject("dataplane", FINDING), FindingEvent, lambda _, one: events.append(one))
    await cli.subscribe(object_fault_subject("dataplane", "*"), ObjectFault, lambda _, one: faults.append(one))
    return events, faults


async def test_what_comes_and_goes_is_reported_once(
    nats_server: NatsServer, bus_for: BusFor, runtime_for: RuntimeFor
) -> None:
    events, faults = await heard_by(await bus_for("cli"))
    runtime = await runtime_for("dataplane", "n1")
    sick = Sick(FOUND)
    runtime.checks.add((FOUND.code,), sick)
    standing = runtime.standing
    early = await standing.answer(DoctorRequest(standing=True))
    assert (early.findings, len(early.unchecked)) == ((), 1), "nothing was looked at yet, and it says so"
    for _ in range(4):
        await standing.look()
    answered = await standing.answer(DoctorRequest(standing=True))
    assert ([one.about for one in answered.findings], answered.checked) == (["Service shop/web"], (FOUND.code,))
    assert (gauge("airmesh_findings"), gauge("airmesh_findings_unchecked")) == (1, 0)
    sick.why = "the kernel does not answer"
    await standing.look()
    assert (gauge("airmesh_findings"), gauge("airmesh_findings_unchecked")) == (1, 1)
    sick.why, sick.found = "", ()
    await standing.look()
    await standing.look()
    assert gauge("airmesh_findings") == 0
    await until("it is there", lambda: len(events) >= 2)
    assert [(one.service, one.node, one.state) for one in events] == [
        ("dataplane", "n1", "came"),
        ("dataplane", "n1", "gone"),
    ]
    assert 0 < events[0].finding.since <= events[0].at <= events[1].at
    (fault,) = faults
    assert (fault.kind, fault.namespace, fault.name, fault.group) == ("Service", "shop", "web", "")
    assert (fault.reason, fault.fault) == ("NodeportEphemeral", FOUND.cause)


async def test_a_finding_says_which_change_came_before_it(
    buckets: dict[str, str], bus_for: BusFor, runtime_for: RuntimeFor
) -> None:
    cluster = await bus_for("cluster")
    runtime = await runtime_for("dataplane", "n1")
    prefix = kind_prefix(KIND_OF[Service])
    view = runtime.bus.bucket(OBJECTS).watch({prefix: Service}, prefixes=(prefix,), markers=(), name="services")
    sick = Sick()
    runtime.checks.add((FOUND.code,), sick)
    service = msgspec.structs.replace(sample_of(Service), namespace="shop", name="web")
    other = msgspec.structs.replace(service, name="db")
    written = [await cluster.bucket(OBJECTS).put(object_key(one), one) for one in (other, service)]
    await until("it is there", lambda: view.sequence >= written[0])
    await runtime.standing.look()
    again = await cluster.bucket(OBJECTS).put(object_key(service), msgspec.structs.replace(service, uid="another"))
    await until("it is there", lambda: view.sequence >= again)
    sick.found = (FOUND,)
    await runtime.standing.look()
    (now,) = (await runtime.standing.answer(DoctorRequest())).findings
    assert now.change == f"Service shop/web was written (sequence {again} of objects)"
    assert now.since > 0
    assert (await runtime.standing.answer(DoctorRequest(standing=True))).findings == (), "one look is no proof"


async def test_it_looks_by_itself_unless_it_is_off(nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
    looked = asyncio.Event()

    async def look(_: DoctorRequest) -> Iterable[Finding]:
        looked.set()
        return ()

    def settings(every: float) -> BaseSettings:
        user = nats_server.user("dataplane", "n1")
        return BaseSettings(
            nats_url=nats_server.url,
            nats_seed_file=nats_server.seeds / f"{user.name}.seed",
            nats_user=user.name,
            checks_every=every,
        )

    idle = await runtime_for("dataplane", "n1", settings=settings(0))
    idle.checks.add(("idle",), look)
    idle.spawn("standing-check", idle.standing.run())
    assert "AIRMESH_CHECKS_EVERY" in (await idle.standing.answer(DoctorRequest(standing=True))).unchecked[0].why
    busy = await runtime_for("dataplane", "n1", settings=settings(0.01))
    busy.checks.add(("asked",), look, standing=False)
    assert busy.checks.standing_codes == ()
    busy.checks.add(("standing",), look)
    looked.clear()
    busy.spawn("standing-check", busy.standing.run())
    async with asyncio.timeout(60):
        await looked.wait()
