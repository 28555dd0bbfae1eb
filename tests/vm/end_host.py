"""An end host: serves TCP and UDP, sends and counts as a test asks. It runs in the VM, and in pods of the host.

Each line of its channel is a call in JSON, ``{"call": name, ...arguments}``, answered by one line, ``{"is": value}`` or
``{"failed": text}``. The channel is the virtio port whose name is given, else standard input and output. It needs
the standard library alone: in the VM every import is read over 9p.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

SECONDS = 60.0
IP_TOS, IP_TTL, IP_MTU_DISCOVER, IP_RECVTTL, IP_RECVTOS = 1, 2, 10, 12, 13
IPV6_UNICAST_HOPS, IPV6_MTU_DISCOVER = 16, 23
IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT, IPV6_RECVTCLASS, IPV6_TCLASS = 51, 52, 66, 67
DONT, DO = 0, 2
CHUNK = 1 << 16

_heard: list[dict[str, Any]] = []
_programs: list[subprocess.Popen[bytes]] = []
_stop = threading.Event()
_streams: list[threading.Thread] = []
_sent: list[int] = []


def run(words: list[str]) -> str:
    """What a program prints; its fault is the call's."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=400)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)}: exit code {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout


def serve(address: str, port: int) -> None:
    """TCP that takes or gives, UDP that is noted, until the program ends."""
    listening = socket.create_server((address, port), family=_family(address), backlog=64)
    threading.Thread(target=_accept, args=(listening,), daemon=True).start()
    datagrams = socket.socket(_family(address), socket.SOCK_DGRAM)
    if ":" in address:
        datagrams.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        datagrams.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
    else:
        datagrams.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        datagrams.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    datagrams.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    datagrams.bind((address, port))
    threading.Thread(target=_note, args=(datagrams,), daemon=True).start()


def heard() -> list[dict[str, Any]]:
    """Datagrams since the last time: source, size, whether it is as `content` says, first four bytes, tos, ttl."""
    found = _heard[:]
    del _heard[: len(found)]
    return found


def upload(source: str, host: str, port: int, size: int) -> bool:
    """Whether so many bytes arrive as they were sent."""
    sent = content(size)
    with _dial(source, host, port) as client:
        client.sendall(b"take\n")
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return _read(client).decode() == digest(sent)


def download(source: str, host: str, port: int, size: int) -> bool:
    """Whether so many bytes are had as they were sent."""
    with _dial(source, host, port) as client:
        client.sendall(b"give %d\n" % size)
        client.shutdown(socket.SHUT_WR)
        return _read(client) == content(size)


def send(
    source: str, host: str, port: int, sizes: list[int], tos: int = 0, ttl: int = 64, df: bool = False, sport: int = 0
) -> list[str]:
    """Datagrams of these sizes, after each other; for each empty or the name of the error."""
    six = ":" in host
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    said = []
    with socket.socket(_family(host), socket.SOCK_DGRAM) as sender:
        sender.bind((source, sport))
        sender.setsockopt(level, IPV6_TCLASS if six else IP_TOS, tos)
        sender.setsockopt(level, IPV6_UNICAST_HOPS if six else IP_TTL, ttl)
        sender.setsockopt(level, IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER, DO if df else DONT)
        for size in sizes:
            try:
                sender.sendto(content(size), (host, port))
            except OSError as error:
                said.append(error.strerror or str(error))
            else:
                said.append("")
    return said


def stream(source: str, host: str, port: int, pause: float) -> None:
    """Numbered datagrams from now on, each so many seconds after the one before it, until :func:`stop`."""
    _stop.clear()
    _streams.append(threading.Thread(target=_send_on, args=(source, host, port, pause)))
    _streams[-1].start()


def stop() -> int:
    """How many datagrams the stream has sent, which ends."""
    _stop.set()
    _streams.pop().join()
    return _sent.pop()


def begin(words: list[str]) -> None:
    """A program that goes on, and answers lines (:func:`ask`)."""
    _programs.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))


def ask(line: str) -> str:
    """What that program says to a line."""
    program = _programs[-1]
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(line.encode() + b"\n")
    program.stdin.flush()
    said = program.stdout.readline().decode()
    if not said.startswith("{"):
        raise RuntimeError(said + program.stdout.read().decode())
    return said


def answered(source: str, host: str, port: int, size: int) -> str:
    """The error that comes of a datagram to a peer."""
    with socket.socket(_family(host), socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.connect((host, port))
        sender.settimeout(10)
        sender.send(content(size))
        try:
            return f"answered by {sender.recv(70_000)!r}"
        except OSError as error:
            return error.strerror or str(error)


def content(size: int) -> bytes:
    """Bytes that follow from how many there are."""
    return random.Random(size).randbytes(size)


def digest(raw: bytes) -> str:
    """Of what was read or written."""
    return hashlib.sha256(raw).hexdigest()


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _dial(source: str, host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), SECONDS, source_address=(source, 0))


def _read(connection: socket.socket) -> bytes:
    got = bytearray()
    while part := connection.recv(CHUNK):
        got += part
    return bytes(got)


def _send_on(source: str, host: str, port: int, pause: float) -> None:
    count = 0
    with socket.socket(_family(host), socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        while not _stop.wait(pause):
            sender.sendto(count.to_bytes(4, "big"), (host, port))
            count += 1
    _sent.append(count)


def _accept(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        connection.settimeout(SECONDS)
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        words, _, rest = _read(connection).partition(b"\n")
        if words == b"take":
            connection.sendall(digest(rest).encode())
        else:
            connection.sendall(content(int(words.split()[1])))


def _note(datagrams: socket.socket) -> None:
    while True:
        raw, ancillary, _, peer = datagrams.recvmsg(70_000, 256)
        marks = {kind: int.from_bytes(value[:4], "little") for _, kind, value in ancillary}
        tos = marks.get(IP_TOS, marks.get(IPV6_TCLASS, -1))
        ttl = marks.get(IP_TTL, marks.get(IPV6_HOPLIMIT, -1))
        whole, number = raw == content(len(raw)), int.from_bytes(raw[:4], "big")
        _heard.append({"source": peer[0], "size": len(raw), "whole": whole, "number": number, "tos": tos, "ttl": ttl})


CALLS = {
    call.__name__: call for call in (run, begin, ask, serve, heard, upload, download, send, answered, stream, stop)
}


def answer(line: str) -> str:
    """One call of the channel."""
    arguments = json.loads(line)
    try:
        said = {"is": CALLS[arguments.pop("call")](**arguments)}
    except Exception:
        said = {"failed": traceback.format_exc(limit=-3)}
    return json.dumps(said) + "\n"


def main(channel: tuple[IO[bytes], IO[bytes]]) -> None:
    """Answers until the channel's other end is gone."""
    calls, answers = channel
    said = b'{"is": "ready"}\n'
    while True:
        while said:  # a virtio port takes 32 KiB at a time
            said = said[answers.write(said) :]
        answers.flush()
        line = calls.readline()
        if not line:
            return
        said = answer(line.decode()).encode()


def virtio_port(name: str) -> Path:
    """The device of a port by the name that qemu gave it."""
    [found] = [
        path.parent for path in Path("/sys/class/virtio-ports").glob("*/name") if path.read_text().strip() == name
    ]
    return Path("/dev") / found.name


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with virtio_port(sys.argv[1]).open("r+b", buffering=0) as port:
            main((port, port))
    else:
        main((sys.stdin.buffer, sys.stdout.buffer))
