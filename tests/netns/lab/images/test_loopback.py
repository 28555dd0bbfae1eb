"""The CNI plugin that brings `lo` up, as containerd calls it."""

import asyncio
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import namespaces
from lab.images import build
from lab.paths import settings

pytestmark = pytest.mark.privileged


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace of this test."""
    name = f"am-lo{uuid.uuid4().hex[:6]}"
    namespaces.run(["ip", "netns", "add", name])
    yield name
    namespaces.remove([name])


@pytest.fixture
def plugin() -> Path:
    """The built program."""
    return asyncio.run(build.build_all((build.LOOPBACK,), settings().cache, print))["loopback"]


def _call(plugin: Path, stdin: str = '{"cniVersion": "1.0.0"}', **environment: str) -> tuple[int, Any]:
    done = subprocess.run(
        [plugin], input=stdin, env=environment, capture_output=True, text=True, timeout=10, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def test_add_brings_it_up_and_check_sees_it(plugin: Path, netns: str) -> None:
    path = f"/run/netns/{netns}"
    assert _call(plugin, CNI_COMMAND="CHECK", CNI_NETNS=path)[0] == 1
    code, result = _call(plugin, CNI_COMMAND="ADD", CNI_NETNS=path)
    assert code == 0
    assert [ip["address"] for ip in result["ips"]] == ["127.0.0.1/8", "::1/128"]
    assert _call(plugin, CNI_COMMAND="CHECK", CNI_NETNS=path) == (0, None)
    shown = namespaces.run(["ip", "-n", netns, "-o", "addr", "show", "lo"])
    assert "127.0.0.1/8" in shown
    assert "::1/128" in shown
    assert _call(plugin, CNI_COMMAND="DEL", CNI_NETNS=path) == (0, None)


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0", "1.1.0"])
def test_it_answers_in_the_callers_version(plugin: Path, netns: str, version: str) -> None:
    given = json.dumps({"cniVersion": version, "name": "lo"})
    _, result = _call(plugin, given, CNI_COMMAND="ADD", CNI_NETNS=f"/run/netns/{netns}")
    assert result["cniVersion"] == version
    assert ("version" in result["ips"][0]) == version.startswith("0")


@pytest.mark.parametrize(
    ("environment", "stdin"),
    [
        ({}, "{}"),
        ({"CNI_COMMAND": "ADD"}, "{}"),
        ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/nowhere"}, "{}"),
        ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/etc/passwd"}, "x" * 100_000),
    ],
)
def test_what_it_cannot_do_is_a_cni_error(plugin: Path, environment: dict[str, str], stdin: str) -> None:
    code, error = _call(plugin, stdin, **environment)
    assert code == 1
    assert error["code"] == 4
    assert error["msg"]
