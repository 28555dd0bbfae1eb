"""Port forward: loopback ports of the machine that lead to a lab's API server and NATS. One small process a lab.

Run as `python -m lab.cluster.port_forward <lab> [<address of a NATS server> …]`: of several the first that takes the
connection; without any it is the control plane's. Promises to listen on 127.0.0.1 alone, to write the ports into
`ports.json` once it listens and to take the same ports after a restart (the kubeconfig names them), and at most 512
connections at once. How: a TCP socket belongs for life to the network namespace of the thread that made it. So one
thread moves into the lab's namespace for good (setns(2)) and makes the sockets; everything else stays outside. No
route, address or rule of the machine is touched.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from lab.cluster import ledger
from lab.paths import paths, settings
from lab.topology import Host, LabError, plan
from linux.netns import enter

_CONNECT_SECONDS = 5.0
_CONNECTIONS = 512
_CHUNK = 65536
Address = tuple[str, int]


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Loopback ports, 0 while unknown."""

    api: int = 0
    nats: int = 0


def read_ports(path: Path) -> Ports:
    """What `ports.json` says; zeros when there is none yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ports)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return Ports()


def targets(control: Host, servers: Sequence[str]) -> dict[str, tuple[Address, ...]]:
    """Where each port leads, as seen from the control plane's namespace. ``servers``: of NATS, where not there."""
    nats = servers or (str(control.management4),)
    return {"api": ((str(control.fabric4), 6443),), "nats": tuple((address, 4222) for address in nats)}


class Inside:
    """Makes TCP sockets in another network namespace."""

    def __init__(self, netns: str) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=enter, initargs=(netns,))

    async def connect(self, address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to `address` as seen from inside. Raises `OSError` or `TimeoutError`."""
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._thread, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(made, address)
            return await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one side to the other until it ends; then tell the other that no more will come."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class PortForward:
    """One listening port and where it leads: to the first of ``addresses`` that takes the connection."""

    def __init__(self, inside: Inside, addresses: tuple[Address, ...]) -> None:
        self._inside, self._addresses = inside, addresses
        self._open = 0

    async def pass_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client. What cannot be connected is closed: the client sees a reset, as from a server that is down."""
        if self._open >= _CONNECTIONS:
            writer.close()
            return
        self._open += 1
        try:
            far_reader, far_writer = await self._connect()
            try:
                await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))
            finally:
                far_writer.close()
        except OSError:  # TimeoutError is one
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        *others, last = self._addresses
        for address in others:
            with contextlib.suppress(OSError):
                return await self._inside.connect(address)
        return await self._inside.connect(last)


async def _listen(forward: PortForward, port: int) -> asyncio.Server:
    try:
        return await asyncio.start_server(forward.pass_through, "127.0.0.1", port, limit=_CHUNK)
    except OSError as taken:
        raise LabError(f"port {port} of 127.0.0.1 is taken ({taken}); stop whoever listens there") from taken


async def serve(lab: str, servers: Sequence[str]) -> None:
    """Listen, and forward until TERM."""
    where = paths(lab, settings())
    control = plan(lab, 1).control
    inside = Inside(control.netns)
    before = msgspec.structs.asdict(read_ports(where.ports))
    ports, listening = {}, list[asyncio.Server]()
    for name, addresses in targets(control, servers).items():
        listening.append(await _listen(PortForward(inside, addresses), before[name]))
        ports[name] = listening[-1].sockets[0].getsockname()[1]
    ledger.write(where.ports, msgspec.json.encode(Ports(**ports)) + b"\n")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    os._exit(0)  # open connections are nobody's loss; the thread inside the namespace need not be joined


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2:]))
