"""A map replaced by a larger one, with all that is in it.

Owns the copy and its place on bpffs. In this order: :class:`Replacement` makes the larger map and copies; ``take_over``
puts it at the pin of the old one (a crash from here on finds it there, and the next start loads the programs against
it); then whoever holds the programs loads them against the new descriptors and switches link by link; ``catch_up``
brings over what the old programs had written meanwhile. An entry that both have written since is the new programs'.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from linux import bpf
from services.dataplane.core.datapath.maps import PROGRAMS_WRITE, MapSpec
from services.dataplane.datapath.tables import create


class Replacement:
    """One map being replaced. Raises BpfError (ENOMEM) when there is no memory for it; nothing has changed then."""

    def __init__(self, spec: MapSpec, pin: Path, old: int, entries: int) -> None:
        self.spec = spec
        self.old = old
        self.fd = create(spec, entries)
        self._pin = pin
        self._copied: dict[bytes, int] = {}
        try:
            for count, keys, values in bpf.lookup_batch(old, spec.key_size, spec.value_size):
                bpf.update_batch(self.fd, keys, values, count)
                if spec in PROGRAMS_WRITE:
                    self._copied.update((key, hash(value)) for key, value in self._split(keys, values))
        except BaseException:
            os.close(self.fd)
            raise

    def take_over(self) -> None:
        """Puts the new map at the old one's pin, in one step."""
        beside = self._pin.with_name(f"{self._pin.name}-new")
        with suppress(FileNotFoundError):
            beside.unlink()
        bpf.pin(self.fd, beside)
        beside.rename(self._pin)

    def catch_up(self) -> None:
        """Copies what the old programs wrote between the copy and the switch."""
        if self.spec not in PROGRAMS_WRITE:
            return
        for _, keys, values in bpf.lookup_batch(self.old, self.spec.key_size, self.spec.value_size):
            for key, value in self._split(keys, values):
                copied = self._copied.get(key)
                if copied == hash(value):
                    continue
                now = bpf.lookup(self.fd, key, self.spec.value_size)
                if now is None or hash(now) == copied:
                    bpf.update_batch(self.fd, key, value, 1)

    def close(self) -> None:
        """Lets go of the old map, which goes away with the programs that used it."""
        self._copied.clear()
        os.close(self.old)

    def give_up(self) -> None:
        """Lets go of the new map instead, before :meth:`take_over`."""
        os.close(self.fd)

    def _split(self, keys: bytes, values: bytes) -> list[tuple[bytes, bytes]]:
        k, v = self.spec.key_size, self.spec.value_size
        return [(keys[n * k : n * k + k], values[n * v : n * v + v]) for n in range(len(keys) // k)]
