"""TLS of the bus on a real server: nothing in the clear, renewed files without a drop, and each error in a sentence."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import nats.errors
import pytest

from chassis.bus import connection as chassis_connection
from chassis.bus import nats_internals, tls
from chassis.bus.connection import Connection
from chassis.bus.credentials import Credentials
from chassis.replaced_file import replace_file
from chassis.telemetry.log import Log
from cli.faults import Unreachable
from cli.link import Link
from cli.settings import BusSettings
from tests.natsd import Lines, NatsServer
from tests.pki import Authority


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats", ("n1",), tls=authority.sign(tmp_path / "tls"))
    made.start()
    yield made
    made.close()


@asynccontextmanager
async def connecting(url: str, seed: Path, ca: Path | None) -> AsyncIterator[tuple[Connection, Lines]]:
    """A connection that tries, for as long as it is asked for."""
    lines = Lines()
    log = Log("ipam", "debug", stream=lines)  # type: ignore[arg-type]
    connection = Connection(url, "ipam", Credentials(seed, ca), "test", log)
    running = asyncio.create_task(connection.run())
    try:
        yield connection, lines
    finally:
        await connection.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def of(server: NatsServer) -> Path:
    return server.seeds / "ipam.seed"


async def served_by(server: NatsServer) -> bytes:
    """The certificate that the server shows now, as DER."""
    context = tls.trust(server.tls / "ca.crt" if server.tls else None)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return bytes(shown)


class Relay:
    """A port that passes on to a server what it gets; a connection that is held stays open, and nothing more passes."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._newest = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, passed on both ways."""
        held = self._newest = asyncio.Event()
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [asyncio.create_task(self._pass(*way, held)) for way in ((reader, back), (there, writer))]
        try:
            await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, back):
                end.close()

    def hold(self) -> None:
        """The connection that came last."""
        self._newest.set()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, held: asyncio.Event) -> None:
        while octets := await source.read(65536):
            if held.is_set():
                break
            sink.write(octets)
            await sink.drain()
        if held.is_set():
            await asyncio.Event().wait()
        sink.close()


@asynccontextmanager
async def relaying(target: int) -> AsyncIterator[tuple[Relay, int]]:
    """A relay and its port."""
    relay, tasks = Relay(target), set[asyncio.Task[None]]()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(relay.serve(reader, writer)))

    served = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield relay, served.sockets[0].getsockname()[1]
    finally:
        served.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_tried_ends_though_the_server_answers_no_goodbye(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close over TLS waits for the other end's (RFC 8446, 6.1), and asyncio does for half a minute."""
    assert server.tls is not None
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 0.1)
    trusted = tmp_path / "trusted.crt"
    shutil.copy(server.tls / "ca.crt", trusted)
    connect = nats_internals.RenewingClient.connect
    async with relaying(server.port) as (relay, port):

        async def connect_and_be_left(client: nats_internals.RenewingClient, *args: object, **options: object) -> None:
            await connect(client, *args, **options)  # type: ignore[arg-type]
            relay.hold()

        async with connecting(f"tls://127.0.0.1:{port}", of(server), trusted) as (connection, _):
            await until(lambda: connection.connected)
            monkeypatch.setattr(nats_internals.RenewingClient, "connect", connect_and_be_left)
            other = Authority(tmp_path / "other").certificate.read_bytes()
            replace_file(trusted, trusted.read_bytes() + other, 0o644)
            await until(lambda: connection.reconnects == 1 and connection.connected)


async def test_renewed_files_are_taken_up_and_nobody_is_dropped(server: NatsServer, authority: Authority) -> None:
    assert server.tls is not None
    async with connecting(server.url, of(server), server.tls / "ca.crt") as (connection, _):
        await until(lambda: connection.connected)
        before = await served_by(server)
        authority.sign(server.tls)
        os.kill(server.pid, signal.SIGHUP)
        async with asyncio.timeout(20):
            while await served_by(server) == before:
                await asyncio.sleep(0.05)
        assert connection.connected
        assert connection.reconnects == 0


async def test_another_authority_is_taken_up_at_the_next_connect(server: NatsServer, tmp_path: Path) -> None:
    """The client's file holds both meanwhile; a connection is lost once, by the server's own restart."""
    assert server.tls is not None
    other = Authority(tmp_path / "other")
    trusted = tmp_path / "trusted.crt"
    shutil.copy(server.tls / "ca.crt", trusted)
    async with connecting(server.url, of(server), trusted) as (connection, _):
        await until(lambda: connection.connected)
        replace_file(trusted, trusted.read_bytes() + other.certificate.read_bytes(), 0o644)
        other.sign(server.tls)
        server.restart()
        await until(lambda: connection.reconnects == 1 and connection.connected)
        replace_file(trusted, other.certificate.read_bytes(), 0o644)
        server.restart()
        await until(lambda: connection.reconnects == 2 and connection.connected)


