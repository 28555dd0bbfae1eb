"""What a mesh in pods holds: each agent's memory and descriptors, each node's kernel, the bus' streams and keys.

Memory of an agent is its anonymous pages (RssAnon, proc(5)): what it allocated; pages of files are the machine's.
Of a NATS server it is what the last collection left alive, half of where the next one begins (``NextGC``; GOGC is 100):
what is not collected yet is no leak. Its monitor listens on the node's loopback.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from lab.cluster import ledger
from lab.cluster.mesh import NATS_MONITOR_PORT
from tests.drills.node_kernel import left
from tests.drills.store import Janitor
from tests.drills.traffic import SERVICES, service_of
from tests.drills.trend import Sample, Series
from tests.labkit import Lab

MIB = 1 << 20
BACK_SECONDS = 120.0
"""Until the kubelet has started again what was killed."""
DEMANDED = "blocks"
"""The bucket whose keys follow demand: a node keeps blocks that it needed once."""
Counts = dict[str, dict[str, int]]


def spared(running: Mapping[str, int], node: str) -> set[str]:
    """What is never killed: all that is one node's, and the first copy of each service."""
    copies = {service: min(name for name in running if service_of(name) == service) for service in SERVICES}
    return {*copies.values(), *(f"{of}-{node}" for of in ("routing", "dataplane", "nats"))}


def victims(names: set[str], chosen: Random) -> Iterator[str]:
    """Without an end: every name once, in an order by chance, which stays."""
    order = sorted(names)
    chosen.shuffle(order)
    return cycle(order)


def anonymous(pid: int) -> float:
    """MiB of anonymous pages of a process. Raises OSError when it has ended."""
    said = Path(f"/proc/{pid}/status").read_text()
    return int(said.split("RssAnon:")[1].split()[0]) / 1024


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@dataclass(frozen=True, slots=True)
class Monitor:
    """The page of one node's server, where `airmesh install` puts it."""

    lab: Lab
    node: str

    def get(self, path: str) -> Any:
        """Raises AssertionError while it does not answer."""
        url = f"http://127.0.0.1:{NATS_MONITOR_PORT}/{path}"
        return json.loads(self.lab.inside(self.node, "curl", "-sf", "-m", "5", url))

    def is_well(self) -> bool:
        """Whether it has caught up with its streams."""
        try:
            return bool(self.get("healthz")["status"] == "ok")
        except AssertionError:
            return False

    def held(self) -> float:
        """MiB that live."""
        return float(self.get("debug/vars")["memstats"]["NextGC"]) / 2 / MIB

    def streams(self) -> Iterator[tuple[str, int, set[str]]]:
        """Of each stream: name, messages, and consumers that this server has."""
        for account in self.get("jsz?streams=true&consumers=true").get("account_details") or ():
            for stream in account.get("stream_detail") or ():
                consumers = {one["name"] for one in stream.get("consumer_detail") or ()}
                yield stream["name"], stream["state"]["messages"], consumers


@dataclass(slots=True)
class Soak:
    """Looks and kills of one drill."""

    lab: Lab
    names: set[str]
    """Of all that is meant to run."""
    memory: dict[str, Series] = field(default_factory=lambda: defaultdict(Series))
    messages: Series = field(default_factory=Series)
    """In all streams."""
    kills: int = 0
    nodes: tuple[str, ...] = ()
    monitors: list[Monitor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = tuple(host.name for host in self.lab.topology.nodes)
        self.monitors = [Monitor(self.lab, node) for node in self.nodes]

    def look(self) -> None:
        """One sample of everything that runs."""
        at = time.monotonic()
        for name, pid in self.lab.containers().items():
            process = pid, ledger.start_time_of(pid)
            try:
                server = service_of(name) == "nats"
                value = Monitor(self.lab, name.partition("-")[2]).held() if server else anonymous(pid)
            except (OSError, AssertionError):  # it ended, or has only begun
                continue
            self.memory[name].samples.append(Sample(at=at, process=process, value=value))
        held = sum(messages for _, messages, _ in self.monitors[-1].streams())
        self.messages.samples.append(Sample(at=at, process=(0, 0), value=float(held)))

    def kill(self, name: str) -> None:
        """With -9, when whatever was killed before is back, and the servers agree."""
        self.lab.until("each server has caught up", lambda: all(one.is_well() for one in self.monitors), BACK_SECONDS)
        self.lab.until("all are back", lambda: self.names == set(self.lab.containers()), BACK_SECONDS)
        self.lab.kill(name)
        self.kills += 1

    def counts(self, store: Janitor) -> Counts:
        """How much there is: of descriptors by service or node's agent, of a node's kernel by kind, of consumers by
        stream, of keys by bucket.
        """
        found = {"descriptors": self._descriptors(), "consumers": self._consumers()}
        keys = store.keys()
        found["keys"] = {stream.removeprefix("KV_").rpartition("_")[0]: len(one) for stream, one in keys.items()}
        blocks = set(self._blocks(store))
        for node in self.nodes:
            found[node] = {kind: len(_beside(lines, blocks)) for kind, lines in left(self.lab, node).items()}
        return found

    def _descriptors(self) -> dict[str, int]:
        """Of copies and servers together: which of them leads, and who is connected to which, changes with kills."""
        found: Counter[str] = Counter()
        for name, pid in self.lab.containers().items():
            service = service_of(name)
            found[service if service in (*SERVICES, "nats") else name] += descriptors(pid)
        return dict(found)

    def _consumers(self) -> dict[str, int]:
        """They are in the memory of one server each."""
        found: dict[str, set[str]] = defaultdict(set)
        for monitor in self.monitors:
            for stream, _, names in monitor.streams():
                found[stream] |= names
        return {stream: len(names) for stream, names in sorted(found.items())}

    def _blocks(self, store: Janitor) -> Iterator[str]:
        for one in store.read("blocks")["blocks"].values():
            if isinstance(one.body, dict) and "cidr" in one.body:
                yield str(one.body["cidr"])


def _beside(lines: object, blocks: set[str]) -> list[str]:
    """Without routes of blocks: of those there are as many as blocks, which are counted."""
    found = [str(line) for line in lines] if isinstance(lines, list) else []
    return [line for line in found if not blocks.intersection(line.split()[:2])]


def more(before: Counts, after: Counts, allowed: Callable[[str, str], int]) -> list[str]:
    """What there is more of than before by more than is ``allowed`` (of a kind and a name)."""
    return [
        f"{kind}, {name}: {before.get(kind, {}).get(name, 0)}, and then {count}"
        for kind, held in after.items()
        for name, count in held.items()
        if count > before.get(kind, {}).get(name, 0) + allowed(kind, name)
    ]
