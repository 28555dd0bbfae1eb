"""Who asks is known by the key, never by what the request says: claims to be another are refused, told, and bounded."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from chassis.faults import Refused
from chassis.telemetry.log import Log
from proto.requests import BlockReportRequest, BlockRequest, ClaimRelease, ClaimRequest
from services.ipam.keeping import NOT_THE_HOLDER
from services.ipam.senders import MAX_NAME, OURS, REMEDY, TOLD_EVERY, Senders, check_names
from tests.golden.proto.samples import sample_of
from tests.natsd import Lines

BLOCK = msgspec.structs.replace(sample_of(BlockRequest), node="n1", nonce="random")
CLAIM = msgspec.structs.replace(sample_of(ClaimRequest), node="n1", nonce="random", container="c", interface="eth0")
REPORT = msgspec.structs.replace(sample_of(BlockReportRequest), node="n1")
RELEASE = msgspec.structs.replace(sample_of(ClaimRelease), nonce="random", container="c", interface="eth0")
NAMED = pytest.mark.parametrize("request_", [BLOCK, CLAIM, REPORT], ids=lambda one: type(one).__name__)


class Told:
    """Senders, what they let through, and what they told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.faults: list[tuple[str, str, str]] = []
        self.lines = Lines()
        self.answered: list[Any] = []
        self.refusal: Refused | None = None
        self.senders = Senders(
            Log("ipam", stream=cast("Any", self.lines)),
            lambda fault, remedy, node: self.faults.append((fault, remedy, node)),
            lambda: self.now,
        )

    async def ask(self, request: Any, node: str) -> Any:
        async def answer(asked: Any) -> Any:
            self.answered.append(asked)
            return REPORT

        return await self.senders.checked(answer)(request, node)

    async def release(self, request: ClaimRelease, node: str) -> None:
        async def answer(asked: ClaimRelease, whose: str) -> None:
            if self.refusal is not None:
                raise self.refusal
            self.answered.append((asked, whose))

        await self.senders.releasing(answer)(request, node)


@pytest.fixture
def told() -> Told:
    return Told()


@NAMED
async def test_a_node_asks_for_itself(told: Told, request_: Any) -> None:
    assert await told.ask(request_, "n1") is REPORT
    assert told.answered == [request_]
    assert told.faults == []


@NAMED
@pytest.mark.parametrize("sender", ["n2", "", "N1", "n1 "])
async def test_a_node_that_asks_for_another_is_refused_and_told_by_the_key(
    told: Told, request_: Any, sender: str
) -> None:
    with pytest.raises(Refused) as refused:
        await told.ask(request_, sender)
    what = type(request_).__name__
    assert refused.value.code == "not-the-sender"
    assert refused.value.message == f"{what}.node is 'n1', but node {sender} sent it; name the node that asks"
    assert told.answered == []
    assert told.faults == [(f"node {sender} sends a {what} in the name of node 'n1', which is refused", REMEDY, sender)]


async def test_a_long_lie_is_told_in_short(told: Told) -> None:
    liar = msgspec.structs.replace(BLOCK, node="x" * 100_000 + "\n")
    with pytest.raises(Refused) as refused:
        await told.ask(liar, "n1")
    assert len(refused.value.message) < 300
    assert len(told.faults[0][0]) < 300
    assert told.lines.text.count("\n") == 1


async def test_who_lies_a_lot_is_told_once_a_minute_and_others_beside_it(told: Told) -> None:
    for at, node in ((0.0, "n2"), (1.0, "n2"), (2.0, "n3"), (TOLD_EVERY - 0.1, "n2"), (TOLD_EVERY, "n2"), (61.0, "n2")):
        told.now = 1000.0 + at
        with pytest.raises(Refused):
            await told.ask(BLOCK, node)
    assert [node for _, _, node in told.faults] == ["n2", "n3", "n2"]
    assert len(told.lines.named("node-lies")) == 6, "the log has them all"


@pytest.mark.parametrize("request_", [BLOCK, CLAIM], ids=["BlockRequest", "ClaimRequest"])
@pytest.mark.parametrize("nonce", ["", *OURS, *(f"{one}x" for one in OURS), "x" * (MAX_NAME + 1)])
async def test_a_nonce_that_ipam_alone_gives_is_refused(told: Told, request_: Any, nonce: str) -> None:
    """It would be known again as the record of a recovery, or of a block that was taken back."""
    with pytest.raises(Refused, match="nonce") as refused:
        await told.ask(msgspec.structs.replace(request_, nonce=nonce), "n1")
    assert refused.value.code == "malformed"
    assert told.answered == []
    assert told.faults == [], "it may be a mistake; it is no lie"


@pytest.mark.parametrize("nonce", ["a", "x" * MAX_NAME, *(f"x{one}" for one in OURS)])
async def test_any_other_nonce_is_taken(told: Told, nonce: str) -> None:
    await told.ask(msgspec.structs.replace(BLOCK, nonce=nonce), "n1")
    assert len(told.answered) == 1


@pytest.mark.parametrize("field", ["nonce", "container", "interface"])
@pytest.mark.parametrize("request_", [CLAIM, RELEASE], ids=["ClaimRequest", "ClaimRelease"])
def test_names_have_a_bound(request_: Any, field: str) -> None:
    check_names(msgspec.structs.replace(request_, **{field: "x" * MAX_NAME}))
    with pytest.raises(
        Refused, match=f"^malformed: {field} of {MAX_NAME + 1} characters is longer than {MAX_NAME}; shorten it"
    ):
        check_names(msgspec.structs.replace(request_, **{field: "x" * (MAX_NAME + 1)}))


async def test_a_release_is_passed_on_with_the_node_that_asks(told: Told) -> None:
    await told.release(RELEASE, "n1")
    assert told.answered == [(RELEASE, "n1")]


@pytest.mark.parametrize("nonce", ["", OURS[0]])
async def test_a_release_may_bear_any_nonce_since_it_makes_no_record(told: Told, nonce: str) -> None:
    await told.release(msgspec.structs.replace(RELEASE, nonce=nonce), "n1")
    assert len(told.answered) == 1


@pytest.mark.parametrize(("code", "is_told"), [(NOT_THE_HOLDER, True), ("busy", False)])
async def test_who_releases_what_it_does_not_hold_is_told(told: Told, code: str, is_told: bool) -> None:
    told.refusal = Refused(code, "10.244.0.7 is held by n2")
    with pytest.raises(Refused) as refused:
        await told.release(RELEASE, "n1")
    assert refused.value is told.refusal
    said = "node n1 asks to release what it does not hold: 10.244.0.7 is held by n2"
    assert told.faults == ([(said, REMEDY, "n1")] if is_told else [])
