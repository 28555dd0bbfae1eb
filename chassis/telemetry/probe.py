"""``python -m chassis.telemetry.probe readyz``: asks the service of this container how it is, for a health check.

An image has no shell and no curl. Exit code 0: the page at AIRMESH_HEALTH_PORT answered 200; else 1, with what it said.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException

PAGES = ("livez", "readyz")
DEADLINE = 3.0
"""Seconds for the answer."""
MOST = 4096
"""Bytes of an answer that are shown."""


def ask(port: int, page: str) -> tuple[bool, str]:
    """Whether the page of that loopback port is well, and what it says."""
    link = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        link.request("GET", f"/{page}")
        answer = link.getresponse()
        return answer.status == 200, answer.read(MOST).decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        return False, f"no answer from 127.0.0.1:{port}: {error}"
    finally:
        link.close()


def main(arguments: list[str], environ: dict[str, str]) -> int:
    """The exit code."""
    page = arguments[0] if len(arguments) == 1 else ""
    port = environ.get("AIRMESH_HEALTH_PORT", "")
    if page not in PAGES:
        print(f"probe: {arguments}: name one page, {' or '.join(PAGES)}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    if not port.isdecimal() or not 0 < int(port) < 65536:
        print(f"probe: AIRMESH_HEALTH_PORT={port!r}: set a port that is fixed", file=sys.stderr)  # noqa: T201
        return 1
    well, said = ask(int(port), page)
    print(said)  # noqa: T201 - what an engine keeps of a health check
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], dict(os.environ)))
