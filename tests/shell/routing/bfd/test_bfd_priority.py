"""Whether the process that runs BFD is run before others, by what it took of a CPU."""

from __future__ import annotations

import pytest

from services.routing.bfd import priority
from services.routing.bfd.priority import WINDOW_US, Priority, is_first


@pytest.mark.parametrize(
    ("share", "first", "after"),
    [
        (0.0, True, True),
        (0.5, True, True),
        (0.51, True, False),
        (0.5, False, False),
        (0.26, False, False),
        (0.25, False, True),
    ],
)
def test_who_takes_much_is_an_ordinary_process_until_it_takes_little(share: float, first: bool, after: bool) -> None:
    assert is_first(share, first=first) is after


def test_it_is_judged_once_a_second_and_asked_for_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(priority, "_ask", lambda *, first: asked.append(first))
    now = used = 0
    looking = Priority(lambda: now, lambda: used)
    for share in (0.1, 0.9, 0.9, 0.3, 0.1, 0.1):
        used += int(share * WINDOW_US)
        now += WINDOW_US - 1
        looking.look()
        now += 1
        looking.look()
    assert asked == [True, False, True]
