"""Talking to a lab's supervisor, and programs that are run to their end: what goes wrong is one error and its words."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from lab.cluster import launch
from lab.cluster.launch import Launcher, command, connect
from lab.cluster.supervisor import Answer, Request, State
from lab.paths import MARKER, Paths, Settings, paths
from lab.topology import LabError

Reply = Callable[[Request], Answer | bytes | None]


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    """A lab's folders, with a socket's path short enough."""
    run = Path("/tmp") / f"am-{uuid.uuid4().hex[:8]}"
    made = paths("air", Settings(labs=tmp_path / "labs", run=run, cache=tmp_path))
    made.logs.mkdir(parents=True)
    return made


@asynccontextmanager
async def supervisor(where: Paths, reply: Reply) -> AsyncIterator[Launcher]:
    """A supervisor that answers as it is told (None: it hangs up), and a launcher that speaks to it."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            said = reply(msgspec.json.decode(line, type=Request))
            if said is None:
                break
            writer.write(said if isinstance(said, bytes) else msgspec.json.encode(said) + b"\n")
        writer.close()

    where.run.mkdir(parents=True)
    try:
        async with await asyncio.start_unix_server(served, where.supervisor_socket):
            launcher = await connect(where)
            try:
                yield launcher
            finally:
                launcher.close()
    finally:
        where.supervisor_socket.unlink(missing_ok=True)
        where.run.rmdir()
        where.run.parent.rmdir()


async def test_nobody_listens(where: Paths) -> None:
    with pytest.raises(LabError, match=r"^lab air: its supervisor does not answer \(.*No such file"):
        await connect(where)


async def test_a_process_is_started_with_its_environment_and_its_log(where: Paths) -> None:
    asked: list[Request] = []

    def reply(request: Request) -> Answer:
        asked.append(request)
        return Answer()

    async with supervisor(where, reply) as launcher:
        await launcher.start("etcd", ["/bin/etcd", "--x"], always=True, AIRMESH_NODE="n1")
    (request,) = asked
    assert (request.verb, request.spec is not None) == ("start", True)
    assert request.spec is not None
    assert (request.spec.name, request.spec.argv, request.spec.always) == ("etcd", ("/bin/etcd", "--x"), True)
    assert request.spec.environment["AIRMESH_NODE"] == "n1"
    assert "PATH" in request.spec.environment


async def test_states_are_reported_by_name(where: Paths) -> None:
    states = (State(name="etcd", pid=7, running=True), State(name="k8s", pid=8, running=False, code=1, restarts=2))
    async with supervisor(where, lambda _: Answer(states=states)) as launcher:
        assert await launcher.states() == {"etcd": states[0], "k8s": states[1]}


async def test_a_refusal_is_reported(where: Paths) -> None:
    async with supervisor(where, lambda _: Answer(error="etcd runs already")) as launcher:
        with pytest.raises(LabError, match=r"^supervisor: etcd runs already$"):
            await launcher.states()


async def test_one_that_goes_away_is_reported_with_its_last_words(where: Paths) -> None:
    where.log("supervisor").write_text("first\nno space left on device\n")
    async with supervisor(where, lambda _: None) as launcher:
        with pytest.raises(LabError, match=r"went away:\n(.|\n)*no space left on device"):
            await launcher.states()


async def test_questions_asked_at_once_are_answered_each_with_its_own(where: Paths) -> None:
    def reply(request: Request) -> Answer:
        return Answer(states=(State(name=request.name, pid=1, running=True),))

    async with supervisor(where, reply) as launcher:
        names = [f"p{number}" for number in range(20)]
        found = await asyncio.gather(*(launcher.ask(Request(verb="stop", name=name)) for name in names))
        assert [states[0].name for states in found] == names


async def test_one_that_is_silent_is_reported(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_ASK_SECONDS", 0.05)
    async with supervisor(where, lambda _: b"") as launcher:
        with pytest.raises(LabError, match=r"supervisor does not answer within 0 s"):
            await launcher.states()


def counted(*answers: bool) -> Callable[[], Awaitable[bool]]:
    left = list(answers)

    async def ready() -> bool:
        return left.pop(0) if len(left) > 1 else left[0]

    return ready


RUNNING = State(name="k8s", pid=7, running=True)
ENDED = State(name="k8s", pid=7, running=False, code=3)
AGAIN = State(name="k8s", pid=7, running=False, code=3, restarts=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_POLL_SECONDS", 0.005)


@pytest.mark.usefixtures("quick")
async def test_what_is_waited_for_comes(where: Paths) -> None:
    async with supervisor(where, lambda _: Answer(states=(RUNNING,))) as launcher:
        await launcher.until("the API", counted(False, False, True), seconds=5, process="k8s")


@pytest.mark.usefixtures("quick")
async def test_a_process_that_has_ended_is_not_waited_for(where: Paths) -> None:
    where.log("k8s").write_text("panic: no certificate\n")
    async with supervisor(where, lambda _: Answer(states=(ENDED,))) as launcher:
        with pytest.raises(LabError, match=r"^k8s ended with 3:\n(.|\n)*panic: no certificate"):
            await launcher.until("the API", counted(False), seconds=60, process="k8s")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("state", [RUNNING, AGAIN], ids=["it runs", "it is started again"])
async def test_the_deadline_names_what_was_waited_for_and_what_was_said(where: Paths, state: State) -> None:
    where.log("k8s").write_text("still waiting for etcd\n")
    async with supervisor(where, lambda _: Answer(states=(state,))) as launcher:
        with pytest.raises(LabError, match=r"^the API: not within 0 s\n(.|\n)*still waiting for etcd"):
            await launcher.until("the API", counted(False), seconds=0.05, process="k8s")
        with pytest.raises(LabError, match=r"^the nodes: not within 0 s$"):
            await launcher.until("the nodes", counted(False), seconds=0.02)


async def test_a_program_that_ends_well_gives_what_it_printed_and_bears_the_labs_mark(where: Paths) -> None:
    said = await command(where, [sys.executable, "-c", f"import os; print(os.environ['{MARKER}'])"], "asking", 20)
    assert said == "air\n"


async def test_a_program_that_fails_is_reported_with_all_its_words(where: Paths) -> None:
    program = ["/bin/sh", "-c", "echo out; echo err >&2; exit 4"]
    with pytest.raises(LabError) as failure:
        await command(where, program, "importing images", 20)
    assert str(failure.value) == f"importing images: exit 4: {' '.join(program)}\nout\nerr"


async def test_a_program_that_takes_too_long_is_ended(where: Paths, tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    program = ["/bin/sh", "-c", f"echo $$ > {noted}; exec sleep 60"]
    with pytest.raises(LabError, match=r"^importing: no end within 0 s: /bin/sh"):
        await command(where, program, "importing", 0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


async def test_bytes_that_are_no_text_are_reported_all_the_same(where: Paths) -> None:
    assert await command(where, ["/bin/sh", "-c", r"printf '\377ok'"], "asking", 20) == "\ufffdok"


def test_kubectl_is_the_venvs_else_the_machines_else_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="make setup"):
        launch.kubectl()
    for folder in (tmp_path, tmp_path / "bin"):
        (folder / "kubectl").write_text("")
        (folder / "kubectl").chmod(0o755)
        assert launch.kubectl() == str(folder / "kubectl")
