"""Reads the ring buffer of events in pure Python: mapped memory, no library, no thread.

Owns the consumer's side of BPF_MAP_TYPE_RINGBUF (kernel/bpf/ringbuf.c): one page with the consumer's position, one with
the producer's, then the records twice over, so that one which wraps lies in one piece. A record is an 8-byte header
(length, a busy bit while it is being written, a discard bit) and its bytes, rounded up to 8.

:meth:`EventReader.start` hangs the reader on the event loop. The callback drains at most :data:`BATCH` a turn and
asks to be called again; it never raises (an exception there would spin the loop at some 280 000 wake-ups a second):
a failing sink is counted in ``faults`` and the events of that batch are lost, as flow events may be.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import Callable

from linux import bpf
from services.dataplane.core.datapath.layout import Event

BATCH = 4096
_BUSY, _DISCARD = 1 << 31, 1 << 30
_LENGTH = _DISCARD - 1
_HEADER = 8

Sink = Callable[[list[Event]], None]


class EventReader:
    """The consumer of one ring buffer. There must be only one at a time."""

    def __init__(self, fd: int, sink: Sink) -> None:
        page = mmap.PAGESIZE
        size = bpf.map_info(fd).entries
        self._fd = fd
        self._mask = size - 1
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._records = page
        self._sink = sink
        self._loop: asyncio.AbstractEventLoop | None = None
        self.seen = 0
        """Events handed over."""
        self.faults = 0
        """Batches that the sink failed on, and records of another length than an event's."""

    def start(self) -> None:
        """Hangs the reader on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)
        self._readable()

    def stop(self) -> None:
        """Takes the reader off and unmaps; what was not read waits for the next reader."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None
        self._consumer.close()
        self._producer.close()

    def drain(self, limit: int = BATCH) -> list[Event]:
        """At most ``limit`` events, oldest first; empty when there are none (or one is still being written)."""
        events: list[Event] = []
        size = Event.wire().size
        (position,) = struct.unpack_from("<Q", self._consumer)
        (end,) = struct.unpack_from("<Q", self._producer)
        while position < end and len(events) < limit:
            start = self._records + (position & self._mask)
            (header,) = struct.unpack_from("<I", self._producer, start)
            if header & _BUSY:
                break
            length = header & _LENGTH
            if header & _DISCARD:
                pass
            elif length == size:
                events.append(Event.unpack(self._producer[start + _HEADER : start + _HEADER + length]))
            else:
                self.faults += 1
            position += (_HEADER + length + 7) & ~7
        # One aligned 8-byte store: the kernel may reuse the space from here on.
        struct.pack_into("<Q", self._consumer, 0, position)
        return events

    def _readable(self) -> None:
        try:
            events = self.drain()
            if events:
                self.seen += len(events)
                self._sink(events)
            if len(events) == BATCH and self._loop is not None:
                self._loop.call_soon(self._again)
        except Exception:  # whatever the sink raises must not reach the event loop
            self.faults += 1

    def _again(self) -> None:
        if self._loop is not None:
            self._readable()
