"""The adapter of asyncio: every private part of it that we read, and why; no other module reaches one (a house test).

Checked with Python 3.11. An update of Python is to be read against this page.
"""

from __future__ import annotations

import asyncio


def unread(reader: object) -> bytes:
    """What a stream has received and nobody has read; empty for what is no stream.

    ``StreamReader.read`` raises the connection's error before it gives out what came earlier.
    """
    return bytes(reader._buffer) if isinstance(reader, asyncio.StreamReader) else b""  # type: ignore[attr-defined]
