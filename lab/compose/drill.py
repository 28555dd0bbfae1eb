"""What containers of compose.yaml and its overlays run beside the programs: health checks and faults on demand.

``python3 drill.py VERB …``, with nothing but Python's own library, as it runs in images of ours and of others. A fault
is there while its sign is, a file that is named: so drills wait for what they see, not for a time.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

TICK_SECONDS = 0.2
END_TICKS = 40
"""How long a command may take to end."""
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


def _tick() -> None:
    # Neither time.sleep nor Popen.wait with a limit: libfaketime refuses to wait until a time of the monotonic clock.
    select.select((), (), (), TICK_SECONDS)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    running = subprocess.Popen(command)

    def end(_number: int, _frame: object) -> None:
        _end(running)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    return running


def _end(running: subprocess.Popen[bytes]) -> None:
    running.terminate()
    for _ in range(END_TICKS):
        if running.poll() is not None:
            return
        _tick()
    running.kill()
    running.wait()


def _until_fault(sign: Path, running: subprocess.Popen[bytes]) -> int | None:
    """Waits for the fault; the exit code of a command that ended before."""
    while not sign.exists():
        if (code := running.poll()) is not None:
            return code
        _tick()
    return None


def die(sign: Path, command: list[str]) -> int:
    """Runs a command that is killed with -9 when the fault begins, and started again when it ends."""
    while True:
        running = _start(command)
        if (code := _until_fault(sign, running)) is not None:
            return code
        running.kill()
        running.wait()
        while sign.exists():
            _tick()


def fill(sign: Path, folder: Path, command: list[str]) -> int:
    """Runs a command in whose folder no byte is free while the fault is there.

    It is started again when the fault ends: a NATS server that found its disk full keeps no streams until then.
    """
    ballast = folder / "ballast"
    while True:
        running = _start(command)
        if (code := _until_fault(sign, running)) is not None:
            return code
        while sign.exists():
            with suppress(OSError), ballast.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            _tick()
        ballast.unlink(missing_ok=True)
        _end(running)


def leader() -> int:
    """Prints which server leads, as the one of this namespace says; exit code 1 when it does not say."""
    try:
        with urllib.request.urlopen("http://127.0.0.1:8222/jsz", timeout=ASK_SECONDS) as answer:
            name = json.load(answer).get("meta_cluster", {}).get("leader", "")
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"jsz: {error}", file=sys.stderr)
        return 1
    print(name, flush=True)
    return int(not name)


def _named(sign: Path) -> str:
    try:
        return sign.read_text().strip()
    except FileNotFoundError:
        return ""


def cut(sign: Path, name: str) -> int:
    """Takes the network away from the server of this namespace while the sign names it.

    One is named, and who leads is not asked here: two that led one after the other would both be cut off.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        while _named(sign) != name:
            _tick()
        _link("down")
        while _named(sign) == name:
            _tick()
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
        return die(Path(given[0]), list(given[1:]))
    if verb == "fill":
        return fill(Path(given[0]), Path(given[1]), list(given[2:]))
    if verb == "leader":
        return leader()
    if verb == "cut":
        return cut(Path(given[0]), given[1])
    print(f"drill: {verb!r}: hold, health, die, fill, leader or cut", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
