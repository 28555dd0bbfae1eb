from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.dataplane.mesh import Mesh, mesh


def _missing() -> str:
    if os.geteuid() != 0:
        return "it needs root (network namespaces, bpf(2))"
    return "" if os.path.exists("/sys/fs/cgroup/unified") else "it needs cgroup2 at /sys/fs/cgroup/unified"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A node with everything running; one for each module of tests."""
    why = _missing()
    if why:
        pytest.skip(why)
    with mesh(tmp_path_factory.mktemp("mesh"), "dp") as world:
        yield world
