"""When the keys of a node that is gone may be deleted: what is seen at which second."""

from __future__ import annotations

import pytest

from services.cluster.core.departed import Quiet, Written, departed, writer_of

GRACE = 100.0
KEYS: set[Written] = {("acks", "n1", 5), ("endpoints", "n1.0af40001", 7)}
TOUCHED: set[Written] = {("acks", "n1", 9), ("endpoints", "n1.0af40001", 7)}


@pytest.mark.parametrize(
    ("looks", "deleted_at"),
    [
        ("0 99", None),
        ("0 100", 100),
        ("500", None),
        ("0 50:there 100 149 199:there", None),
        ("0 50:there 100 200", 200),
        ("0 50:holds 100 199", None),
        ("0 50:holds 100 200", 200),
        ("0 50:wrote 149:wrote", None),
        ("0 50:wrote 150:wrote", 150),
    ],
    ids=[
        "not-yet", "quiet", "never-at-first-sight", "came-back", "left-again", "has-a-block", "gave-it-back", "wrote",
        "silent",
    ],
)  # fmt: skip
def test_only_who_is_gone_and_silent_for_the_grace(looks: str, deleted_at: int | None) -> None:
    watched: dict[str, Quiet] = {}
    done = None
    for look in looks.split():
        second, _, what = look.partition(":")
        found = departed(
            {"n1": TOUCHED if what == "wrote" else KEYS, "n2": {("acks", "n2", 1)}},
            {"n1", "n2"} if what == "there" else {"n2"},
            {"n1"} if what == "holds" else set(),
            watched,
            now=float(second),
            grace=GRACE,
        )
        watched = dict(found.watched)
        assert "n2" not in found.delete
        if "n1" in found.delete:
            assert found.delete["n1"] in (KEYS, TOUCHED)
            done = int(second)
    assert done == deleted_at


@pytest.mark.parametrize(
    ("bucket", "key", "writer"),
    [
        ("acks", "n1", "n1"),
        ("endpoints", "n1.0af40001", "n1"),
        ("endpoints", "_complete.n=2E1", "n=2E1"),
        ("endpoints", "_epoch", ""),
        ("acks", "_complete", ""),
        ("leases", "node.n1", "n1"),
        ("leases", "policy.0", ""),
        ("leases", "cluster", ""),
        ("leases", "node", ""),
    ],
)
def test_whose_key_it_is(bucket: str, key: str, writer: str) -> None:
    assert writer_of(bucket, key) == writer
