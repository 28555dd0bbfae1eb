"""The CNI socket and the executable, without any kernel work: bounds, modes, and what a dead agent means."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import uvloop

from services.dataplane.cni import server as module
from services.dataplane.cni.conf import NAME, write_conf
from services.dataplane.cni.server import CniServer, SocketTaken
from services.dataplane.core.cni.request import CniError, Code, Request, Verb

ROOT = Path(__file__).resolve().parents[4]
CONF = {"cniVersion": "1.1.0", "name": "airmesh", "type": "airmesh-cni"}
ENV = {
    "CNI_COMMAND": "DEL",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/x",
}


@pytest.fixture(scope="session")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cni") / "airmesh-cni"
    source = ROOT / "services/dataplane/cni/airmesh-cni.c"
    subprocess.run(["musl-gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source], check=True)
    return path


class Agent:
    """A server with an answer of the test's choosing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bugs: list[BaseException] = []
        self.answer: Callable[[Request], Awaitable[bytes]] = self._ok
        self.server = CniServer(path, self._serve, self.bugs.append)
        self._slots = asyncio.Semaphore(32)  # asyncio takes a full backlog for a connection

    async def _serve(self, request: Request) -> bytes:
        return await self.answer(request)

    async def _ok(self, request: Request) -> bytes:
        return msgspec.json.encode({"verb": request.verb.value})

    async def call(self, frame: bytes) -> bytes:
        async with self._slots:
            reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(frame)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


def frame(conf: bytes | None = None, **env: str) -> bytes:
    pairs = {**ENV, **env}
    head = b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs.items())
    return head + b"\0" + (msgspec.json.encode(CONF) if conf is None else conf)


@pytest.fixture
async def agent(tmp_path: Path):  # type: ignore[no-untyped-def]
    agent = Agent(tmp_path / "cni.sock")
    await agent.server.start()
    yield agent
    await agent.server.close()


async def run(executable: Path, stdin: bytes, **env: str) -> tuple[int, dict[str, object]]:
    def go() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([executable], input=stdin, env=env, capture_output=True, timeout=30, check=False)

    done = await asyncio.to_thread(go)
    assert not done.stderr
    return done.returncode, msgspec.json.decode(done.stdout or b"{}")


def with_socket(path: object, **more: object) -> bytes:
    return msgspec.json.encode({**CONF, "socket": str(path), **more})


async def test_only_root_can_open_the_socket(agent: Agent) -> None:
    mode = agent.path.stat()
    assert stat.S_ISSOCK(mode.st_mode)
    assert stat.S_IMODE(mode.st_mode) == 0o600
    assert mode.st_uid == os.geteuid()


async def test_another_user_is_not_answered(agent: Agent) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    agent.path.chmod(0o666)
    code = (
        "import os,socket,sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'x'); s.shutdown(1); print(len(s.recv(10)))"
    )
    for folder in (agent.path.parent, *agent.path.parent.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o755)

    def go() -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/python3", "-c", code, str(agent.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = await asyncio.to_thread(go)
    assert done.stdout.strip() in ("0", ""), "hung up on, without an answer"
    assert "PermissionError" not in done.stderr, "it is the peer's identity that refuses here, not the file's mode"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(), None),
        (b"", 6),
        (b"CNI_COMMAND=DEL", 6),
        (frame(b""), 6),
        (frame(b"[]"), 6),
        (frame(CNI_CONTAINERID="../x"), 4),
        (frame(CNI_COMMAND="X"), 4),
        (frame(b" " * 65_000), 6),
        (frame(b" " * 200_000), 6),
        (frame(msgspec.json.encode({**CONF, "cniVersion": "9.9.9"})), 1),
        (frame(msgspec.json.encode({**CONF, "name": "/"})), 7),
    ],
)
async def test_every_call_is_answered(agent: Agent, sent: bytes, code: int | None) -> None:
    answer = await agent.call(sent)
    assert answer[:2] == (b"0\n" if code is None else b"1\n")
    body = msgspec.json.decode(answer[2:])
    assert body.get("code") == code
    assert not agent.bugs


