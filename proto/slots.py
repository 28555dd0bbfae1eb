"""Slots: the keys of a bucket of which each node has a fixed number, whatever it writes.

A server's allow-list can say below which prefix a node writes, not how many keys. So a bucket of slots has its stream
rename what is written to ``<node>.slot.<name>``: the server makes of any name a number below :data:`SLOTS`
(``partition`` of https://docs.nats.io/nats-concepts/subject_mapping, FNV-1a of 32 bits), and keeps one value for each.
Whoever means one slot writes to a name that becomes its number (:func:`written`); everybody reads the number.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count

SLOTS = 8192
"""Of a node: one for each address that 4,096 links can have."""
SLOT = "slot"


def slot_key(node_segment: str, number: int) -> str:
    """Key of a slot as it stands in the bucket; ``node_segment`` encoded. Raises ValueError for a number of no slot."""
    if not 0 <= number < SLOTS:
        raise ValueError(f"slot {number} is not from 0 to below {SLOTS}")
    return f"{node_segment}.{SLOT}.{number}"


def slot_of(key: str) -> int | None:
    """Number of the slot that a key names as it stands in the bucket; None for any other key."""
    _, _, rest = key.partition(".")
    what, _, number = rest.partition(".")
    if what != SLOT or not (number.isascii() and number.isdigit()) or len(number) > len(str(SLOTS)):
        return None
    return int(number) if int(number) < SLOTS and str(int(number)) == number else None


def written(key: str) -> str:
    """Where a key is written: for a slot under a name that the server makes its number, else where it stands."""
    number = slot_of(key)
    return key if number is None else f"{key[: key.rindex('.')]}.{_names()[number]}"


def numbered(name: str) -> int:
    """Number that the server makes of a slot's name."""
    state = 0x811C9DC5
    for byte in name.encode():
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return state % SLOTS


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    """By number: the first that hits it of all hexadecimal numbers (some 80,000, 30 ms once)."""
    found: dict[int, str] = {}
    for number in count():
        found.setdefault(numbered(f"{number:x}"), f"{number:x}")
        if len(found) == SLOTS:
            break
    return tuple(found[number] for number in range(SLOTS))
