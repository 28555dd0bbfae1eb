"""Settings, secrets, logs and traces: the parts of the chassis that need nobody else."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Literal

import pytest

from chassis.faults import SettingsFault
from chassis.runtime.settings import BaseSettings, load
from chassis.secret import Secret
from chassis.telemetry.log import Log, bridge_libraries
from chassis.telemetry.spans import current_traceparent
from chassis.telemetry.traces import Telemetry
from proto.net import Network
from tests.natsd import Lines

TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    node: str
    count: int = 3
    ratio: float = 0.5
    fast: bool = False
    uplinks: tuple[str, ...] = ()
    ports: tuple[int, ...] = (1,)
    mode: Literal["a", "b"] = "a"
    gateway: IPv4Address | IPv6Address | None = None
    token: Secret | None = None
    state_dir: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WithNetworks(BaseSettings):
    pools: tuple[Network, ...] = ()


BASE = {"AIRMESH_NODE": "n1", "AIRMESH_NATS_SEED_FILE": "/x", "AIRMESH_NATS_USER": "dns"}


def read(**values: str) -> Settings:
    return load(Settings, BASE | {f"AIRMESH_{key.upper()}": value for key, value in values.items()})


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("count", "7", 7), ("ratio", "1e-3", 0.001), ("fast", "Yes", True), ("fast", "0", False),
        ("uplinks", "fab0, eth1,", ("fab0", "eth1")), ("uplinks", "", ()), ("ports", "1,2", (1, 2)),
        ("mode", "b", "b"), ("gateway", "fd00::1", ip_address("fd00::1")), ("gateway", "", None),
        ("state_dir", "/var/lib/x", Path("/var/lib/x")), ("token", "hush", Secret("hush")),
    ],
)  # fmt: skip
def test_values(variable: str, text: str, value: object) -> None:
    assert getattr(read(**{variable: text}), variable) == value


@pytest.mark.parametrize(
    ("variable", "text", "remedy"),
    [
        ("count", "many", "AIRMESH_COUNT = 'many' cannot be used: use a whole number"),
        ("fast", "maybe", "use true or false"),
        ("ports", "1,x", "AIRMESH_PORTS = 'x' cannot be used: use a whole number"),
        ("mode", "c", "use one of a, b"),
        ("gateway", "10.0.0", "use an IP address"),
        ("count", "9" * 5000, "within 4096 characters"),
    ],
)
def test_faults_name_variable_value_and_remedy(variable: str, text: str, remedy: str) -> None:
    with pytest.raises(SettingsFault) as fault:
        read(**{variable: text})
    assert remedy in str(fault.value)
    assert len(str(fault.value)) < 300


def test_what_must_be_set_is_named() -> None:
    with pytest.raises(SettingsFault, match="AIRMESH_NODE is not set: set it to text"):
        load(Settings, {key: value for key, value in BASE.items() if key != "AIRMESH_NODE"})


def test_networks_of_either_family() -> None:
    found = load(WithNetworks, BASE | {"AIRMESH_POOLS": "10.0.0.0/8,fd00::/8"})
    assert found.pools == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret("hush")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>10}", repr(read(token="hush"))):
        assert "hush" not in shown
    assert secret.reveal() == "hush"
    assert secret == Secret("hush") != Secret("other")
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_log_lines() -> None:
    lines = Lines()
    log = Log("ipam", "info", stream=lines)  # type: ignore[arg-type]
    log.debug("unheard")
    log.bind(node="n1").info("block-granted", block=ip_network("10.244.0.0/26"), count=3, secret=Secret("hush"))
    log.error("failed", error=ValueError("x" * 5000), many=range(1000), nested={"a": [Secret("hush")]})
    first, second = lines.events()
    assert first | {"time": ""} == {
        "time": "", "level": "info", "service": "ipam", "event": "block-granted",
        "node": "n1", "block": "10.244.0.0/26", "count": 3, "secret": "***",
    }  # fmt: skip
    assert len(second["error"]) < 2100
    assert "hush" not in lines.text


def test_a_library_that_repeats_itself_is_heard_once_a_minute() -> None:
    lines = Lines()
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    try:
        bridge_libraries(Log("ipam", stream=lines))  # type: ignore[arg-type]
        for number in range(50):
            logging.getLogger("a.library").warning("cannot reach %s, attempt %d", "x", number)
        logging.getLogger("a.library").error("another")
        logging.getLogger("a.library").info("unheard")
        bridge = root.handlers[0]
        record = logging.makeLogRecord(
            {"name": "a.library", "msg": "cannot reach %s, attempt %d", "args": ("x", 50), "levelno": 30}
        )
        record.created += 61
        bridge.handle(record)
    finally:
        root.handlers[:], root.level = before
    heard = [(line["level"], line["message"], line.get("repeated")) for line in lines.named("library")]
    assert heard == [
        ("warning", "cannot reach x, attempt 0", None),
        ("error", "another", None),
        ("warning", "cannot reach x, attempt 50", 49),
    ]


async def test_spans_nest_and_travel() -> None:
    telemetry, lines = Telemetry("ipam", "a", {}), Lines()
    log = Log("ipam", stream=lines)  # type: ignore[arg-type]
    assert current_traceparent() == ""
    with telemetry.span("outer") as outer:
        log.info("within")
        with telemetry.span("inner") as inner:
            assert inner.trace_id == outer.trace_id
            assert inner.span_id != outer.span_id
        assert await asyncio.create_task(_current()) == outer.traceparent
        with telemetry.span("elsewhere", "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01") as other:
            assert other.trace_id == "ab" * 16
    assert lines.events()[0]["trace_id"] == outer.trace_id
    assert TRACEPARENT.fullmatch(outer.traceparent)


async def _current() -> str:
    return current_traceparent()


@pytest.mark.parametrize("text", ["", "x", "00-" + "0" * 32 + "-" + "cd" * 8 + "-01", "01-" + "ab" * 16])
def test_a_parent_that_is_none_begins_a_new_trace(text: str) -> None:
    with Telemetry("a", "b", {}).span("x", text) as span:
        assert TRACEPARENT.fullmatch(span.traceparent)
        assert span.traceparent[3:35] not in text