async def test_nothing_of_a_client_is_said_in_the_clear(server: NatsServer) -> None:
    """Neither by one that says TLS comes later, which anybody on the way can take out."""
    assert server.tls is not None
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        url = f"nats://127.0.0.1:{listener.getsockname()[1]}"
        async with connecting(url, of(server), server.tls / "ca.crt"):
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(20):
                link, _ = await loop.sock_accept(listener)
                with link:
                    await loop.sock_sendall(link, b'INFO {"server_id":"x","max_payload":1000,"auth_required":true}\r\n')
                    said = await loop.sock_recv(link, 4096)
    assert said[:2] == b"\x16\x03", "a TLS handshake (RFC 8446, 5.1)"
    assert b"CONNECT" not in said


async def test_the_server_takes_no_sign_in_in_the_clear(server: NatsServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(20):
        assert b'"tls_required":true' in await reader.readline()
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert b"PONG" not in await reader.read()
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_clients_that_wait_for_info_are_served_too(server: NatsServer) -> None:
    """NATS' own tools and most libraries."""
    client = await nats.connect(server.url, **{**server.sign_in("cli"), "tls_handshake_first": False})
    await client.flush()
    await client.close()


CASES = {
    "another authority": "was not signed by the authority of AIRMESH_NATS_CA_FILE=",
    "expired": "its certificate has expired: renew it",
    "another name": "its certificate is for another name",
    "no authority": "set AIRMESH_NATS_CA_FILE to the file of the authority",
    "in the clear": "does not speak TLS, which AIRMESH_NATS_CA_FILE demands",
    "no file": "cannot be read: No such file or directory",
    "no certificate": "holds no certificate: put the authority's there, as PEM",
}


@pytest.mark.parametrize("case", CASES)
async def test_what_is_wrong_is_one_sentence(case: str, authority: Authority, tmp_path: Path) -> None:
    names = ("elsewhere.example",) if case == "another name" else ("127.0.0.1",)
    folder = authority.sign(tmp_path / "tls", *names, expired=case == "expired")
    server = NatsServer(tmp_path / "nats", ("n1",), tls=None if case == "in the clear" else folder)
    ca: Path | None = {
        "another authority": tmp_path / "other" / "ca.crt",
        "no authority": None,
        "no file": tmp_path / "missing.crt",
        "no certificate": tmp_path / "empty.crt",
    }.get(case, authority.certificate)
    (tmp_path / "empty.crt").write_text("nothing\n")
    if case == "another authority":
        Authority(tmp_path / "other")
    server.start()
    try:
        async with connecting(server.url, of(server), ca) as (connection, lines):
            await until(lambda: CASES[case] in connection.problem)
            # A server that is busy ends a connection before the handshake, so the first words may be others.
            assert any(CASES[case] in line["error"] for line in lines.named("bus-unreachable"))
            assert not connection.connected
    finally:
        server.close()


async def test_a_reconnect_that_fails_says_why_once(server: NatsServer, authority: Authority) -> None:
    assert server.tls is not None
    async with connecting(server.url, of(server), server.tls / "ca.crt") as (connection, lines):
        await until(lambda: connection.connected)
        authority.sign(server.tls, expired=True)
        server.restart()
        await until(lambda: CASES["expired"] in connection.problem)
        authority.sign(server.tls)
        os.kill(server.pid, signal.SIGHUP)
        await until(lambda: connection.connected)
        assert len(lines.named("bus-not-let-in")) == 1


async def test_the_observer_is_served_and_names_the_same_faults(server: NatsServer, tmp_path: Path) -> None:
    assert server.tls is not None
    seed = server.seeds / "cli.seed"
    async with Link(BusSettings(url=server.url, seed_file=seed, ca_file=server.tls / "ca.crt")):
        pass
    wrong = {None: CASES["no authority"], Authority(tmp_path / "other").certificate: CASES["another authority"]}
    for authority, words in wrong.items():
        with pytest.raises(Unreachable, match=words.split("=")[0]) as raised:
            async with Link(BusSettings(url=server.url, seed_file=seed, ca_file=authority)):
                pass
        assert "AIRMESH_NATS_CA_FILE" in raised.value.remedy


async def test_a_renewed_seed_counts_at_the_next_connect(server: NatsServer) -> None:
    """And a file that cannot be read at that moment takes nothing away."""
    assert server.tls is not None
    async with connecting(server.url, of(server), server.tls / "ca.crt") as (connection, _):
        await until(lambda: connection.connected)
        of(server).write_text("half a fi")
        server.restart()
        await until(lambda: connection.reconnects == 1 and connection.connected)