def test_it_serves_on_the_loop_that_the_agent_runs_on(tmp_path: Path) -> None:
    async def go() -> list[bytes]:
        agent = Agent(tmp_path / "cni.sock")
        await agent.server.start()
        answers = await asyncio.gather(*(agent.call(frame()) for _ in range(5)), agent.call(b"x" * 200_000))
        await agent.server.close()
        return answers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert [answer[:2] for answer in runner.run(go())] == [b"0\n"] * 5 + [b"1\n"]


async def test_a_bug_of_the_agent_is_an_answer_too(agent: Agent) -> None:
    async def broken(_: Request) -> bytes:
        raise ZeroDivisionError("x")

    agent.answer = broken
    body = msgspec.json.decode((await agent.call(frame()))[2:])
    assert body["code"] == Code.INTERNAL
    assert isinstance(agent.bugs[0], ZeroDivisionError)


async def test_one_who_does_not_finish_is_not_waited_for(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.2)
    reader, writer = await asyncio.open_unix_connection(agent.path)
    writer.write(b"CNI_COMMAND=ADD\0")
    answer = await asyncio.wait_for(reader.read(), 20)
    assert msgspec.json.decode(answer[2:])["code"] == Code.IO
    writer.close()


class Stuck:
    """Answers some verbs only when it is let go, as an agent does whose bus is down."""

    def __init__(self, agent: Agent, *verbs: Verb) -> None:
        self.release = asyncio.Event()
        self.begun = 0
        self._verbs = verbs
        agent.answer = self._serve

    async def _serve(self, request: Request) -> bytes:
        self.begun += 1
        if request.verb in self._verbs:
            await self.release.wait()
        return b""

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.begun < count:
                await asyncio.sleep(0.01)


def call(verb: Verb, container: str = "c1") -> bytes:
    """A frame of this verb that would be served."""
    arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=u"
    more = {"CNI_CONTAINERID": container, "CNI_ARGS": arguments, "CNI_COMMAND": verb.value}
    attachments = [{"containerID": "c1", "ifname": "eth0"}]
    return frame(msgspec.json.encode({**CONF, "prevResult": {}, "cni.dev/valid-attachments": attachments}), **more)


@pytest.mark.parametrize("stuck", [Verb.ADD, Verb.DEL, Verb.CHECK, Verb.GC, Verb.STATUS])
async def test_no_verb_takes_anothers_room(agent: Agent, stuck: Verb) -> None:
    """As many calls as are served, all waiting: one more is told to come again, those of other verbs are served."""
    room = module.MAX_CALLS[stuck]
    state = Stuck(agent, stuck)
    waiting = [asyncio.create_task(agent.call(call(stuck, f"c{i}"))) for i in range(room)]
    await state.reach(room)
    for verb in Verb:
        answer = await asyncio.wait_for(agent.call(call(verb, "other")), 20)
        if verb is stuck:
            assert msgspec.json.decode(answer[2:])["code"] == Code.TRY_AGAIN_LATER
        else:
            assert answer[:2] == b"0\n", answer
    state.release.set()
    assert set(await asyncio.gather(*waiting)) == {b"0\n"}
    assert (await agent.call(call(stuck)))[:2] == b"0\n", "there is room again"


async def test_removals_do_not_wait_while_additions_do(agent: Agent) -> None:
    """Sixty-four ADDs stuck, more of them knocking all the time: a hundred DELs are served at once."""
    state = Stuck(agent, Verb.ADD)
    waiting = [asyncio.create_task(agent.call(call(Verb.ADD, f"c{i}"))) for i in range(64)]
    await state.reach(64)
    knocking = [asyncio.create_task(agent.call(call(Verb.ADD, f"k{i}"))) for i in range(200)]
    began = asyncio.get_running_loop().time()
    gone = [await agent.call(call(Verb.DEL, f"d{i}")) for i in range(100)]
    assert gone == [b"0\n"] * 100
    assert asyncio.get_running_loop().time() - began < 15
    refused = await asyncio.gather(*knocking)
    assert {msgspec.json.decode(answer[2:])["code"] for answer in refused} == {Code.TRY_AGAIN_LATER}
    state.release.set()
    assert set(await asyncio.gather(*waiting)) == {b"0\n"}


