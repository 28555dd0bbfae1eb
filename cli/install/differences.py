"""What an apply would change, as a unified diff: an object as it is and as the API server says that it would be. Pure.

What only the server writes (status, versions, times, who owns which field) is no difference. Of a Secret only which
keys it has is shown, with a mark where a value would be another.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import yaml

from cli.install.kinds import Object, ref
from cli.install.names import digest

_SERVERS = ("managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink")


def comparable(found: Object) -> Object:
    """Without what only the server writes."""
    kept = {key: value for key, value in found.items() if key != "status"}
    kept["metadata"] = {key: value for key, value in found["metadata"].items() if key not in _SERVERS}
    if kept.get("kind") == "Secret":
        kept["data"] = {key: f"(secret {digest(str(value))})" for key, value in (found.get("data") or {}).items()}
    return kept


def difference(before: Object | None, after: Object | None) -> Iterator[str]:
    """Lines of a unified diff; none where nothing would change. ``None``: it is not there."""
    shown = after or before
    if shown is None:
        return
    title = str(ref(shown))
    old, new = (_lines(one) for one in (before, after))
    yield from difflib.unified_diff(old, new, f"{title} (now)", f"{title} (then)", lineterm="", n=2)


def _lines(found: Object | None) -> list[str]:
    if found is None:
        return []
    text: Any = yaml.safe_dump(comparable(found), sort_keys=True, width=10_000)
    return list(str(text).splitlines())
