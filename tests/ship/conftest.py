"""The engine that runs the images."""

from __future__ import annotations

import shutil

import pytest

from deploy.images.engine import Engine, find_engine
from tests.ship.containers import FRESH


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Podman: the tests give it flags of its own."""
    if shutil.which("podman") is None:
        pytest.skip(f"no podman: {FRESH}")
    return find_engine()
