"""No message of a peer raises what nobody expects, and each has the outcome that RFC 7606 gives it."""

from __future__ import annotations

import os

import pytest

from tests.drills.bgp_fuzz import Tally, fuzz

OUTCOMES = {
    "right",
    "left out",
    "withdrawn",
    *(f"notification 3/{subcode}" for subcode in (2, 4, 5, 6, 8, 9, 10, 11)),
    *(f"spoilt {kind}" for kind in ("OPEN", "UPDATE", "NOTIFICATION", "KEEPALIVE", "ROUTE_REFRESH")),
    *(
        f"spoilt notification {pair}"
        for pair in ("1/1", "1/2", "1/3", "2/0", "2/1", "2/2", "2/4", "3/1", "3/2", "3/10")
    ),
}
"""Each has to come up, or the messages are not those that they should be."""


def check(tally: Tally) -> None:
    for outcome, count in sorted(tally.outcomes.items()):
        print(f"{count:8}  {outcome}")
    assert OUTCOMES - tally.outcomes.keys() == set()


@pytest.mark.timeout(600)
def test_fifty_thousand_messages() -> None:
    check(fuzz(50_000, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_messages() -> None:
    """``BGP_FUZZ_SEED`` and ``BGP_FUZZ_MESSAGES`` choose others, or more."""
    check(fuzz(int(os.environ.get("BGP_FUZZ_MESSAGES", "1000000")), seed=int(os.environ.get("BGP_FUZZ_SEED", "2"))))
