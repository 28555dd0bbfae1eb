"""An agent's answer to NATS micro STATS (ADR-32), parsed once.

The chassis registers every service, with its instance and health among the metadata and the endpoints' data. Which
service of which node it is, its key says, not its answer.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from cli.reports.agents import Agent
from proto.codec import decode_segment
from proto.subjects import role_of_user


class _Endpoint(msgspec.Struct, frozen=True):
    name: str = ""
    num_requests: int = 0
    num_errors: int = 0
    processing_time: int = 0
    """Nanoseconds in all."""
    data: Any = None


class _Stats(msgspec.Struct, frozen=True):
    id: str = ""
    version: str = ""
    started: str = ""
    metadata: dict[str, str] | None = None
    endpoints: list[_Endpoint] | None = None


def agent(user: str, answer: bytes, now: datetime) -> Agent | None:
    """The agent that gave this answer with the key of ``user``; None for what cannot be read.

    Health is told in an endpoint's data (`ready`, `missing`, `rss_bytes`, `loop_hold_us`, `loop_held_by`), by services
    without endpoints in the metadata (the same as text, `why` for `missing`).
    """
    try:
        reported = msgspec.json.decode(answer, type=_Stats)
        role, node = role_of_user(user)
    except (ValueError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    metadata = reported.metadata or {}
    if "instance" not in metadata:
        return None
    endpoints = reported.endpoints or []
    health: dict[str, Any] = {}
    for endpoint in endpoints:
        if isinstance(endpoint.data, dict):
            health.update(endpoint.data)
    requests = sum(endpoint.num_requests for endpoint in endpoints)
    return Agent(
        service=role.name,
        node=decode_segment(node) if node else "",
        instance=metadata["instance"],
        version=reported.version,
        ready=_ready(health.get("ready", metadata.get("ready"))),
        why=_why(health.get("missing"), metadata.get("why", "")),
        notes=_notes(health.get("notes"), metadata.get("notes", "")),
        uptime_seconds=_uptime(reported.started, now),
        rss_bytes=_count(health.get("rss_bytes", metadata.get("rss_bytes", 0))),
        longest_hold_ms=_count(health.get("loop_hold_us", metadata.get("loop_hold_us", 0))) / 1000,
        longest_hold_by=str(health.get("loop_held_by", metadata.get("loop_held_by", ""))),
        requests=requests,
        errors=sum(endpoint.num_errors for endpoint in endpoints),
        mean_ms=sum(endpoint.processing_time for endpoint in endpoints) / requests / 1e6 if requests else 0.0,
    )


def _ready(reported: object) -> bool | None:
    return reported if isinstance(reported, bool) else {"true": True, "false": False}.get(str(reported))


def _why(missing: object, otherwise: str) -> str:
    if isinstance(missing, dict):
        return "; ".join(f"{name}: {why}" for name, why in missing.items())
    return otherwise


def _notes(reported: object, otherwise: str) -> str:
    return "; ".join(map(str, reported.values())) if isinstance(reported, dict) else otherwise


def _count(reported: object) -> int:
    text = str(reported)
    return int(text) if text.isascii() and text.isdigit() else 0


def _uptime(started: str, now: datetime) -> float:
    try:
        begun = datetime.fromisoformat(started.replace("Z", "+00:00"))
    except ValueError:
        return 0.0
    return max(0.0, (now - (begun if begun.tzinfo else begun.replace(tzinfo=UTC))).total_seconds())
