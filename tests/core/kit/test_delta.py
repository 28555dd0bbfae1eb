"""Delta: routes as ``ip route`` lines, then any two mappings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.delta import delta

mappings = st.dictionaries(st.integers(0, 20), st.integers(0, 3))


def routes(text: str) -> dict[str, str]:
    lines = [line.split(" via ") for line in text.strip().splitlines()]
    return {prefix.strip(): via.strip() for prefix, via in lines}


@pytest.mark.parametrize(
    ("desired", "actual", "upserts", "deletes"),
    [
        ("", "", {}, {}),
        ("10.244.1.0/26 via .12", "", {"10.244.1.0/26": ".12"}, {}),
        ("", "10.244.1.0/26 via .12", {}, {"10.244.1.0/26": ".12"}),
        ("10.244.1.0/26 via .13", "10.244.1.0/26 via .12", {"10.244.1.0/26": ".13"}, {}),
        ("10.244.1.0/26 via .12", "10.244.1.0/26 via .12", {}, {}),
    ],
)
def test_routes(desired: str, actual: str, upserts: dict[str, str], deletes: dict[str, str]) -> None:
    change = delta(routes(desired), routes(actual))
    assert (change.upserts, change.deletes) == (upserts, deletes)
    assert change.empty == (not upserts and not deletes)


@given(mappings, mappings)
def test_applying_it_gives_what_was_wanted(desired: dict[int, int], actual: dict[int, int]) -> None:
    change = delta(desired, actual)
    applied = {key: value for key, value in actual.items() if key not in change.deletes} | dict(change.upserts)
    assert applied == desired
    assert change.unchanged == {key for key in desired if actual.get(key) == desired[key]}
    assert delta(desired, applied).empty


@given(mappings, mappings)
def test_sameness_is_an_argument(desired: dict[int, int], actual: dict[int, int]) -> None:
    change = delta(desired, actual, same=lambda _wanted, _there: True)
    assert set(change.upserts) == set(desired) - set(actual)
