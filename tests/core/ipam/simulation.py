"""A cluster in one thread: copies of ipam over simulated buckets that lie, stall and forget, driven by one seed.

The buckets are compare-and-set registers with a log. Each call waits its turn; the scheduler picks whose turn it is
and may answer "no answer" before the call took effect, after it did, or let it take effect later. Each copy looks at
the logs as far as it has got, in order, which may be far behind; copies die in the middle of anything. What is given
is judged by :class:`Books`, which knows nothing of how ipam works.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, TypeVar

from chassis.bus.entry import Entry
from chassis.bus.kv import Conflict
from chassis.faults import Refused, Unavailable
from kit.pools import judge_pools
from proto.addresses import Block, Claim, OwnerRecord
from proto.codec import owner_key
from proto.net import Address, Network
from proto.objects import IPPool, Node, Owner, Pod
from services.ipam.block_allocation import BlockAllocation
from services.ipam.claims import Claims
from services.ipam.core.claims import RECOVERED, sweep
from services.ipam.core.seen import Seen
from services.ipam.store import compare_and_set, delete_exactly

T = TypeVar("T")
POOL = IPPool(name="p", cidr=ip_network("10.0.0.0/24"), block_size=28)
POOLS = judge_pools([POOL])
NODES = {name: Node(name=name, uid=f"uid-{name}", ready=True) for name in ("n1", "n2", "n3")}
GRACE, COOLDOWN = 400.0, 60.0
"""Turns of the scheduler."""


class Scheduler:
    """Who goes next. Time is the number of turns taken."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def step(self) -> None:
        """Wait to be picked."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    async def run(self, until: asyncio.Future[Any], most: int) -> None:
        """Pick one after the other until the future is done."""
        while not until.done():
            for _ in range(4):
                await asyncio.sleep(0)
            self.now += 1
            if self.now > most:
                raise AssertionError("the simulation does not come to an end")
            self._waiting = [waiting for waiting in self._waiting if not waiting.done()]
            if self._waiting:
                self._waiting.pop(self.chance.randrange(len(self._waiting))).set_result(None)


class Bucket:
    """One bucket: registers by key, and the log of all changes."""

    def __init__(self, scheduler: Scheduler, faults: float) -> None:
        self._scheduler = scheduler
        self._faults = faults
        self._now: dict[str, tuple[Any, int]] = {}
        self._last: dict[str, int] = {}
        self.log: list[tuple[str, Any]] = []

    async def get(self, key: str, kind: type[T]) -> Entry[T] | None:
        await self._scheduler.step()
        if self._scheduler.chance.random() < self._faults:
            raise Unavailable("no answer")
        found = self._now.get(key)
        return None if found is None else Entry(key, found[0], found[1])

    async def create(self, key: str, value: Any, *, mend: bool = False) -> int | Conflict:
        return await self._change(key, lambda: key not in self._now, value)

    async def update(self, key: str, value: Any, revision: int) -> int | Conflict:
        return await self._change(key, lambda: self._last.get(key, 0) == revision, value)

    async def put(self, key: str, value: Any) -> int:
        written = await self._change(key, lambda: True, value)
        assert isinstance(written, int)
        return written

    async def delete(self, key: str, revision: int | None = None) -> Conflict | None:
        done = await self._change(key, lambda: revision in (None, self._last.get(key, 0)), None)
        return done if isinstance(done, Conflict) else None

    async def _change(self, key: str, holds: Callable[[], bool], value: Any) -> int | Conflict:
        await self._scheduler.step()
        luck = self._scheduler.chance.random()
        if luck < self._faults / 3:
            raise Unavailable("lost on the way there")
        if luck < self._faults * 2 / 3:
            self._later.append(asyncio.ensure_future(self._delayed(key, holds, value)))
            raise Unavailable("stuck on the way there")
        outcome = self._apply(key, holds, value)
        if luck < self._faults:
            raise Unavailable("the answer was lost")
        return outcome

    _later: list[asyncio.Future[None]] = []  # noqa: RUF012 - kept from the garbage collector, for all buckets

    async def _delayed(self, key: str, holds: Callable[[], bool], value: Any) -> None:
        for _ in range(self._scheduler.chance.randrange(1, 12)):
            await self._scheduler.step()
        self._apply(key, holds, value)

    def _apply(self, key: str, holds: Callable[[], bool], value: Any) -> int | Conflict:
        if not holds():
            return Conflict(key, 0)
        self.log.append((key, value))
        revision = len(self.log)
        self._last[key] = revision
        if value is None:
            self._now.pop(key, None)
        else:
            self._now[key] = (value, revision)
        return revision

    def values(self) -> list[Any]:
        return [value for value, _ in self._now.values()]


@dataclass
class View:
    """How far one copy has got in one log."""

    bucket: Bucket
    at: int = 0
    entries: dict[str, Any] = field(default_factory=dict)

    def move(self, to: int) -> None:
        for key, value in self.bucket.log[self.at : to]:
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = value
        self.at = max(self.at, to)


class Cluster:
    """Buckets, pods, copies."""

    def __init__(self, seed: int, faults: float, copies: int = 2) -> None:
        self.chance = random.Random(seed)
        self.scheduler = Scheduler(self.chance)
        self.blocks, self.owners, self.claims = (Bucket(self.scheduler, faults) for _ in range(3))
        self.objects = Bucket(self.scheduler, 0.0)
        self.copies = [Copy(self) for _ in range(copies)]
        self.books = Books(self.scheduler)

    def restart_one(self) -> None:
        """A copy dies in the middle of whatever it does; a new one knows nothing yet."""
        index = self.chance.randrange(len(self.copies))
        self.copies[index].die()
        self.copies[index] = Copy(self)

    async def ask(self, call: Callable[[Copy], Any]) -> Any:
        """Through any copy; raises Unavailable when it dies."""
        copy = self.chance.choice(self.copies)
        return await copy.serve(call(copy))


class Copy:
    """One process of ipam: the real shell over simulated buckets."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._views = [View(bucket) for bucket in (cluster.blocks, cluster.owners, cluster.claims, cluster.objects)]
        for view in self._views:
            view.move(len(view.bucket.log))
        clock = lambda: 1000.0  # noqa: E731
        step = cluster.scheduler.step
        self.allocation = BlockAllocation(cluster.blocks, self.look, step, clock)
        self.address_claims = Claims(
            cluster.owners, cluster.claims, self.allocation, self.look, step, lambda _: None, clock
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._since: Any = {}
        self._born = cluster.scheduler.now

    def look(self) -> Seen:
        """Every look may see more, or nothing new."""
        for view in self._views:
            behind = len(view.bucket.log) - view.at
            if behind and self._cluster.chance.random() < 0.5:
                view.move(view.at + self._cluster.chance.randint(1, behind))
        blocks, owners, claims, objects = (view.entries for view in self._views)
        by_cidr: dict[Network, Block] = {block.cidr: block for block in blocks.values()}
        by_owner: dict[tuple[Owner, int], OwnerRecord] = {(r.owner, r.address.version): r for r in owners.values()}
        by_address: dict[Address, Claim] = {claim.address: claim for claim in claims.values()}
        pods: dict[str, Pod] = {pod.uid: pod for pod in objects.values()}
        return Seen(
            blocks=by_cidr, owners=by_owner, claims=by_address, nodes=NODES, pods=pods, pools=POOLS, complete=True
        )

    async def serve(self, work: Any) -> Any:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            asker = asyncio.current_task()
            if asker is not None and asker.cancelling():
                raise  # the asker is ended, not the copy
            raise Unavailable("the copy died") from None
        finally:
            self._tasks.discard(task)

    def die(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def sweep(self) -> None:
        seen = self.look()
        found = sweep(
            seen.owners,
            seen.claims,
            seen.pods.values(),
            self._since,
            now=float(self._cluster.scheduler.now),
            grace=GRACE,
            cooldown=COOLDOWN,
        )
        self._since = found.since
        for owner, address in found.restore:
            record = OwnerRecord(owner, address, "p", RECOVERED)
            await compare_and_set(self._cluster.owners, owner_key(owner, 4), record, None)
        for record in found.forget:
            key = next(key for key, value in self._views[1].entries.items() if value == record)
            await delete_exactly(self._cluster.owners, key, record)
        for claim in found.free:
            key = next(key for key, value in self._views[2].entries.items() if value == claim)
            await delete_exactly(self._cluster.claims, key, claim)


class Books:
    """Who uses what, from the outside."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._blocks: dict[Network, str] = {}
        self._used: dict[Address, str] = {}
        self._left: dict[Address, tuple[Owner, int]] = {}
        self._address: dict[Owner, Address] = {}
        self._last: dict[Owner, int] = {}
        self.allocation = 0
        self.moves = 0

    def block(self, nonce: str, node: str, cidr: Network) -> None:
        assert self._blocks.setdefault(cidr, node) == node, f"block {cidr} was given to two nodes"
        self.allocation += 1

    def begins(self, pod: str, owner: Owner, address: Address) -> None:
        assert self._used.get(address, pod) == pod, f"{address} is used by {self._used[address]} and {pod}"
        if self._used.get(address) == pod:
            return
        before = self._left.get(address)
        if before is not None and before[0] != owner:
            assert self._scheduler.now - before[1] >= COOLDOWN, f"{address} was given to another owner without rest"
        known = self._address.get(owner)
        if known is not None and self._scheduler.now - self._last[owner] < GRACE:
            assert known == address, f"{owner.name} had {known} and was given {address}"
            self.moves += 1
        self._used[address] = pod
        self._address[owner] = address
        self._last[owner] = self._scheduler.now
        assert not any(cidr.version == address.version and address in cidr for cidr in self._blocks)

    def ends(self, pod: str, owner: Owner) -> None:
        for address, user in list(self._used.items()):
            if user == pod:
                del self._used[address]
                self._left[address] = (owner, self._scheduler.now)
                self._last[owner] = self._scheduler.now


__all__ = ["NODES", "Books", "Bucket", "Cluster", "Copy", "Refused", "Scheduler"]
