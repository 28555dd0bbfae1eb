"""The journal on a real disk: what was answered is there after kill -9, and what is broken is said."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from proto.addresses import Block
from services.dataplane.core.ipam.journal import Ask, Grant, NeedsBlock
from services.dataplane.ipam.journal import COMPACT_AT, Journal, JournalFault

BLOCK = Block(ip_network("10.244.0.0/26"), "v4", "n1", "u1", 5, "b4")
WIDE = Block(ip_network("10.244.16.0/20"), "v4", "n1", "u1", 5, "b5")


def ask(number: int) -> Ask:
    return Ask(
        container=f"c{number}", interface="eth0", namespace="d", pod=f"p{number}", pod_uid=f"u{number}", nonce="n"
    )


def opened(folder: Path, *, node: str = "n1", boot: str = "b1", **more: Any) -> Journal:
    return Journal.open(folder, node=node, boot=boot, **more)


async def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.hold_block(BLOCK)
    grants = await asyncio.gather(*(journal.allocate((4,), ask(number)) for number in range(30)))
    await asyncio.gather(*(journal.release(ask(number).attachment) for number in range(10)))
    before = journal.ledger
    await journal.close()
    again = opened(tmp_path)
    assert again.ledger.by_address == before.by_address
    assert list(again.ledger.resting) == list(before.resting), "the order of reuse is kept"
    assert again.torn == 0
    grant = await again.allocate((4,), ask(30))
    assert isinstance(grant, Grant)
    assert grant.leases[0].sequence > max(grant.leases[0].sequence for grant in grants if isinstance(grant, Grant))
    assert stat.S_IMODE((tmp_path / "addresses.journal").stat().st_mode) == 0o600
    await again.close()


async def test_what_was_not_waited_for_is_on_disk_after_a_flush(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.hold_block(BLOCK)
    grants = [await journal.allocate((4,), ask(number), wait=False) for number in range(30)]
    assert len({grant.leases[0].address for grant in grants if isinstance(grant, Grant)}) == 30
    await journal.flush()
    os.close(journal._lock)  # as a kill would; what is not on disk now is lost
    again = opened(tmp_path)
    assert again.ledger.by_address == journal.ledger.by_address
    await again.close()


async def test_a_second_agent_is_refused(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(JournalFault, match="another agent"):
        opened(tmp_path)
    await journal.close()
    await opened(tmp_path).close()


async def test_a_journal_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.bind("cluster-a")
    await journal.close()
    with pytest.raises(JournalFault, match="belongs to node 'n1'"):
        opened(tmp_path, node="n2")
    again = opened(tmp_path)
    with pytest.raises(JournalFault, match="belongs to cluster cluster-a"):
        await again.bind("cluster-b")
    await again.bind("cluster-a")
    await again.close()


async def test_damage_is_said_and_nothing_is_dropped(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.hold_block(BLOCK)
    for number in range(5):
        await journal.allocate((4,), ask(number))
    await journal.close()
    path = tmp_path / "addresses.journal"
    content = path.read_bytes()
    for offset in (5, len(content) // 2):
        broken = bytearray(content)
        broken[offset] ^= 0xFF
        path.write_bytes(broken)
        with pytest.raises(JournalFault, match=r"damaged.*restore the file"):
            opened(tmp_path)
        assert path.read_bytes() == broken, "the file is left as it is"
    path.write_bytes(b"")
    with pytest.raises(JournalFault, match="damaged"):
        opened(tmp_path)


async def test_a_torn_tail_is_cut_off_and_reported(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.hold_block(BLOCK)
    await journal.allocate((4,), ask(1))
    held = dict(journal.ledger.by_address)
    await journal.allocate((4,), ask(2))
    await journal.close()
    path = tmp_path / "addresses.journal"
    path.write_bytes(path.read_bytes()[:-3])
    again = opened(tmp_path)
    assert again.ledger.by_address == held
    assert again.torn > 0
    await again.close()
    assert opened(tmp_path).torn == 0


async def test_a_reboot_lets_nothing_be_reused_early(tmp_path: Path) -> None:
    now = [50.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    single = Block(ip_network("10.244.0.0/32"), "v4", "n1", "u1", 5, "b")
    journal = opened(tmp_path, clock=clock)
    await journal.hold_block(single)
    await journal.allocate((4,), ask(1))
    await journal.release(ask(1).attachment)
    await journal.close()
    now[0] = 4.0
    journal = opened(tmp_path, boot="b2", clock=clock)
    assert isinstance(await journal.allocate((4,), ask(2)), NeedsBlock)
    await journal.close()
    now[0] = 100.0
    journal = opened(tmp_path, boot="b2", clock=clock)
    assert isinstance(await journal.allocate((4,), ask(2)), NeedsBlock), "restarted in between: still from 4.0"
    now[0] = 134.1
    assert isinstance(await journal.allocate((4,), ask(2)), Grant)
    await journal.close()


async def test_a_long_run_stays_small(tmp_path: Path) -> None:
    journal = opened(tmp_path, cooldown=0.0)
    await journal.hold_block(WIDE)
    for wave in range(6):
        await asyncio.gather(*(journal.allocate((4,), ask(wave * 1000 + number)) for number in range(500)))
        await asyncio.gather(*(journal.release(ask(wave * 1000 + number).attachment) for number in range(500)))
    await journal.allocate((4,), ask(1))
    assert (tmp_path / "addresses.journal").stat().st_size < 3 * COMPACT_AT
    before = dict(journal.ledger.by_address)
    await journal.close()
    again = opened(tmp_path)
    assert again.ledger.by_address == before
    await again.close()


async def test_a_full_disk_ends_all_answers(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.hold_block(BLOCK)
    size = (tmp_path / "addresses.journal").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(JournalFault, match="could not be written"):
            await journal.allocate((4,), ask(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(JournalFault, match="start the service again"):
        await journal.allocate((4,), ask(2))
    with pytest.raises(JournalFault):
        await journal.close()
    again = opened(tmp_path)
    assert again.ledger.by_address == {}
    await again.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from services.dataplane.core.ipam.journal import Ask
from services.dataplane.ipam.journal import Journal

def ask(number):
    return Ask(container=f"c{number}", interface="eth0", namespace="d", pod="p", pod_uid=f"u{number}", nonce="n")

async def main():
    journal = Journal.open(Path(sys.argv[1]), node="n1", boot="b1", cooldown=0.0)
    start = int(sys.argv[2])
    async def one(number):
        grant = await journal.allocate((4,), ask(number))
        print("has", number, grant.leases[0].address, flush=True)
        if number % 3 == 0:
            await journal.release(ask(number).attachment)
            print("gone", number, flush=True)
    for wave in range(1000):
        await asyncio.gather(*(one(start + wave * 8 + number) for number in range(8)))

asyncio.run(main())
"""