async def test_del_ends_the_add_of_its_own_attachment(agent: Agent) -> None:
    undone: list[str] = []
    lock = asyncio.Lock()

    async def serve(request: Request) -> bytes:
        async with lock:  # calls about one attachment are served one after the other
            if request.verb is Verb.ADD:
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.1)  # a second DEL must not stop what undoes it
                    undone.append(request.attachment.container)
            return b""

    agent.answer = serve
    adding = asyncio.create_task(agent.call(call(Verb.ADD)))
    await asyncio.sleep(0.2)
    answers = await asyncio.wait_for(asyncio.gather(*(agent.call(call(Verb.DEL)) for _ in range(3))), 20)
    assert answers == [b"0\n"] * 3
    assert msgspec.json.decode((await asyncio.wait_for(adding, 20))[2:])["code"] == Code.TRY_AGAIN_LATER
    assert undone == ["c1"]
    assert not agent.bugs


async def test_a_socket_left_behind_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    first = Agent(path)
    await first.server.start()
    with pytest.raises(SocketTaken, match="another agent"):
        await Agent(path).server.start()
    assert (await first.call(frame()))[:1] == b"0"
    await first.server.close()


async def test_the_executable_and_a_living_agent(agent: Agent, executable: Path) -> None:
    assert await run(executable, with_socket(agent.path), **ENV) == (0, {"verb": "DEL"})

    async def refuse(_: Request) -> bytes:
        raise CniError(Code.TRY_AGAIN_LATER, "later")

    agent.answer = refuse
    code, body = await run(executable, with_socket(agent.path, cniVersion="0.4.0"), **ENV)
    assert (code, body["code"], body["msg"], body["cniVersion"]) == (1, 11, "later", "0.4.0")


@pytest.mark.parametrize(
    ("stdin", "env", "code"),
    [
        (with_socket("/nowhere.sock"), ENV, 11),
        (with_socket("/nowhere.sock"), {**ENV, "CNI_COMMAND": "ADD"}, 11),
        (with_socket("/nowhere.sock"), {**ENV, "CNI_COMMAND": "STATUS"}, 50),
        (with_socket("/" + "n" * 500), ENV, 11),
        (with_socket("/nowhere.sock", nested={"socket": "/other"}), ENV, 11),
        (b"", ENV, 11),
        (b"{" * 1000, ENV, 11),
        (b'{"socket": "/un', ENV, 11),
        (b'{"socket"', ENV, 11),
        (b'{"socket":"\\', ENV, 11),
        (b"x" * 70_000, ENV, 6),
        (with_socket("/nowhere.sock"), {}, 4),
        (with_socket("/nowhere.sock"), {**ENV, "CNI_ARGS": "a" * 40_000}, 4),
    ],
)
async def test_the_executable_without_an_agent(executable: Path, stdin: bytes, env: dict[str, str], code: int) -> None:
    exit_code, body = await run(executable, stdin, **env)
    assert (exit_code, body["code"]) == (1, code)
    assert str(body["msg"]).startswith("airmesh-cni: ")


async def test_an_agent_that_hangs_up_is_one_that_does_not_answer(executable: Path, tmp_path: Path) -> None:
    for said in (b"", b"x", b"2\n{}", b"0"):

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = said) -> None:
            writer.write(said)
            writer.close()

        server = await asyncio.start_unix_server(hang_up, tmp_path / "odd.sock")
        code, body = await run(executable, with_socket(tmp_path / "odd.sock"), **ENV)
        assert (code, body["code"]) == (1, 11)
        server.close()


async def test_version_needs_no_agent(executable: Path) -> None:
    code, body = await run(executable, msgspec.json.encode({"cniVersion": "0.4.0"}), CNI_COMMAND="VERSION")
    assert code == 0
    assert body == {"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


def test_the_configuration_is_written_whole_and_only_when_it_differs(tmp_path: Path) -> None:
    folder = tmp_path / "net.d"
    assert write_conf(folder, Path("/run/a.sock"))
    assert not write_conf(folder, Path("/run/a.sock"))
    assert write_conf(folder, Path("/run/b.sock"))
    document = msgspec.json.decode((folder / NAME).read_bytes())
    assert document["cniVersion"] == "1.0.0"
    assert document["plugins"] == [{"type": "airmesh-cni", "socket": "/run/b.sock"}]
    assert [path.name for path in folder.iterdir()] == [NAME]
