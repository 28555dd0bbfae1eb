"""``python -m services.routing.bfd``: the process that runs BFD, started by the agent and found again by its socket.

It returns when the socket listens, and goes on in the background, in a session of its own: as wireguard-go does. When
another copy holds the folder it returns at once.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

from services.routing.bfd.engine import Engine
from services.routing.bfd.messages import LOCK, LOG, SOCKET


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.routing.bfd")
    parser.add_argument("folder", help="where its socket is; for this user alone")
    parser.add_argument("--netns", default="", help="path of the network namespace to be in; else that of the caller")
    parser.add_argument("--independent", action="store_true", help="it outlives an agent that is killed (C bit)")
    asked = parser.parse_args()
    if asked.netns:
        from linux.netns import enter  # noqa: PLC0415 - costs a megabyte where it is not needed

        enter(asked.netns)
    os.makedirs(asked.folder, mode=0o700, exist_ok=True)
    os.chdir(asked.folder)  # a relative name: the whole path may be too long for a unix socket
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    with suppress(FileNotFoundError):
        os.unlink(SOCKET)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    control.bind(SOCKET)
    control.listen(8)
    if os.fork():
        return 0
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    _detach()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a session may have two sockets
    _run(Engine(control, independent=asked.independent))
    return 0


def _run(engine: Engine) -> None:
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    gc.freeze()
    engine.run(woken)
    with suppress(FileNotFoundError):
        os.unlink(SOCKET)
    engine.close()


def _detach() -> None:
    """What is wrong is written to a file beside the socket, which the agent reads when the process is gone."""
    os.setsid()
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor, onto in ((null, 0), (null, 1), (log, 2)):
        os.dup2(descriptor, onto)


if __name__ == "__main__":
    sys.exit(main())
