"""Names in samples of a pod's DNS: which are asked for most, and which queries a search list made in vain.

The most frequent names are found by the Space-Saving algorithm (Metwally, Agrawal, El Abbadi 2005): a bounded number of
names is counted, and a newcomer takes the place and the count of the rarest. A search list (resolv.conf(5) ``search``,
``ndots``) is seen by its trace: a name that does not exist, and next the same first labels with fewer after them that
do. A suffix that the node's own search list adds in place of the cluster's leaves no such trace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.dataplane.core.datapath.dns_layout import DnsOutcome
from services.dataplane.core.monitor.dns_counts import Sample

MAX_COUNTED = 32
"""Names of a pod that are counted at a time."""
MAX_PENDING = 16
"""Names that did not exist, of which the next answers say whether a search list made them."""
_EXISTS = (DnsOutcome.USEFUL, DnsOutcome.EMPTY)


def text_of(sample: Sample, longest: int) -> str:
    """The name as people write it, without the final dot; what is cut ends with ``...``."""
    name = ".".join(sample.labels) or "."
    if sample.is_whole and len(name) <= longest:
        return name
    return name[: longest - 3] + "..."


@dataclass(slots=True)
class NameCount:
    """What samples said of one name."""

    sampled: int = 0
    nxdomain: int = 0
    retried: int = 0


@dataclass(slots=True)
class TopNames:
    """The most frequent names of a stream of samples."""

    counts: dict[str, NameCount] = field(default_factory=dict)
    sampled: int = 0

    def add(self, name: str, outcome: DnsOutcome) -> None:
        """Counts one sample."""
        self.sampled += 1
        count = self.counts.get(name)
        if count is None:
            least = 0
            if len(self.counts) >= MAX_COUNTED:
                rarest = min(self.counts, key=lambda one: self.counts[one].sampled)
                least = self.counts.pop(rarest).sampled
            count = self.counts[name] = NameCount(sampled=least)
        count.sampled += 1
        count.nxdomain += outcome is DnsOutcome.NXDOMAIN
        count.retried += outcome is DnsOutcome.RETRIED


def most(parts: Iterable[TopNames], count: int) -> list[tuple[str, NameCount]]:
    """The names most sampled in all parts together, with their counts; of as many by name."""
    total: dict[str, NameCount] = {}
    for part in parts:
        for name, one in part.counts.items():
            mine = total.setdefault(name, NameCount())
            mine.sampled += one.sampled
            mine.nxdomain += one.nxdomain
            mine.retried += one.retried
    return sorted(total.items(), key=lambda item: (-item[1].sampled, item[0]))[:count]


def is_search_of(longer: tuple[str, ...], name: tuple[str, ...]) -> bool:
    """Whether ``longer`` is ``name`` with labels put in after its first ones: what a search list asks for before it."""
    if len(longer) <= len(name):
        return False
    same = next((at for at, (one, other) in enumerate(zip(longer, name, strict=False)) if one != other), len(name))
    rest = next(
        (at for at, (one, other) in enumerate(zip(longer[::-1], name[::-1], strict=False)) if one != other), len(name)
    )
    return same > 0 and same + rest >= len(name)


@dataclass(slots=True)
class SearchList:
    """Answers that a name does not exist, and how many of them a search list asked for in vain."""

    sampled_nxdomain: int = 0
    searched: int = 0
    _pending: deque[tuple[str, ...]] = field(default_factory=lambda: deque(maxlen=MAX_PENDING))

    def add(self, sample: Sample) -> None:
        """Reads one sample, in the order of the answers."""
        if sample.outcome is DnsOutcome.NXDOMAIN:
            self.sampled_nxdomain += 1
            if sample.is_whole:
                self._pending.append(sample.labels)
        elif sample.outcome in _EXISTS and sample.is_whole:
            left = [one for one in self._pending if not is_search_of(one, sample.labels)]
            self.searched += len(self._pending) - len(left)
            self._pending = deque(left, maxlen=MAX_PENDING)
