"""What `policy` finds when it is asked: only what is asked for, never before it has compiled, and what is not there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chassis.runtime.checks import NotChecked
from proto.findings import DoctorRequest
from proto.objects import KubernetesObject, Namespace
from proto.policy import Ack, Revision
from services.policy import doctor
from services.policy.core.graph import Graph
from services.policy.doctor import Doctor
from tests.core.policy.cluster import feed
from tests.core.policy.notation import namespace, pod, policies

OBJECTS: dict[str, KubernetesObject] = {
    "k": Namespace("kube-system", "u"),
    "x": namespace("x"),
    "pod": pod("x/web", labels={"app": "web"}),
    "policy": policies("[{name: web, podSelector: {matchLabels: {app: wbe}}, ingress: [{}]}]")[0],
}
PUBLISHED = Revision("e", 7)


def made(acks: list[int], *, compiled: bool = True) -> Doctor:
    """The checks over a small cluster; ``acks``: what a node acknowledges, the last one for ever."""
    entries = {key: SimpleNamespace(value=value) for key, value in OBJECTS.items()}

    class Acks:
        synced = True

        @property
        def entries(self) -> dict[str, Any]:
            sequence = acks.pop(0) if len(acks) > 1 else acks[0]
            return {"n1": SimpleNamespace(value=Ack(node="n1", rules=Revision("e", sequence), endpoints=0))}

    fed = SimpleNamespace(
        objects=SimpleNamespace(entries=entries), acks=Acks(), published_up_to=lambda _: PUBLISHED if compiled else None
    )
    compiler = SimpleNamespace(lock=asyncio.Lock(), compiled_up_to=PUBLISHED if compiled else None)
    return Doctor(feed(Graph(), dict(OBJECTS)), cast("Any", compiler), cast("Any", fed), shards=1)


async def test_each_question_is_answered_by_what_it_asks_for() -> None:
    checks = made([7])
    codes = {
        kind: [one.code for one in await checks.policies(DoctorRequest(kind=kind, name=name))]  # type: ignore[arg-type]
        for kind, name in (("all", ""), ("policy", "x/web"), ("dns", ""), ("node", "n1"), ("service", "x/web"))
    }
    assert codes == {"all": ["policy-labels"], "policy": ["policy-labels"], "dns": [], "node": [], "service": []}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (DoctorRequest(kind="policy", name="x/other"), "there is no NetworkPolicy x/other"),
        (DoctorRequest(kind="connection", source="x/web", destination="x/gone", port=80), "no pod x/gone has a node"),
    ],
)
async def test_what_is_not_there_is_not_checked(asked: DoctorRequest, why: str) -> None:
    with pytest.raises(NotChecked, match=why):
        await made([7]).policies(asked)


async def test_nothing_is_said_before_everything_was_compiled() -> None:
    checks = made([7], compiled=False)
    for asking in (checks.policies, checks.kernels):
        with pytest.raises(NotChecked):
            await asking(DoctorRequest())


@pytest.mark.parametrize(
    ("acks", "lagging"), [([7], False), ([3, 3, 7], False), ([3, 3, 3, 4], False), ([3], True)], ids=str
)
async def test_a_node_that_moves_on_does_not_lag(
    acks: list[int], lagging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(doctor, "PATIENCE", 0.05)
    found = await made(list(acks)).kernels(DoctorRequest())
    assert [one.code for one in found] == (["policy-kernel-lags"] if lagging else [])
