"""``python -m chassis.bus.joining ROLE [--renew | --now]``: gives a node's agent a key that the bus lets in.

Goes before the agent, in the same image, as a container of its own. Where the agent's file holds a key that the bus
lets in, nothing is done; where no server answers, too: an agent that has a key works on without the bus. Else a key is
made here, and ``cluster`` is asked to sign it; the private half never leaves the node. ``--renew`` makes another key
while the agent runs by the one that it has, and waits until it has taken it; ``--now`` ends the old one first.

AIRMESH_NODE, AIRMESH_NATS_URL, AIRMESH_NATS_CA_FILE and AIRMESH_NATS_SEED_FILE (the agent's file) say where and what.
Beside them it reads the bootstrap token and the pod's, where the manifests mount them (:class:`Files`). It tries until
it is done, or until it is refused for good; what it waits for is a line, whose last one is the container's last word.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chassis.bus.connection import Connection, not_let_in
from chassis.bus.credentials import Credentials, credentials, parse
from chassis.bus.micro import VERSION_HEADER
from chassis.bus.nats_config import new_key
from chassis.faults import Fault, Refused, Unavailable
from chassis.replaced_file import replace_file
from chassis.secret import Secret
from chassis.telemetry.log import Log
from proto import codec
from proto.admission import Admission, AdmissionRequest
from proto.requests import Reply
from proto.subjects import CLUSTER_ADMIT

USER = "bootstrap"
BOOTSTRAP = Path("/run/secrets/airmesh-bootstrap/token.creds")
TOKEN = Path("/run/secrets/airmesh-admission/token")
PAUSE = 2.0
"""Seconds between two askings; half of it to one and a half, so that nodes that came together do not ask together."""
ANSWER = 25.0
LET_IN = 15.0
"""Seconds in which a server has let a key in, or has not."""
MODES = {"": "", "--renew": "beside", "--now": "now"}

_NOT_TAKEN = (
    "the bus does not take the bootstrap token: it has expired, or was revoked; "
    "make a new one: airmesh keys bootstrap-token"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where everything is."""

    seed: Path
    """The agent's own."""
    authority: Path | None
    bootstrap: Path = BOOTSTRAP
    """The token that every node has."""
    token: Path = TOKEN
    """Of the pod's ServiceAccount."""


class NotAdmitted(Fault):
    """For good: one sentence with the remedy."""


def say(line: str) -> None:
    """A line for whoever waits."""
    print(line, flush=True)  # noqa: T201 - a command


