"""Fixtures of the cluster service: an API server that can be hurt."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.shell.cluster.apiserver import ApiServer


@pytest_asyncio.fixture
async def api() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start()
    yield server
    server.silent = False
    await server.stop()
