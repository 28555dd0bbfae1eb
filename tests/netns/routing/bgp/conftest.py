"""Namespaces, this project's speakers and other ones; all gone when a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.netns.routing.bgp.speakers import Bird, ExaBgp, Frr, Inside, Pair, two_namespaces


@pytest.fixture
def pair() -> Iterator[Pair]:
    with two_namespaces() as made:
        yield made


@pytest.fixture
def speaker(pair: Pair) -> Iterator[Callable[..., Inside]]:
    """Makes this project's speaker."""
    with ExitStack() as stack:

        def make(**more: Any) -> Inside:
            made = Inside(pair.ours, **more)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def bird(pair: Pair, tmp_path: Path) -> Iterator[Bird]:
    made = Bird(pair, tmp_path)
    yield made
    made.kill()


@pytest.fixture
def exabgp(pair: Pair, tmp_path: Path) -> Iterator[ExaBgp]:
    made = ExaBgp(pair, tmp_path)
    yield made
    made.kill()


@pytest.fixture
def frr(pair: Pair, tmp_path: Path) -> Iterator[Frr]:
    made = Frr(pair, tmp_path)
    yield made
    made.kill()
