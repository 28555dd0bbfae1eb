"""A change of the Corefile through its states: the table, what is a sign of what, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from proto.dns import ChangeState, DnsChange, DnsMeasured, DnsProposal, DnsServerText, DnsTuning, digest_of
from services.dns.core.change import (
    JUDGED_SECONDS,
    OVERDUE_SECONDS,
    PAST,
    REFUSED_SECONDS,
    SILENT_SECONDS,
    STEPS,
    UNDER_WAY,
    Seen,
    Sign,
    begun,
    held,
    is_under_way,
    judge,
    proposed,
    refused,
    removed,
    sign,
    step,
)
from services.dns.core.decision import Chosen

OLD, NEW, OTHER = "old", "new", "other"
ONE, TWO = DnsServerText("one"), DnsServerText("two", "v1", 1)
FINE = DnsMeasured(queries=1000, failures=10, p99_ms=4.0, asked=12)
PREFETCH = DnsProposal("cache-prefetch", (("prefetch", "1"),), "many hits", "fewer waits")
EMPTY = DnsTuning(mode="advise", settings=(("capacity", "20000"),))


def written(state: ChangeState = "applied") -> DnsChange:
    return DnsChange(
        name="cache-prefetch",
        state=state,
        settings=(("capacity", "20000"), ("prefetch", "1")),
        settings_before=EMPTY.settings,
        before=OLD,
        after=digest_of(NEW),
        measured=FINE,
        servers=(ONE, TWO),
        since=1000.0,
    )


def seen(*servers: DnsServerText, text: str = NEW, silent_for: float = 0.0, measured: DnsMeasured = FINE) -> Seen:
    by_name: Mapping[str, DnsServerText] = {one.server: one for one in servers or (ONE, TWO)}
    return Seen(text=digest_of(text), servers=by_name, silent_for=silent_for, measured=measured)


def of(change: DnsChange, what: Seen, after: float = 1.0) -> Sign | None:
    found = sign(change, what, now=change.since + after)
    return found[0] if found is not None else None


def test_every_state_under_way_ends_and_each_end_is_remembered_with_the_settings_that_it_leaves() -> None:
    for (state, what), following in STEPS.items():
        before = msgspec.structs.replace(EMPTY, change=written(state), settings=written().settings)
        after = step(before, what, "because", now=7.0)
        assert after.change is not None
        assert (after.change.state, after.change.since, after.change.outcome) == (following, 7.0, "because")
        ended = following not in UNDER_WAY
        assert [one.state for one in after.past] == ([following] if ended else [])
        assert after.settings == (EMPTY.settings if following == "taken-back" else written().settings)
    for state in UNDER_WAY:
        assert any(one == state and following not in UNDER_WAY for (one, _), following in STEPS.items())


def test_what_the_table_does_not_have_changes_nothing() -> None:
    states: tuple[ChangeState, ...] = ("proposed", "applied", "judged", "kept", "taken-back", "overtaken")
    for state in states:
        for what in Sign:
            tuning = msgspec.structs.replace(EMPTY, change=written(state))
            if (state, what) not in STEPS:
                assert step(tuning, what, "", now=7.0) is tuning
    assert step(EMPTY, Sign.WORSE, "", now=7.0) is EMPTY


def test_no_more_than_a_few_ends_are_remembered() -> None:
    tuning = EMPTY
    for number in range(2 * PAST):
        tuning = msgspec.structs.replace(tuning, change=written("judged"))
        tuning = step(tuning, Sign.GOOD, str(number), now=float(number))
    assert [one.outcome for one in tuning.past] == [str(number) for number in reversed(range(PAST, 2 * PAST))]


READ_ONE, READ_TWO = DnsServerText("one", "v9"), DnsServerText("two", "v9", 1)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (seen(), None),
        (seen(READ_ONE, TWO), None),
        (seen(READ_ONE, READ_TWO), Sign.READ),
        (seen(READ_ONE, READ_TWO, DnsServerText("new")), Sign.READ),
        (seen(DnsServerText("one", "v9", 1), READ_TWO), Sign.REFUSED),
        (seen(ONE, DnsServerText("two", "v9", 2)), Sign.REFUSED),
        (seen(ONE, DnsServerText("two", "v9", 0)), None),  # it began anew: its failures are none
        (seen(text=OLD), None),
        (seen(text=OTHER), Sign.OVERTAKEN),
        (seen(READ_ONE, silent_for=SILENT_SECONDS - 1), None),
        (seen(READ_ONE, silent_for=SILENT_SECONDS), Sign.SILENT),
    ],
)
def test_signs_of_a_text_that_was_written(what: Seen, expected: Sign | None) -> None:
    assert of(written(), what) == expected


def test_without_servers_nothing_is_proved_and_the_text_stays() -> None:
    nobody = Seen(text=digest_of(NEW), servers={}, silent_for=0.0, measured=DnsMeasured())
    for state in ("applied", "judged"):
        assert of(written(state), nobody, OVERDUE_SECONDS - 1) is None
        assert of(written(state), nobody, OVERDUE_SECONDS) is Sign.OVERDUE


@pytest.mark.parametrize(
    ("after", "seconds", "expected"),
    [
        (FINE, JUDGED_SECONDS - 1, None),
        (FINE, JUDGED_SECONDS, Sign.GOOD),
        (DnsMeasured(queries=1000, failures=40, p99_ms=4), JUDGED_SECONDS - 1, None),
        (DnsMeasured(queries=1000, failures=40, p99_ms=4), JUDGED_SECONDS, Sign.WORSE),
        (DnsMeasured(queries=1000, failures=300, p99_ms=4), 10, Sign.WORSE),
        (DnsMeasured(queries=4, failures=4), 10, None),
        (DnsMeasured(asked=24, unanswered=12), 10, Sign.WORSE),
        (DnsMeasured(queries=1000, p99_ms=32), JUDGED_SECONDS - 1, None),
        (DnsMeasured(queries=1000, p99_ms=32), JUDGED_SECONDS, Sign.WORSE),
        (DnsMeasured(queries=1000, p99_ms=8), JUDGED_SECONDS, Sign.GOOD),
        (DnsMeasured(queries=90, p99_ms=320), JUDGED_SECONDS, Sign.GOOD),
        (DnsMeasured(), JUDGED_SECONDS, None),
    ],
)
def test_a_text_is_judged_by_failures_and_p99(after: DnsMeasured, seconds: float, expected: Sign | None) -> None:
    assert of(written("judged"), seen(READ_ONE, READ_TWO, measured=after), seconds) == expected


def test_how_a_persons_text_answers_is_the_persons_to_judge() -> None:
    tuning = begun(EMPTY, Chosen(NEW, OLD), FINE, (ONE,), ours=OLD, now=1.0)
    assert tuning.change is not None
    assert tuning.change.name == "settings"
    edit = msgspec.structs.replace(written("judged"), name="edit")
    fails = DnsMeasured(queries=1000, failures=900)
    assert of(edit, seen(READ_ONE, READ_TWO, measured=fails), 10) is None
    assert of(edit, seen(READ_ONE, READ_TWO, measured=fails), JUDGED_SECONDS) is Sign.GOOD
    refusing = seen(DnsServerText("one", "v9", 1), READ_TWO, measured=fails)
    assert of(edit, refusing, 10) is Sign.REFUSED


def test_what_failed_before_is_not_the_texts_fault() -> None:
    bad = DnsMeasured(queries=1000, failures=900, p99_ms=2000)
    assert judge(bad, bad, early=False) is None
    assert judge(DnsMeasured(), bad, early=False) is not None


def test_a_text_that_was_taken_back_comes_off_and_does_not_come_again() -> None:
    back = written("taken-back")
    off = held(Chosen(NEW, NEW), back)
    assert (off.text, off.of) == (OLD, NEW)
    assert off.by_hand is not None
    assert off.by_hand.reason == "CorefileTakenBack"
    again = held(Chosen(NEW, OLD), back)
    assert (again.text, again.of) == (OLD, OLD)
    assert held(Chosen(OTHER, OLD), back) == Chosen(OTHER, OLD), "another text has its own chance"


@pytest.mark.parametrize("state", ["applied", "judged"])
def test_a_text_that_is_judged_stays_as_it_is(state: ChangeState) -> None:
    assert held(Chosen(OTHER, NEW), written(state)) == Chosen(NEW, NEW)
    assert held(Chosen(NEW, OLD), written(state)) == Chosen(NEW, OLD), "not written yet"
    assert held(Chosen(OTHER, OLD), None) == Chosen(OTHER, OLD)
    assert held(Chosen(NEW, None), written(state)) == Chosen(NEW, None)


def test_a_proposal_goes_its_way_and_back() -> None:
    tuning = proposed(EMPTY, PREFETCH, now=1.0)
    assert tuning.settings == (("capacity", "20000"), ("prefetch", "1"))
    assert is_under_way(tuning.change)
    tuning = begun(tuning, Chosen(NEW, OLD), FINE, (ONE, TWO), now=2.0)
    change = tuning.change
    assert change is not None
    assert (change.name, change.state, change.before, change.after) == (
        "cache-prefetch",
        "applied",
        OLD,
        digest_of(NEW),
    )
    assert (change.measured, change.servers, change.since) == (FINE, (ONE, TWO), 2.0)
    assert begun(tuning, Chosen(NEW, OLD), DnsMeasured(), (), now=3.0) is tuning, "begun once"
    assert begun(tuning, Chosen(NEW, NEW), DnsMeasured(), (), now=3.0) is tuning
    tuning = step(tuning, Sign.REFUSED, "a server refused it", now=4.0)
    assert tuning.settings == EMPTY.settings
    assert begun(tuning, held(Chosen(OTHER, NEW), tuning.change), FINE, (), now=5.0) is tuning, "the way back is none"
    assert refused(tuning, now=4.0 + REFUSED_SECONDS - 1) == {"cache-prefetch"}
    assert refused(tuning, now=4.0 + REFUSED_SECONDS) == frozenset()


def test_a_proposal_that_changes_nothing_ends_and_what_was_applied_can_be_taken_out() -> None:
    tuning = begun(proposed(EMPTY, PREFETCH, now=1.0), Chosen(OLD, OLD), FINE, (), now=2.0)
    assert tuning.change is not None
    assert tuning.change.state == "kept"
    without = removed(tuning, "cache-prefetch", ("prefetch",), now=3.0)
    assert without.settings == EMPTY.settings
    assert without.change is not None
    assert without.change.settings_before == tuning.settings


def test_a_persons_edit_overtakes_what_is_judged() -> None:
    tuning = begun(EMPTY, Chosen(NEW, OLD), FINE, (ONE,), now=1.0)
    assert tuning.change is not None
    assert tuning.change.name == "edit"
    tuning = begun(tuning, Chosen("newer", OTHER), FINE, (ONE,), now=2.0)
    assert [one.state for one in tuning.past] == ["overtaken"]
    assert tuning.change is not None
    assert (tuning.change.before, tuning.change.state) == (OTHER, "applied")
    assert begun(EMPTY, Chosen(NEW, None), FINE, (), now=1.0) is EMPTY, "there is no way back to no text"
