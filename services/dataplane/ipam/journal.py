"""The node's address journal on disk: nothing is answered before it is durable.

Owns ``<folder>/addresses.journal`` (0600) and a lock beside it, held for life: two agents never write one journal.
A commit is appended and fdatasync'ed by one writer thread; requests that come while it writes share the next commit, so
eight pods at once cost two or three syncs. The file is compacted by writing a new one, fsync, rename, fsync of the
folder: a crash leaves the old one or the new one.

Promises: a lease that was returned survives kill -9 and power loss; a torn last commit, which nobody was told of, is
cut off and reported in :attr:`Journal.torn`; damage anywhere else, a journal of another node or of another cluster is a
:class:`JournalFault` that names the remedy and leaves the file as it is. After a failed write (disk full, I/O error)
nobody knows what is on disk, so the journal answers nothing more until the service starts again.

Kernel: fdatasync reports an I/O error once and may drop the pages (errors are not repeated), hence that rule. Clock:
CLOCK_BOOTTIME.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Collection, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from proto.addresses import Block, Claim
from proto.net import Address, Family, Network
from proto.requests import ClaimRelease
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.ipam import journal as core
from services.dataplane.core.ipam.journal import COOLDOWN, Ask, Clash, Collected, Grant, Ledger, NeedsBlock
from services.dataplane.core.ipam.journal_frames import Damaged, read_frames, write_frame
from services.dataplane.core.ipam.journal_records import Booted, Bound, Opened, Record
from services.dataplane.one_thread import OneThread

__all__ = ["Ask", "Clash", "Grant", "Journal", "JournalFault", "NeedsBlock"]

COMPACT_AT: Final = 256 << 10
"""Bytes from which a file is compacted, when it is also four times what it was after the last compaction."""
_CHUNK = 512
"""Records in one frame of a compacted file."""


MAX_FILE: Final = 64 << 20
_REMEDY = "Nothing of it is dropped by itself: restore the file, or drain the node, move the file away and start again"

D = TypeVar("D", Grant, Grant | NeedsBlock | Clash, Grant | Clash)


class JournalFault(RuntimeError):
    """The journal cannot be used; one sentence with the remedy."""


def boot_clock() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Journal:
    """Opened journal of one node. Methods may be called concurrently from one event loop.

    ``cooldown`` in seconds is how long a freed address rests. Decisions and their meaning are those of
    ``services.dataplane.core.ipam.journal``; each returns only when its records are on disk.
    """

    def __init__(self, path: Path, lock: int, ledger: Ledger, cooldown: float, clock: Callable[[], float]) -> None:
        self.ledger: Final = ledger
        self.torn = 0
        """Bytes of a torn last commit that were cut off at opening."""
        self.cooldown = cooldown
        self._path = path
        self._lock = lock
        self._clock = clock
        self._file = -1
        self._number = 0
        self._size = 0
        self._compacted = 0
        self._applied = self._durable = 0
        self._pending: list[Record] = []
        self._committing: asyncio.Task[None] | None = None
        self._fault: JournalFault | None = None
        self._suspects: dict[Attachment, float] = {}
        self._writer = OneThread("journal")

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        node: str,
        boot: str,
        cooldown: float = COOLDOWN,
        clock: Callable[[], float] = boot_clock,
    ) -> Journal:
        """Open or begin the journal of ``node`` in ``folder`` (made 0700 if missing); blocks for a few milliseconds.

        ``boot`` names this boot of the node: when it differs from the one written down, what rests begins again.
        Raises :class:`JournalFault`.
        """
        path = folder / "addresses.journal"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _lock(folder / "addresses.lock")
        except OSError as error:
            raise JournalFault(f"{folder} cannot be used for the address journal: {error}") from error
        try:
            journal = cls(path, lock, Ledger(), cooldown, clock)
            journal._load(node, boot)
        except OSError as error:
            os.close(lock)
            raise JournalFault(f"{path} cannot be written: {error}") from error
        except BaseException:
            os.close(lock)
            raise
        return journal

    def now(self) -> float:
        """The journal's clock, in seconds."""
        return self._clock()

    async def bind(self, cluster: str) -> None:
        """Say which cluster this is (uid of ``kube-system``); raises :class:`JournalFault` when it was another one."""
        if self.ledger.cluster and self.ledger.cluster != cluster:
            raise JournalFault(
                f"{self._path} belongs to cluster {self.ledger.cluster}, this is {cluster}: "
                "if the node was moved to another cluster, move the file away"
            )
        await self._commit(() if self.ledger.cluster else (Bound(cluster),))

    async def allocate(
        self,
        families: Sequence[Family],
        ask: Ask,
        *,
        wait: bool = True,
        closed: Set[Network] = frozenset(),
        is_known_to_all: Callable[[Address, float], bool] = lambda *_: False,
    ) -> Grant | NeedsBlock | Clash:
        """Addresses from own blocks but the ``closed`` ones, one of each family, all or none; idempotent by attachment.

        Without ``wait`` nobody may be told of them before :meth:`flush` has returned.
        """
        decision = core.allocate(self.ledger, families, ask, self._clock(), self.cooldown, closed, is_known_to_all)
        if wait:
            return await self._decided(decision)
        self._begin(decision.records if isinstance(decision, Grant) else ())
        return decision

    async def flush(self) -> None:
        """Until everything decided so far is on disk."""
        await self._commit(())

    async def hold_claim(self, claim: Claim, ask: Ask) -> Grant | Clash:
        """Write down a claim that ``ipam`` granted for this attachment; idempotent."""
        return await self._decided(core.hold_claim(self.ledger, claim, ask, self._clock()))

    async def adopt(self, ask: Ask, addresses: Sequence[Address]) -> Grant | Clash:
        """Write down addresses that a link was found with, after the journal was lost."""
        return await self._decided(core.adopt(self.ledger, ask, addresses, self._clock()))

    async def change(self, attachment: Attachment, identity: int, mac: bytes = b"") -> Grant:
        """Another identity or MAC; the leases come back with their new sequence."""
        return await self._decided(core.change(self.ledger, attachment, identity, mac))

    async def release(self, attachment: Attachment) -> Grant:
        """The interface is gone; its leases as they were. Claims among them are then in ``ledger.owed``."""
        return await self._decided(core.release(self.ledger, attachment, self._clock()))

    async def hold_block(self, block: Block, *, rests: bool = False) -> Clash | None:
        """A block that ``ipam`` granted or confirmed; ``rests``: if it is new here, its free addresses rest first."""
        decided = core.hold_block(self.ledger, block, self._clock() if rests else None)
        if isinstance(decided, Clash):
            return decided
        await self._commit(decided)
        return None

    async def learn(self) -> None:
        """``ipam`` has told of every block that the node held before this journal was begun, and they are held."""
        await self._commit(core.learn(self.ledger))

    async def give_block(self, cidr: Network) -> None:
        """Another node has the block: give nothing of it away any more."""
        await self._commit(core.give_block(self.ledger, cidr))

    async def settle(self, owed: ClaimRelease) -> None:
        """``ipam`` has answered the release of this claim."""
        await self._commit(core.settle(self.ledger, owed))

    def collect(
        self, valid: Collection[Attachment], unrecorded: Collection[Attachment], *, listed_at: float, grace: float
    ) -> tuple[Attachment, ...]:
        """Attachments to undo as DEL would, by the second of two lists that lack them; releases nothing itself.
        ``unrecorded``: those that the kernel has a link of, whatever is written here.
        """
        found: Collected = core.collect(
            self.ledger,
            valid,
            self._suspects,
            listed_at=listed_at,
            now=self._clock(),
            grace=grace,
            unrecorded=unrecorded,
        )
        self._suspects = found.suspects
        return found.release

    async def close(self) -> None:
        """Wait for what is being written and let go of the file and its lock."""
        try:
            await self._commit(())
        finally:
            self._fault = self._fault or JournalFault("the journal is closed")
            if self._writer.close():  # else it still writes: the files go with the agent
                os.close(self._file)
                os.close(self._lock)

    async def _decided(self, decision: D) -> D:
        await self._commit(decision.records if isinstance(decision, Grant) else ())
        return decision

    async def _commit(self, records: Sequence[Record]) -> None:
        """Apply records and return when they, and all that was applied before them, are on disk."""
        mine = self._begin(records)
        while self._durable < mine:
            self._write_soon()
            assert self._committing is not None
            await asyncio.shield(self._committing)
            if self._fault is not None:
                raise self._fault

    def _begin(self, records: Sequence[Record]) -> int:
        """Apply records and begin to write them; how many were ever applied."""
        if self._fault is not None:
            raise self._fault
        for record in records:
            self.ledger.apply(record)
        self._pending += records
        self._applied += len(records)
        if self._durable < self._applied:
            self._write_soon()
        return self._applied

    def _write_soon(self) -> None:
        """Begin a commit if none is under way."""
        if self._committing is None:
            self._committing = asyncio.create_task(self._write_pending(), name="journal commit")

    async def _write_pending(self) -> None:
        records, self._pending = self._pending, []
        try:
            if self._size > max(COMPACT_AT, 4 * self._compacted):
                # The ledger holds the pending records too, so the new file makes them durable.
                work = partial(self._replace, self._snapshot())
            else:
                work = partial(self._append, write_frame(self._number, records))
            await self._writer.run(work, timeout=None)
            self._durable += len(records)
        except (OSError, ValueError) as error:
            self._fault = JournalFault(
                f"{self._path} could not be written ({error}): free the disk or repair it, then start the service again"
            )
        finally:
            self._committing = None
        if self._pending and self._fault is None:
            self._write_soon()  # what came meanwhile; whoever waits for it finds this commit

    def _append(self, frame: bytes) -> None:
        written = 0
        while written < len(frame):
            written += os.write(self._file, frame[written:])
        os.fdatasync(self._file)
        self._number += 1
        self._size += len(frame)

    def _snapshot(self) -> bytes:
        records = core.snapshot(self.ledger, self._clock(), self.cooldown)
        chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
        return b"".join(write_frame(number, chunk) for number, chunk in enumerate(chunks))

    def _replace(self, content: bytes) -> None:
        fresh = self._path.with_suffix(".fresh")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(file, 0o600)
            written = 0
            while written < len(content):
                written += os.write(file, content[written:])
            os.fsync(file)
            os.rename(fresh, self._path)
            _sync_folder(self._path.parent)
        finally:
            os.close(file)
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        _, self._size, self._number = read_frames(content)
        self._compacted = self._size

    def _load(self, node: str, boot: str) -> None:
        content = self._read()
        if content is None:
            self.ledger.apply(Opened(node))
            self.ledger.apply(Booted(boot, self._clock()))
            self._replace(self._snapshot())
            return
        self._replay(content)
        if self.ledger.node != node:
            raise JournalFault(
                f"{self._path} belongs to node {self.ledger.node!r}, this is {node!r}: correct the node's name "
                "or give this node a state folder of its own"
            )
        self.ledger.resume()
        if self.ledger.boot != boot:
            self.ledger.apply(Booted(boot, self._clock()))
        self._replace(self._snapshot())

    def _read(self) -> bytes | None:
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalFault(f"{self._path} cannot be read: {error}") from error
        with os.fdopen(file, "rb") as opened:
            content = opened.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise JournalFault(f"{self._path} is larger than {MAX_FILE} bytes, which no journal becomes: move it away")
        return content

    def _replay(self, content: bytes) -> None:
        try:
            records, whole, _ = read_frames(content)
            for record in records:
                self.ledger.apply(record)
        except (Damaged, ValueError) as error:
            raise JournalFault(f"{self._path} is damaged: {error}. {_REMEDY}") from error
        if not records or not isinstance(records[0], Opened):
            raise JournalFault(f"{self._path} is damaged: it does not say whose it is. {_REMEDY}")
        self.torn = len(content) - whole


def _lock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise JournalFault(f"{path} is locked: another agent of this node runs; stop it first") from None
    return file


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
