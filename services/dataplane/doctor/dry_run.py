"""A dry run: the node's own programs on a packet that nobody sent (BPF_PROG_TEST_RUN), without a trace of it.

The same bytecode is loaded once more, hung nowhere. It reads the very maps that decide on live packets (policy,
addresses, Services, tunnels) and asks the kernel's own routing table. What packets change (conntrack, its budgets,
counters, events, the scratch memory) is its own, made for it and gone with it: a flow that it begins takes nobody's
place, counts for nobody, and is known to the later packets of the same dry run alone. The programs that are hung cannot
do that: a test run of them changes their maps for real, and meets a live packet in their scratch memory.

``bpf_redirect`` only notes where a packet would go, and a test run does not look there: nothing leaves. Blocking: some
350 ms of a processor to open (the verifier), a millisecond a run. Acts in the network namespace of the calling thread,
which is to be the node's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from linux import bpf
from proto.flow import DropReason
from proto.policy import Direction
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import maps as m
from services.dataplane.core.datapath.layout import MapKind
from services.dataplane.core.datapath.maps import MapSpec
from services.dataplane.core.doctor.probes import Counted, DryPacket
from services.dataplane.datapath.programs import Datapath
from services.dataplane.datapath.tables import create
from services.dataplane.monitor.ring import EventReader

FROM_POD, FROM_WIRE = "from_pod", "from_wire"
FEW = 64
"""Entries of its own hashes."""
_PAGE = 4096
_WHOLE = (m.PEERS, m.METRICS)
"""Arrays that programs look into at any place; of the others the first is enough."""
_REFUSE_PLAIN = at.ConfigFlag.REFUSE_PLAIN4 | at.ConfigFlag.REFUSE_PLAIN6
_FIRST = at.Index(index=0).pack()
_FIB_BYTES = 64


class DryRun:
    """Programs of their own, until :meth:`close`. Make it with :meth:`open`."""

    def __init__(self, datapath: Datapath, own: dict[str, int], programs: dict[str, int], stack: ExitStack) -> None:
        self._tables = datapath.tables
        self._hung = datapath.programs
        self._own = own
        self._programs = programs
        self._stack = stack
        self._events = EventReader(own[m.EVENTS.name], lambda events: None)
        stack.callback(self._events.stop)
        self._counted = self._counters()

    @classmethod
    def open(cls, datapath: Datapath, names: Collection[str] = (FROM_POD, FROM_WIRE)) -> Self:
        """Loads the programs of these names. Raises BpfError when the kernel has no memory for it."""
        with ExitStack() as stack:
            own: dict[str, int] = {}
            for spec in (*m.PACKETS_CHANGE, m.CONFIG):
                own[spec.name] = create(spec, _entries(spec))
                stack.callback(os.close, own[spec.name])
            programs = datapath.load_apart(names, own)
            for descriptor in programs.values():
                stack.callback(os.close, descriptor)
            return cls(datapath, own, programs, stack.pop_all())

    def close(self) -> None:
        """Programs and maps of the dry run are gone afterwards."""
        self._stack.close()

    def is_of(self, datapath: Datapath) -> bool:
        """Whether these are still the programs and maps that run there: an upgrade or a larger map replaces them."""
        return self._hung is datapath.programs

    def begin(self, endpoints: Iterable[int]) -> None:
        """Forgets the packets so far. What these endpoints and the node may have of conntrack, and have, is as now."""
        for spec in (m.FLOWS, m.BUDGETS):
            found = list(bpf.lookup_batch(self._own[spec.name], spec.key_size, spec.value_size, FEW))
            for _, keys, _ in found:
                bpf.delete_batch(self._own[spec.name], keys, spec.key_size)
        bpf.update(self._own[m.RECENT.name], _FIRST, bytes(m.RECENT.value_size))
        for endpoint in (at.NODE, *endpoints):
            key = at.EndpointKey(endpoint=endpoint)
            if (budget := self._tables.budgets.get(key)) is not None:
                bpf.update(self._own[m.BUDGETS.name], key.pack(), replace(budget, first=0, mask=0).pack())

    def run(self, program: str, frame: bytes, ifindex: int, *, decrypted: bool = False) -> DryPacket:
        """One packet, received by an interface. ``decrypted``: it came by WireGuard, so it is not asked how it came."""
        config = self._tables.config
        flags = config.flags & ~_REFUSE_PLAIN if decrypted else config.flags
        config = at.Config(flags=flags | at.ConfigFlag.EMIT_FORWARDED, events_per_second=1000, events_burst=1000)
        bpf.update(self._own[m.CONFIG.name], _FIRST, config.pack())
        blank = bytes(m.SCRATCH.value_size * bpf.processors())
        bpf.update(self._own[m.SCRATCH.name], _FIRST, blank)
        # struct __sk_buff: ingress_ifindex, ifindex
        ran = bpf.run_on(self._programs[program], frame, context=struct.pack("<36xII", ifindex, ifindex))
        before, self._counted = self._counted, self._counters()
        return DryPacket(
            action=ran.value,
            frame=ran.packet,
            events=tuple(self._events.drain()),
            counted=frozenset(one for one, count in self._counted.items() if count != before.get(one, 0)),
            fib=self._fib(),
        )

    def _fib(self) -> bytes:
        """Of whichever processor it ran on."""
        size = m.SCRATCH.value_size
        raw = bpf.lookup_per_cpu(self._own[m.SCRATCH.name], _FIRST, size) or b""
        answers = (raw[start + at.WORK_FIB :][:_FIB_BYTES] for start in range(0, len(raw), size))
        return next((one for one in answers if any(one)), bytes(_FIB_BYTES))

    def _counters(self) -> dict[Counted, int]:
        found: dict[Counted, int] = {}
        for reason in DropReason:
            for direction in Direction:
                key = at.Index(index=reason * 2 + direction).pack()
                raw = bpf.lookup_per_cpu(self._own[m.METRICS.name], key, m.METRICS.value_size) or b""
                found[reason, direction] = sum(struct.unpack(f"<{len(raw) // 8}Q", raw)[::2])
        return found


def _entries(spec: MapSpec) -> int:
    if spec.kind is MapKind.RINGBUF:
        return _PAGE
    if spec.kind in (MapKind.ARRAY, MapKind.PERCPU_ARRAY):
        return spec.entries if spec in _WHOLE else 1
    return FEW
