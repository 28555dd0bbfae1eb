"""Which identities may live on a node: what the pods say, and how long one stays that has just left."""

from __future__ import annotations

import random

import pytest

from proto.objects import Pod
from services.policy.core.residents import Book

GRACE = 60.0


class Town:
    """Pods with their identities, and a book that follows them."""

    def __init__(self) -> None:
        self.book = Book()
        self.pods: dict[str, Pod] = {}
        self.identities: dict[str, frozenset[int]] = {}

    def put(self, key: str, node: str, *identities: int) -> None:
        self.pods[key] = Pod("x", key, f"uid-{key}", node)
        self.identities[key] = frozenset(identities)
        self._follow(key)

    def drop(self, key: str) -> None:
        del self.pods[key], self.identities[key]
        self._follow(key)

    def _follow(self, key: str) -> None:
        self.book.follow([key], self.pods, lambda key: self.identities.get(key, frozenset()))


def test_what_changes_is_noted_by_node() -> None:
    town = Town()
    town.put("a", "n1", 300)
    town.put("b", "n1", 300, 301)
    town.put("c", "n2", 400)
    assert town.book.changed == {"n1", "n2"}
    assert sorted(town.book.nodes) == ["n1", "n2"]
    assert town.book.wanted("n1", (), 0.0, GRACE) == (300, 301)
    town.drop("a")
    assert town.book.wanted("n1", (300, 301), 0.0, GRACE) == (300, 301), "b has it too"
    town.put("c", "n1", 400)  # a StatefulSet's pod under its old name
    assert list(town.book.nodes) == ["n1"]
    assert town.book.wanted("n2", (), 0.0, GRACE) == ()


@pytest.mark.parametrize(("after", "kept"), [(0.0, True), (59.0, True), (60.0, False)])
def test_who_has_left_stays_for_the_grace(after: float, kept: bool) -> None:
    town = Town()
    town.put("a", "n1", 300)
    town.put("a", "n1", 301)
    assert town.book.wanted("n1", (300,), 10.0, GRACE) == (300, 301)
    town.book.changed.clear()
    assert town.book.expiring(10.0 + 20.0, GRACE) == 40.0
    assert town.book.wanted("n1", (300, 301), 10.0 + after, GRACE) == ((300, 301) if kept else (301,))
    if not kept:
        town.book.changed.clear()
        assert town.book.wanted("n1", (301,), 80.0, GRACE) == (301,)
        assert town.book.expiring(80.0, GRACE) is None


def test_the_node_whose_grace_is_over_is_looked_at() -> None:
    town = Town()
    town.book.wanted("n9", (300,), 0.0, GRACE)  # published by another copy, of a node that has no pod any more
    assert town.book.expiring(61.0, GRACE) is None
    assert town.book.changed == {"n9"}
    assert town.book.wanted("n9", (300,), 61.0, GRACE) == ()


def test_who_comes_back_in_time_begins_again() -> None:
    town = Town()
    town.put("a", "n1", 300)
    town.drop("a")
    assert town.book.wanted("n1", (300,), 0.0, GRACE) == (300,)
    town.put("a", "n1", 300)
    assert town.book.wanted("n1", (300,), 50.0, GRACE) == (300,)
    town.drop("a")
    assert town.book.wanted("n1", (300,), 70.0, GRACE) == (300,)


@pytest.mark.parametrize("seed", range(20))
def test_the_book_is_a_function_of_the_pods(seed: int) -> None:
    chance, town = random.Random(seed), Town()
    for _ in range(300):
        key = f"p{chance.randrange(20)}"
        if key in town.pods and chance.random() < 0.4:
            town.drop(key)
        else:
            some = chance.sample(range(300, 306), chance.randrange(3))
            town.put(key, chance.choice(("n1", "n2", "n3")), *some)
    fresh = Town()
    for key, pod in town.pods.items():
        fresh.put(key, pod.node, *town.identities[key])
    for node in ("n1", "n2", "n3"):
        assert town.book.wanted(node, (), 0.0, GRACE) == fresh.book.wanted(node, (), 0.0, GRACE)
