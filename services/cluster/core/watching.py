"""The list/watch contract of the API server: what each answer means for the one who mirrors it.

Resource versions are opaque, only a bookmark, an event or a list gives one. 410 comes in three disguises (a status, an
ERROR event inside a 200, an expired ``continue``) and always means the same: list again, and let the difference tell
what was deleted meanwhile. Anything else is tried again from where it stood, after a wait.

Source: k8s.io/client-go tools/cache/reflector.go; kubernetes.io/docs/reference/using-api/api-concepts. Units: seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import msgspec

FIRST_WAIT = 0.8
LONGEST_WAIT = 30.0
HEALTHY_AFTER = 120.0
"""A watch that lasted this long has forgotten earlier failures."""


class StatusDetails(msgspec.Struct, rename="camel"):
    """meta/v1 StatusDetails."""

    retry_after_seconds: int | None = None


class Status(msgspec.Struct, rename="camel"):
    """meta/v1 Status: the body of a refusal and the object of an ERROR event."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: StatusDetails | None = None


class WatchEvent(msgspec.Struct):
    """One line of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class ListMetadata(msgspec.Struct):
    """meta/v1 ListMeta."""

    resource_version: str = msgspec.field(name="resourceVersion", default="")
    more: str = msgspec.field(name="continue", default="")


class Page(msgspec.Struct):
    """One page of a list."""

    metadata: ListMetadata
    items: list[msgspec.Raw] | None = None


class _Version(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")


class _Versioned(msgspec.Struct):
    metadata: _Version = msgspec.field(default_factory=_Version)


def version_of(raw: bytes | msgspec.Raw) -> str:
    """The resource version an event stands for; empty when it has none. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(raw, type=_Versioned).metadata.resource_version


def is_expired(code: int | None, reason: str | None) -> bool:
    """True when the server no longer knows the version that was asked for."""
    return code == 410 or reason in ("Expired", "Gone")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often it went wrong in a row."""

    failures: int = 0
    since: float = 0.0
    """When the present attempt began, on a monotonic clock."""

    def began(self, now: float) -> Patience:
        """A new attempt begins."""
        return replace(self, since=now)

    def failed(self, now: float) -> Patience:
        """The attempt ended badly; a long healthy one before that is a fresh start."""
        if now - self.since >= HEALTHY_AFTER:
            return Patience(1, now)
        return Patience(self.failures + 1, now)

    def succeeded(self) -> Patience:
        """It went well."""
        return replace(self, failures=0)
