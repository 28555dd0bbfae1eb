"""The engine that runs the images, and the images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from deploy.images.engine import Engine
from tests.ship.images import Built, Lacking, engine_of_tests, find_or_build


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Podman, or the tests are left out."""
    try:
        return engine_of_tests()
    except Lacking as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="session")
def built(engine: Engine) -> Callable[[str], Built]:
    """An image of this tree by its service; who asks for one that cannot be had is left out."""

    @cache
    def found(service: str) -> Built | Lacking:
        try:
            return find_or_build(engine, service)
        except Lacking as lacking:
            return lacking

    def having(service: str) -> Built:
        one = found(service)
        if isinstance(one, Lacking):
            pytest.skip(str(one))
        return one

    return having