class Joining:
    """One agent's key. ``servers``: the bus, comma-separated URLs."""

    def __init__(self, node: str, role: str, servers: str, files: Files) -> None:
        self._node, self._role, self._servers, self._files = node, role, servers, files
        self._log = Log("joining", "error", stream=sys.stderr)
        self._said = ""

    async def join(self) -> None:
        """A key, unless there is one that is let in. Raises NotAdmitted."""
        why = await self._refusal_of_own()
        if not why:
            return
        if not self._files.bootstrap.exists():
            raise NotAdmitted(
                f"{why}, and there is no bootstrap token: run `airmesh install`, or `airmesh keys bootstrap-token`"
            )
        self._say(f"{why}: asking for one")
        seed, public = new_key()
        async with self._asking() as connection:
            jwt = await self._insist(connection, public)
        self._write(credentials(jwt, seed))

    async def renew(self, replaces: str) -> None:
        """Another key, whatever there is. Raises NotAdmitted."""
        seed, public = new_key()
        async with self._asking() as connection:
            jwt = await self._insist(connection, public, replaces)
            self._write(credentials(jwt, seed))
            if replaces == "beside":
                await self._insist(connection, public, replaces, jwt)
                self._say(f"{self._role} of node {self._node} uses its new key, and the old one has ended")

    async def _refusal_of_own(self) -> str:
        """Why a key is needed; empty when there is one, and it is let in or cannot be tried."""
        try:
            identity = await asyncio.to_thread(lambda: parse(self._files.seed.read_text()))
        except FileNotFoundError:
            return f"{self._role} of node {self._node} has no key yet"
        except (OSError, ValueError) as error:
            return f"the key in {self._files.seed} cannot be used ({error})"
        async with self._connected(f"{self._role}-{self._node}", self._files.seed) as connection:
            problem = await _problem_of(connection)
        if not problem:
            self._say(f"{identity.public} is let in")
        elif not_let_in(problem):
            return f"the bus does not let {identity.public} in any more"
        else:
            self._say(f"whether {identity.public} is let in cannot be seen: {problem}")
        return ""

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Connection]:
        async with self._connected(USER, self._files.bootstrap) as connection:
            while problem := await _problem_of(connection):
                if not_let_in(problem):
                    raise NotAdmitted(_NOT_TAKEN)
                self._say(problem)
                await asyncio.sleep(PAUSE)
            yield connection

    @asynccontextmanager
    async def _connected(self, user: str, file: Path) -> AsyncIterator[Connection]:
        connection = Connection(self._servers, user, Credentials(file, self._files.authority), "joining", self._log)
        running = asyncio.create_task(connection.run())
        try:
            yield connection
        finally:
            await connection.close()
            running.cancel()
            with suppress(asyncio.CancelledError, Fault):
                await running

    async def _insist(self, connection: Connection, public: str, replaces: str = "", jwt: str = "") -> str:
        while True:
            try:
                return await self._ask(connection, public, replaces, jwt)
            except Refused as refused:
                if not refused.retry:
                    raise NotAdmitted(refused.message) from refused
                self._say(refused.message)
            except Unavailable as fault:
                if not connection.connected and not_let_in(connection.problem):
                    raise NotAdmitted(_NOT_TAKEN) from fault
                self._say(f"cluster does not answer: {fault if connection.connected else connection.problem}")
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, no secret

    async def _ask(self, connection: Connection, public: str, replaces: str, jwt: str) -> str:
        """What the agent's account says of the key. Raises Refused or Unavailable."""
        try:
            token = (await asyncio.to_thread(self._files.token.read_text)).strip()
        except OSError as error:
            raise NotAdmitted(f"the pod has no token of its own ({error}): apply the manifests again") from error
        asks = AdmissionRequest(self._node, self._role, public, token, replaces, jwt)  # type: ignore[arg-type]
        headers = {VERSION_HEADER: str(codec.VERSION)}
        said = await connection.call(CLUSTER_ADMIT, codec.encode(asks), timeout=ANSWER, headers=headers)
        try:
            reply = codec.decode(Reply, said.data)
            if not reply.ok:
                raise Refused(reply.code, reply.message, reply.retry)
            return codec.decode(Admission, reply.body).jwt
        except codec.Malformed as error:
            raise Unavailable(f"its answer cannot be read: {error}") from error

    def _write(self, secret: Secret) -> None:
        """Whole or not at all, for the agent may be reading it."""
        path = self._files.seed
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(path, secret.reveal().encode(), 0o600)
        self._say(f"{self._role} of node {self._node} has the key {parse(secret.reveal()).public}")

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            say(line)


async def _problem_of(connection: Connection) -> str:
    """Why there is no connection; empty when there is one. It waits until a server has said either."""
    first = connection.problem  # no event tells of it
    with suppress(TimeoutError):
        async with asyncio.timeout(LET_IN):
            while not connection.connected and connection.problem == first:  # noqa: ASYNC110 - two things end it
                await asyncio.sleep(0.05)
    return "" if connection.connected else connection.problem


def main(arguments: list[str], environ: Mapping[str, str] = os.environ) -> int:
    """The exit code."""
    role, mode = (*arguments, "", "")[:2]
    if not role or mode not in MODES or len(arguments) > 2:
        say("say ROLE, and --renew or --now where the agent runs")
        return 1
    try:
        authority = environ.get("AIRMESH_NATS_CA_FILE", "")
        files = Files(
            seed=Path(environ["AIRMESH_NATS_SEED_FILE"]),
            authority=Path(authority) if authority else None,
            bootstrap=Path(environ.get("AIRMESH_BOOTSTRAP_FILE", str(BOOTSTRAP))),
            token=Path(environ.get("AIRMESH_TOKEN_FILE", str(TOKEN))),
        )
        joining = Joining(environ["AIRMESH_NODE"], role, environ["AIRMESH_NATS_URL"], files)
        asyncio.run(joining.renew(MODES[mode]) if mode else joining.join())
    except KeyError as error:
        say(f"{error.args[0]} is not set: give it as the manifests do")
        return 1
    except (NotAdmitted, OSError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
