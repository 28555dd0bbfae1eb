"""BPF objects behind a lab's pins: which there are, and whether they still exist once the pins are gone.

A map, program or link lives as long as anything holds it: a pin, a descriptor, an attachment. So the proof that a lab
left none is not that its pins are gone but that the kernel no longer knows their ids. bpf(2) by its number, x86-64;
attributes and info as in include/uapi/linux/bpf.h (every info struct begins with type and id).
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NR_BPF = 321
_OBJ_GET, _OBJ_GET_INFO_BY_FD = 7, 15
_GET_FD_BY_ID = {"map": 14, "prog": 13, "link": 30}
_ATTRIBUTE_BYTES, _INFO_BYTES = 128, 256


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BpfObject:
    """`kind`: map, prog or link. `number`: the kernel's id, given once."""

    kind: str
    number: int
    pin: str


def _bpf(command: int, attributes: bytes) -> int:
    """The syscall's result. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTE_BYTES)
    result = int(libc.syscall(_NR_BPF, command, buffer, len(buffer)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _opened(pin: Path) -> int:
    path = ctypes.create_string_buffer(os.fsencode(pin))
    return _bpf(_OBJ_GET, struct.pack("QII", ctypes.addressof(path), 0, 0))


def _kind(descriptor: int) -> str:
    """What a descriptor is, from the kernel's own name of it: `anon_inode:bpf-map`, `bpf-prog`, `bpf_link`."""
    return os.readlink(f"/proc/self/fd/{descriptor}").removeprefix("anon_inode:").strip("[]")[4:].replace("_", "-")


def _number(descriptor: int) -> int:
    info = ctypes.create_string_buffer(_INFO_BYTES)
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("IIQ", descriptor, _INFO_BYTES, ctypes.addressof(info)))
    return int(struct.unpack_from("II", info)[1])


def behind(pins: Iterable[Path]) -> set[BpfObject]:
    """The objects of `pins`; one that cannot be opened (gone meanwhile) is left out."""
    found = set()
    for pin in pins:
        try:
            descriptor = _opened(pin)
        except OSError:
            continue
        try:
            found.add(BpfObject(kind=_kind(descriptor), number=_number(descriptor), pin=str(pin)))
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return found


def exists(one: BpfObject) -> bool:
    """Whether the kernel still knows it."""
    try:
        os.close(_bpf(_GET_FD_BY_ID[one.kind], struct.pack("III", one.number, 0, 0)))
    except OSError as answer:
        return answer.errno != errno.ENOENT
    return True
