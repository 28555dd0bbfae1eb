"""When a user has taken its key, by the keys that are connected to its account."""

from __future__ import annotations

import pytest

from services.cluster.accounts import Expected, missing

CASES = [
    (True, set[str](), "no agent is connected"),
    (False, set[str](), ""),
    (True, {"new"}, ""),
    (False, {"new"}, ""),
    (True, {"old"}, "by another key"),
    (False, {"old"}, "by another key"),
    (True, {"old", "new"}, "by another key"),
    (False, {"old", "new"}, "by another key"),
]


@pytest.mark.parametrize(("runs", "keys", "why"), CASES)
def test_a_key_is_taken_when_it_alone_is_connected(runs: bool, keys: set[str], why: str) -> None:
    said = missing(Expected(account="A", public="new", runs=runs), keys)
    assert why in said
    assert bool(said) == bool(why)
