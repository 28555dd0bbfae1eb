"""This node with its BFD, a switch with BIRD, and the link between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.netns.routing.bfd.ends import Agent, Bird, Wire
from tests.netns.routing.conftest import Netns


@pytest_asyncio.fixture
async def agent(nodes: tuple[Netns, Netns], tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(nodes[0], tmp_path / "bfd")
    yield made
    await made.kill()
    made.end()


@pytest.fixture
def bird(nodes: tuple[Netns, Netns], tmp_path: Path) -> Iterator[Bird]:
    made = Bird(nodes[1], tmp_path / "bird")
    made.write()
    yield made
    made.kill()


@pytest.fixture
def wire(nodes: tuple[Netns, Netns]) -> Iterator[Wire]:
    made = Wire(nodes[1])
    yield made
    made.close()
