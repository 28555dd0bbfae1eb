"""The AsyncAPI document of the published events: ``python -m proto.asyncapi [file]`` writes docs/asyncapi.json.

Generated from ``proto.events.EVENTS_BY_SUBJECT``, so it cannot differ from the code; a test fails when the file in the
repository is stale. AsyncAPI 3.0 (https://www.asyncapi.com/docs/reference/specification/v3.0.0), schemas as JSON Schema
of the messages' fields; on the wire the bodies are MessagePack maps of the same fields.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from proto.codec import VERSION
from proto.events import EVENTS_BY_SUBJECT

_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "asyncapi.json"


def document() -> dict[str, Any]:
    """The whole document as plain values."""
    types = sorted(set(EVENTS_BY_SUBJECT.values()), key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(types, schema_hook=_schema, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "airmesh events",
            "version": f"{VERSION}.0.0",
            "description": "What the mesh tells its consumers. Lossy: an event that cannot be sent is dropped.",
        },
        "defaultContentType": "application/msgpack",
        "servers": {
            "bus": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "An nkey user whose role may listen to events.",
            }
        },
        "channels": {_name(subject): _channel(subject, kind) for subject, kind in sorted(EVENTS_BY_SUBJECT.items())},
        "operations": {
            f"hear-{_name(subject)}": {"action": "receive", "channel": {"$ref": f"#/channels/{_name(subject)}"}}
            for subject in sorted(EVENTS_BY_SUBJECT)
        },
        "components": {
            "messages": {kind.__name__: _message(kind) for kind in types},
            "schemas": dict(sorted(schemas.items())),
            "messageTraits": {"airmesh": {"headers": _HEADERS}},
        },
    }


_HEADERS: dict[str, Any] = {
    "type": "object",
    "required": ["Airmesh-Version"],
    "properties": {
        "Airmesh-Version": {"type": "string", "const": str(VERSION), "description": "Major version of the language."},
        "traceparent": {"type": "string", "description": "W3C trace context, where there is one."},
    },
}


def _name(subject: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", subject.replace("*", "node").lower()).strip("-")


def _channel(subject: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": subject.replace("*", "{node}"),
        "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"}},
    }
    if "*" in subject:
        channel["parameters"] = {"node": {"description": "Encoded node name (proto.codec.encode_segment)."}}
    return channel


def _message(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "name": kind.__name__,
        "summary": (kind.__doc__ or "").strip().splitlines()[0],
        "traits": [{"$ref": "#/components/messageTraits/airmesh"}],
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
    }


def _schema(kind: type) -> dict[str, Any]:
    if kind.__name__ == "Address":
        return {"type": "string", "description": "IPv4 or IPv6 address.", "examples": ["10.244.0.7", "fd00::7"]}
    if kind.__name__ == "Network":
        return {"type": "string", "description": "IPv4 or IPv6 network.", "examples": ["10.244.0.0/26"]}
    raise NotImplementedError(kind.__name__)


def render() -> str:
    """The document's text as it is committed."""
    return json.dumps(document(), indent=2, sort_keys=False, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else _DOCUMENT).write_text(render())
