"""Who asks is known by the key, never by what the request says: claims to be another are refused, told, and bounded."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from chassis.faults import Refused
from chassis.telemetry.log import Log
from proto.requests import BlockReportRequest, BlockRequest, ClaimRelease, ClaimRequest
from services.ipam.claims import NOT_THE_HOLDER
from services.ipam.senders import MAX_NAME, OURS, REMEDY, REPORT_EVERY, Senders, check_names
from tests.golden.proto.samples import sample_of
from tests.natsd import Lines

BLOCK = msgspec.structs.replace(sample_of(BlockRequest), node="n1", nonce="random")
CLAIM = msgspec.structs.replace(sample_of(ClaimRequest), node="n1", nonce="random", container="c", interface="eth0")
REPORT = msgspec.structs.replace(sample_of(BlockReportRequest), node="n1")
RELEASE = msgspec.structs.replace(sample_of(ClaimRelease), nonce="random", container="c", interface="eth0")
NAMED = pytest.mark.parametrize("request_", [BLOCK, CLAIM, REPORT], ids=lambda one: type(one).__name__)


class Reported:
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
def reported() -> Reported:
    return Reported()


@NAMED
async def test_a_node_asks_for_itself(reported: Reported, request_: Any) -> None:
    assert await reported.ask(request_, "n1") is REPORT
    assert reported.answered == [request_]
    assert reported.faults == []


@NAMED
@pytest.mark.parametrize("sender", ["n2", "", "N1", "n1 "])
async def test_a_node_that_asks_for_another_is_refused_and_reported_by_the_key(
    reported: Reported, request_: Any, sender: str
) -> None:
    with pytest.raises(Refused) as refused:
        await reported.ask(request_, sender)
    what = type(request_).__name__
    assert refused.value.code == "not-the-sender"
    assert refused.value.message == f"{what}.node is 'n1', but node {sender} sent it; name the node that asks"
    assert reported.answered == []
    assert reported.faults == [
        (f"node {sender} sends a {what} in the name of node 'n1', which is refused", REMEDY, sender)
    ]


async def test_a_long_lie_is_reported_in_short(reported: Reported) -> None:
    liar = msgspec.structs.replace(BLOCK, node="x" * 100_000 + "\n")
    with pytest.raises(Refused) as refused:
        await reported.ask(liar, "n1")
    assert len(refused.value.message) < 300
    assert len(reported.faults[0][0]) < 300
    assert reported.lines.text.count("\n") == 1


async def test_who_lies_a_lot_is_reported_once_a_minute_and_others_beside_it(reported: Reported) -> None:
    for at, node in (
        (0.0, "n2"),
        (1.0, "n2"),
        (2.0, "n3"),
        (REPORT_EVERY - 0.1, "n2"),
        (REPORT_EVERY, "n2"),
        (61.0, "n2"),
    ):
        reported.now = 1000.0 + at
        with pytest.raises(Refused):
            await reported.ask(BLOCK, node)
    assert [node for _, _, node in reported.faults] == ["n2", "n3", "n2"]
    assert len(reported.lines.named("node-lies")) == 6, "the log has them all"


@pytest.mark.parametrize("request_", [BLOCK, CLAIM], ids=["BlockRequest", "ClaimRequest"])
@pytest.mark.parametrize("nonce", ["", *OURS, *(f"{one}x" for one in OURS), "x" * (MAX_NAME + 1)])
async def test_a_nonce_that_ipam_alone_gives_is_refused(reported: Reported, request_: Any, nonce: str) -> None:
    """It would be known again as the record of a recovery, or of a block that was taken back."""
    with pytest.raises(Refused, match="nonce") as refused:
        await reported.ask(msgspec.structs.replace(request_, nonce=nonce), "n1")
    assert refused.value.code == "malformed"
    assert reported.answered == []
    assert reported.faults == [], "it may be a mistake; it is no lie"


@pytest.mark.parametrize("nonce", ["a", "x" * MAX_NAME, *(f"x{one}" for one in OURS)])
async def test_any_other_nonce_is_taken(reported: Reported, nonce: str) -> None:
    await reported.ask(msgspec.structs.replace(BLOCK, nonce=nonce), "n1")
    assert len(reported.answered) == 1


@pytest.mark.parametrize("field", ["nonce", "container", "interface"])
@pytest.mark.parametrize("request_", [CLAIM, RELEASE], ids=["ClaimRequest", "ClaimRelease"])
def test_names_have_a_bound(request_: Any, field: str) -> None:
    check_names(msgspec.structs.replace(request_, **{field: "x" * MAX_NAME}))
    with pytest.raises(
        Refused, match=f"^malformed: {field} of {MAX_NAME + 1} characters is longer than {MAX_NAME}; shorten it"
    ):
        check_names(msgspec.structs.replace(request_, **{field: "x" * (MAX_NAME + 1)}))


async def test_a_release_is_passed_on_with_the_node_that_asks(reported: Reported) -> None:
    await reported.release(RELEASE, "n1")
    assert reported.answered == [(RELEASE, "n1")]


@pytest.mark.parametrize("nonce", ["", OURS[0]])
async def test_a_release_may_bear_any_nonce_since_it_makes_no_record(reported: Reported, nonce: str) -> None:
    await reported.release(msgspec.structs.replace(RELEASE, nonce=nonce), "n1")
    assert len(reported.answered) == 1


@pytest.mark.parametrize(("code", "is_reported"), [(NOT_THE_HOLDER, True), ("busy", False)])
async def test_who_releases_what_it_does_not_hold_is_reported(reported: Reported, code: str, is_reported: bool) -> None:
    reported.refusal = Refused(code, "10.244.0.7 is held by n2")
    with pytest.raises(Refused) as refused:
        await reported.release(RELEASE, "n1")
    assert refused.value is reported.refusal
    said = "node n1 asks to release what it does not hold: 10.244.0.7 is held by n2"
    assert reported.faults == ([(said, REMEDY, "n1")] if is_reported else [])
