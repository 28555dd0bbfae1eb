"""What containers of compose.yaml and its overlays run beside the programs: health checks and faults on demand.

``python3 drill.py VERB …``, with nothing but Python's own library, as it runs in images of ours and of others. A fault
is there while the file ``/drill/now`` is: so drills wait for what they see, not for a time.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

NOW = Path("/drill/now")
TICK_SECONDS = 0.2
ASK_SECONDS = 4.0


def hold() -> int:
    """Keeps a network namespace until it is told to end."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # else lost on the first process of a container
    print("holds the network namespace", flush=True)
    signal.sigwait(ends)
    return 0


def health(url: str) -> int:
    """Exit code 0 when a page answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=ASK_SECONDS) as answer:
            return int(answer.status != http.client.OK)
    except (OSError, http.client.HTTPException) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    running = subprocess.Popen(command)

    def end(_number: int, _frame: object) -> None:
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(8)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    return running


def die(command: list[str]) -> int:
    """Runs a command that is killed with -9 when the fault begins, and started again when it ends."""
    while True:
        running = _start(command)
        while not NOW.exists():
            if (code := running.poll()) is not None:
                return code
            time.sleep(TICK_SECONDS)
        running.kill()
        running.wait()
        while NOW.exists():
            time.sleep(TICK_SECONDS)


def fill(folder: str, command: list[str]) -> int:
    """Runs a command in whose folder no byte is free while the fault is there."""
    running, ballast = _start(command), Path(folder) / "ballast"
    while (code := running.poll()) is None:
        if not NOW.exists():
            ballast.unlink(missing_ok=True)
        else:
            with suppress(OSError), ballast.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        time.sleep(TICK_SECONDS)
    return code


def _leads(name: str) -> bool:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8222/jsz", timeout=ASK_SECONDS) as answer:
            return str(json.load(answer).get("meta_cluster", {}).get("leader")) == name
    except (OSError, ValueError, http.client.HTTPException):
        return False


def cut(name: str) -> int:
    """Takes the network away from the server of this namespace if it leads the servers when the fault begins."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        while not NOW.exists():
            time.sleep(TICK_SECONDS)
        led = _leads(name)
        if led:
            _link("down")
        while NOW.exists():
            time.sleep(TICK_SECONDS)
        if led:
            _link("up")


def _link(state: str) -> None:
    subprocess.run(["/usr/sbin/ip", "link", "set", "eth0", state], check=True, timeout=ASK_SECONDS)
    print(f"eth0 is {state}", flush=True)


def main(verb: str, *given: str) -> int:
    """The exit code."""
    if verb == "hold":
        return hold()
    if verb == "health":
        return health(*given)
    if verb == "die":
        return die(list(given))
    if verb == "fill":
        return fill(given[0], list(given[1:]))
    if verb == "cut":
        return cut(*given)
    print(f"drill: {verb!r}: hold, health, die, fill or cut", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
