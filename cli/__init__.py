"""`airmesh`: an observer of the mesh that speaks only NATS (and starts the lab).

It changes nothing: the bus grants its user reading, asking and listening. Each command gathers what it needs within one
deadline, makes a *report* of it (pure, `cli.reports`: a frozen value whose fields are what `--output json` prints),
and shows the report as tables for a person. Exit codes: see `cli.faults`.
"""

import sys

if "aiohttp" not in sys.modules:
    # nats-py takes it for websockets if it is there. No command speaks those, and it was half of a command's start.
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        import nats.aio.client  # noqa: F401
    finally:
        del sys.modules["aiohttp"]