async def test_kill_minus_nine_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    chance = random.Random(9)
    journal = opened(tmp_path, cooldown=0.0)
    await journal.hold_block(WIDE)
    await journal.close()
    held: dict[int, str] = {}
    for run in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(run * 10_000)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[4],
        )
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read()
        writer.wait()
        gone: set[int] = set()
        for line in (first + rest).splitlines():
            words = line.split()
            if words[0] == "has" and len(words) == 3:
                held[int(words[1])] = words[2]
            elif words[0] == "gone" and len(words) == 2:
                gone.add(int(words[1]))
        journal = opened(tmp_path, cooldown=0.0)
        now = {int(lease.container[1:]): str(lease.address) for lease in journal.ledger.by_address.values()}
        for number, address in held.items():
            if number % 3:
                assert now[number] == address
            assert not (number in gone and number in now)
        assert len(set(now.values())) == len(now)
        await journal.close()
    assert len(held) > 100


class ForgetfulDisk:
    """What a power cut would leave of a folder: the names that were synced, and of each file what was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for call in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, call, self._noting(getattr(os, call)))

    def _noting(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def noted(file: int) -> None:
            sync(file)
            status = os.fstat(file)
            if stat.S_ISDIR(status.st_mode):
                self._names[status.st_ino] = {
                    entry.name: entry.inode() for entry in os.scandir(f"/proc/self/fd/{file}")
                }
            else:
                self._contents[status.st_ino] = Path(f"/proc/self/fd/{file}").read_bytes()

        return noted

    def after_a_power_cut(self, folder: Path, copy: Path) -> Path:
        copy.mkdir()
        for name, inode in self._names[folder.stat().st_ino].items():
            (copy / name).write_bytes(self._contents.get(inode, b""))
        return copy


async def test_a_power_cut_loses_nothing_that_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = ForgetfulDisk(monkeypatch)
    monkeypatch.setattr("services.dataplane.ipam.journal.COMPACT_AT", 4096)
    folder = tmp_path / "state"
    journal = opened(folder, cooldown=0.0)
    await journal.hold_block(WIDE)
    compactions = 0
    for number in range(60):
        inode = (folder / "addresses.journal").stat().st_ino
        await journal.allocate((4,), ask(number))
        if number % 3 == 0:
            await journal.release(ask(number).attachment)
        compactions += (folder / "addresses.journal").stat().st_ino != inode
        after = opened(disk.after_a_power_cut(folder, tmp_path / f"cut-{number}"), cooldown=0.0)
        assert after.ledger.by_address == journal.ledger.by_address
        await after.close()
    assert compactions, "a compacted file is as durable"
    await journal.close()
