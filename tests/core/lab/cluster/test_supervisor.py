"""The supervisor stops what may have died a moment ago."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

from lab.cluster.supervisor import Child, Request, Spec, Supervisor
from lab.paths import Settings, paths


async def test_a_process_that_died_unnoticed_is_stopped_all_the_same(tmp_path: Path) -> None:
    where = paths(f"s{uuid.uuid4().hex[:4]}", Settings(labs=tmp_path / "labs", run=tmp_path / "run", cache=tmp_path))
    where.logs.mkdir(parents=True)
    gone = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    await gone.wait()
    supervisor = Supervisor(where)
    child = Child(Spec(name="one", argv=("true",), environment=dict(os.environ), always=True))
    child.pid = gone.pid

    async def notices_late() -> None:
        await asyncio.sleep(0.1)

    child.task = asyncio.create_task(notices_late())
    supervisor._children["one"] = child
    answer = await supervisor.answer(Request(verb="stop", name="one"))
    assert answer.error == ""
    assert not child.wanted
