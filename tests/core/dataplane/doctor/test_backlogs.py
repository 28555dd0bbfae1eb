"""A backlog that overflows: a queue that was full in two looks, and nothing of one that is full for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.netstat import counter
from services.dataplane.core.doctor.backlogs import BACKLOG_FULL, Backlogs, check


def queue(waiting: int, backlog: int = 5, overflows: int = 0) -> dict[str, Backlogs]:
    return {"shop/web": Backlogs(queues={8080: (waiting, backlog), 9000: (0, 5)}, overflows=overflows)}


@pytest.mark.parametrize(
    ("before", "now", "is_full"),
    [
        (queue(6), queue(6, overflows=3), True),
        (queue(6), queue(5), False),
        (queue(5), queue(6), False),
        (queue(5), queue(5), False),
        ({}, queue(6), False),
        (queue(6), {}, False),
    ],
)
def test_a_queue_is_full_in_two_looks(before: dict[str, Backlogs], now: dict[str, Backlogs], is_full: bool) -> None:
    found = list(check("n1", before, now, service="shop/web"))
    assert [one.code for one in found] == ([BACKLOG_FULL] if is_full else [])
    for one in found:
        assert one.affects == ("Service shop/web",)
        assert "port 8080: 6 connections wait, the backlog is 5" in one.observed[0].text
        assert "3 of them meanwhile" in one.observed[1].text


@pytest.mark.parametrize(
    ("text", "overflows"),
    [
        ("TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 42 43\nIpExt: A B\nIpExt: 5 6\n", 42),
        ("TcpExt: A\nTcpExt: 1\n", 0),
        ("", 0),
        ("TcpExt: ListenOverflows\n", 0),
    ],
)
def test_overflows_are_read_by_their_name(text: str, overflows: int) -> None:
    assert counter(text, "TcpExt", "ListenOverflows") == overflows


def test_it_has_a_page() -> None:
    assert (Path(__file__).parents[4] / "docs" / "faults" / f"{BACKLOG_FULL}.md").is_file()
