"""A network namespace of the test's own, as a path and with its programs."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


class Namespace:
    """A network namespace of this test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"

    def ip(self, command: str) -> str:
        words = ["ip", "-n", self.name, *command.split()]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout

    def tc(self, command: str) -> str:
        words = ["tc", "-n", self.name, *command.split()]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout


@pytest.fixture
def netns() -> Iterator[Namespace]:
    space = Namespace(f"am-l{uuid.uuid4().hex[:8]}")
    subprocess.run(["ip", "netns", "add", space.name], check=True, timeout=20)
    try:
        assert Path(space.path).exists()
        yield space
    finally:
        subprocess.run(["ip", "netns", "del", space.name], check=False, timeout=20)
