"""The ownership check: which endpoints of other nodes count, kept by what changes.

An endpoint counts when ``blocks`` and ``claims`` let its writer speak of the address, and its identity is among those
that ``policy`` says pods of that node have. Promises: what counts depends on what is known now, not on the order in
which it came, with one exception that is meant: while it is not known who lives where, what counted goes on counting.
A change costs the endpoints that it concerns: a block those within it, a claim those at its address, a node's
residents those of that node.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from kit.holdings import Holdings, Rejection
from proto.addresses import Block, Claim, Endpoint
from proto.identity import FIRST_COMPUTED
from proto.net import Address, Network

K = TypeVar("K", bound=Hashable)

LISTED = 4096
"""Addresses of a network that are looked up one by one; of a larger one all endpoints are gone through."""


class EndpointJudge:
    """See the module. Endpoints are known by their keys in ``endpoints``, nodes by the keys' first segments."""

    def __init__(self) -> None:
        self._holdings = Holdings()
        self._published: dict[str, Endpoint] = {}
        self._writers: dict[str, str] = {}
        """Decoded name of each segment that has written."""
        self._at: dict[Address, set[str]] = {}
        self._of: dict[str, set[str]] = {}
        """Keys by segment."""
        self._residents: dict[str, frozenset[int]] = {}
        self._unreadable: frozenset[str] = frozenset()
        """Segments of nodes whose residents cannot be read."""
        self._asked: bool | None = None
        self._dirty: set[str] = set()
        self.counted: dict[str, Endpoint] = {}
        """What counts, by key."""
        self.rejections: dict[str, Rejection] = {}
        """What does not, by key."""
        self.strange_since: dict[str, tuple[int, float]] = {}
        """Identity of an endpoint that is not among its node's residents, and since when."""

    @property
    def pending(self) -> int:
        """Endpoints that are to be judged again."""
        return len(self._dirty)

    def publish(self, key: str, writer: str, endpoint: Endpoint | None) -> None:
        """What stands at a key; ``writer`` is the node that the bus lets write there. None: nothing."""
        before = self._published.get(key)
        if before is endpoint:
            return
        segment = key[: key.index(".")]
        if before is not None:
            _take_out(self._at, before.address, key)
        if endpoint is None:
            del self._published[key]
            _take_out(self._of, segment, key)
        else:
            self._published[key] = endpoint
            self._writers[segment] = writer
            self._at.setdefault(endpoint.address, set()).add(key)
            self._of.setdefault(segment, set()).add(key)
        self._dirty.add(key)

    def set_block(self, cidr: Network, block: Block | None) -> None:
        """The block of a network."""
        self._holdings.set_block(cidr, block)
        if cidr.num_addresses <= LISTED:
            for address in cidr:
                self._dirty |= self._at.get(address, set())
        else:
            for address, keys in self._at.items():
                if address in cidr:
                    self._dirty |= keys

    def set_claim(self, address: Address, claim: Claim | None) -> None:
        """The claim on an address."""
        self._holdings.set_claim(address, claim)
        self._dirty |= self._at.get(address, set())

    def set_residents(self, segment: str, identities: Iterable[int]) -> None:
        """Identities that pods of a node have."""
        found = frozenset(identity for identity in identities if identity >= FIRST_COMPUTED)
        if found != self._residents.get(segment, frozenset()):
            self._residents[segment] = found
            self._dirty |= self._of.get(segment, set())
        if not found:
            self._residents.pop(segment, None)

    def ask_residents(self, asked: bool | None, unreadable: Iterable[str] = ()) -> None:
        """Whether residents decide (None while it is not known), and the segments whose residents cannot be read."""
        now_unreadable = frozenset(unreadable)
        if asked is not self._asked:
            self._asked = asked
            self._dirty |= self._published.keys()
        for segment in now_unreadable ^ self._unreadable:
            self._dirty |= self._of.get(segment, set())
        self._unreadable = now_unreadable

    def settle(self, now: float, limit: int | None = None) -> set[str]:
        """Judges what changed, at most ``limit`` endpoints of it. Keys of which something else is believed."""
        keys = set(self._dirty) if limit is None else {self._dirty.pop() for _ in range(min(limit, len(self._dirty)))}
        self._dirty -= keys
        return {key for key in keys if self._judge(key, now)}

    def young(self, lasting: float) -> Mapping[Address, float]:
        """Addresses whose identity has not been among its node's residents for ``lasting`` seconds, and until when."""
        return {
            self.rejections[key].address: since + lasting
            for key, (identity, since) in self.strange_since.items()
            if identity >= FIRST_COMPUTED
        }

    def _judge(self, key: str, now: float) -> bool:
        endpoint, before = self._published.get(key), self.counted.get(key)
        self.rejections.pop(key, None)
        since = self.strange_since.pop(key, None)
        if endpoint is None:
            return self.counted.pop(key, None) is not None
        segment = key[: key.index(".")]
        rejection = self._holdings.rejection(self._writers[segment], endpoint)
        if rejection is None and endpoint.identity not in self._residents.get(segment, ()):
            rejection = self._stranger(segment, endpoint, before)
            if rejection is not None:
                same = since is not None and since[0] == endpoint.identity
                self.strange_since[key] = since if same and since is not None else (endpoint.identity, now)
        if rejection is not None:
            self.rejections[key] = rejection
            return self.counted.pop(key, None) is not None
        self.counted[key] = endpoint
        return endpoint is not before

    def _stranger(self, segment: str, endpoint: Endpoint, before: Endpoint | None) -> Rejection | None:
        """Why an identity that is not among its node's residents does not count; None when it does."""
        identity, writer = endpoint.identity, self._writers[segment]
        if identity < FIRST_COMPUTED:
            return Rejection(writer, endpoint.address, f"identity {identity} is one that no pod has", leftover=False)
        if self._asked is False:
            return None
        undecided = self._asked is None or segment in self._unreadable
        if undecided and before is not None and (before.identity, before.mac) == (identity, endpoint.mac):
            return None
        why = f"no pod of {writer} has identity {identity:016x}"
        return Rejection(writer, endpoint.address, why, leftover=undecided)


def _take_out(index: dict[K, set[str]], where: K, key: str) -> None:
    keys = index[where]
    keys.discard(key)
    if not keys:
        del index[where]
