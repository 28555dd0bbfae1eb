"""What is printed here is printed to no terminal."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """GNU readline, which some test may import, tells a width to the whole process."""
    monkeypatch.delenv("COLUMNS", raising=False)
