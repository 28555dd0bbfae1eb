"""A few calls to a lab's API server through its loopback port, for waiting: cheaper than a `kubectl` each time.

Promises a deadline on every call and `None` while the server is not there yet. Reads only; changes go through
`kubectl`.
"""

import asyncio
import http.client
import json
import ssl
import urllib.request
from typing import Any

from lab.paths import Paths

_SECONDS = 5.0


class Api:
    """Calls as the administrator."""

    def __init__(self, where: Paths, port: int) -> None:
        self._base = f"https://127.0.0.1:{port}"
        self._tls = ssl.create_default_context(cafile=str(where.pki / "ca.crt"))
        self._tls.load_cert_chain(where.pki / "admin.crt", where.pki / "admin.key")

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(self._base + path, timeout=_SECONDS, context=self._tls) as answer:
                return bytes(answer.read())
        except (OSError, http.client.HTTPException):  # URLError and HTTPError are OSErrors
            return None

    async def text(self, path: str) -> bytes | None:
        """The body of a successful answer, else None."""
        return await asyncio.to_thread(self._get, path)

    async def ready(self) -> bool:
        """Whether the server calls itself ready."""
        return (await self.text("/readyz")) == b"ok"

    async def items(self, path: str) -> list[dict[str, Any]]:
        """The items of a list; none while it cannot be had."""
        body = await self.text(path)
        return list(json.loads(body).get("items", [])) if body else []


def has_condition(item: dict[str, Any], kind: str) -> bool:
    """Whether an object's status says that condition `kind` is true."""
    conditions = item.get("status", {}).get("conditions", [])
    return any(c.get("type") == kind and c.get("status") == "True" for c in conditions)
