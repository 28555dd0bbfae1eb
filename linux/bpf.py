"""bpf(2) by ctypes: maps, programs, links, pins and test runs, with typed errors.

No libbpf, no bcc: the agent stays small. Every function is one system call (batches: a few) and takes microseconds;
loading a program or making a large map takes milliseconds. File descriptors are plain integers that the caller closes.
Layouts of ``union bpf_attr`` are those of include/uapi/linux/bpf.h. ``link_create`` resolves an interface index in the
*caller's* network namespace: a wrong namespace silently means another interface.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361}.get(
    platform.machine(), -1
)
"""arch/*/tools/syscall.tbl and include/uapi/asm-generic/unistd.h; on any other machine each call is ENOSYS."""
_LOG_BYTES = 1 << 22
_POSSIBLE = Path("/sys/devices/system/cpu/possible")


class Command(IntEnum):
    """``enum bpf_cmd``."""

    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_INFO = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_DETACH = 34


class ProgramKind(IntEnum):
    """``enum bpf_prog_type``: those we use."""

    SCHED_CLS = 3
    CGROUP_SOCK = 9
    CGROUP_SOCK_ADDR = 18


class AttachKind(IntEnum):
    """``enum bpf_attach_type``: those we use."""

    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class LinkKind(IntEnum):
    """``enum bpf_link_type``: those we use."""

    CGROUP = 3
    TCX = 11


class BpfError(OSError):
    """A refused bpf(2) call; ``errno`` says why, ``command`` what was asked, ``log`` what the verifier said."""

    def __init__(self, command: Command, code: int, what: str = "", log: str = "") -> None:
        super().__init__(code, f"bpf {command.name} {what}: {os.strerror(code)}{log and chr(10) + log[-3000:]}")
        self.command = command
        self.log = log


@dataclass(frozen=True, slots=True)
class MapInfo:
    """``struct bpf_map_info``, the part that says what a map is."""

    kind: int
    id: int
    key_size: int
    value_size: int
    entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """``struct bpf_prog_info``, the part that says which program this is."""

    id: int
    tag: str
    instructions: int
    verified: int
    """Instructions the verifier went through: the cost of a load, at most a million."""


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """``struct bpf_link_info``. ``target`` is an ifindex or a cgroup id; 0 when the link hangs in the air."""

    kind: int
    id: int
    program: int
    target: int
    attach: int


@dataclass(frozen=True, slots=True)
class Run:
    """A test run: the program's return value, mean nanoseconds a run, the packet afterwards."""

    value: int
    nanoseconds: int
    packet: bytes


def _call(command: Command, attr: bytes, what: str = "", expected: tuple[int, ...] = ()) -> tuple[int, bytes]:
    """One bpf(2). Returns (result, the attribute afterwards); an errno in ``expected`` is returned negative."""
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = _LIBC.syscall(_NR_BPF, ctypes.c_int(command), ctypes.byref(buffer), ctypes.c_uint(len(attr)))
    if result < 0:
        code = ctypes.get_errno()
        if code not in expected:
            raise BpfError(command, code, what)
        result = -code
    return int(result), buffer.raw


def _at(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return 0 if buffer is None else ctypes.addressof(buffer)


def _buffer(raw: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(raw, max(len(raw), 1))


def map_create(kind: int, key_size: int, value_size: int, entries: int, *, flags: int = 0, name: str = "") -> int:
    """A new map's descriptor. Raises BpfError: EPERM without CAP_BPF, ENOMEM when too large."""
    attr = struct.pack("<IIIIIII16s", kind, key_size, value_size, entries, flags, 0, 0, name.encode()[:15])
    return _call(Command.MAP_CREATE, attr, name)[0]


def map_info(fd: int) -> MapInfo:
    """What kind of map a descriptor is."""
    raw = _info(fd)
    kind, ident, key_size, value_size, entries, flags = struct.unpack_from("<IIIIII", raw)
    return MapInfo(kind, ident, key_size, value_size, entries, flags, raw[24:40].rstrip(b"\0").decode())


def program_info(fd: int) -> ProgramInfo:
    """Which program a descriptor is."""
    raw = _info(fd)
    verified = struct.unpack_from("<I", raw, 216)[0] if len(raw) >= 220 else 0
    return ProgramInfo(
        id=struct.unpack_from("<I", raw, 4)[0],
        tag=raw[8:16].hex(),
        instructions=struct.unpack_from("<I", raw, 20)[0] // 8,
        verified=verified,
    )


def link_info(fd: int) -> LinkInfo:
    """Where a link is attached, and which program it runs."""
    raw = _info(fd)
    kind, ident, program = struct.unpack_from("<III", raw)
    # The union begins at 16: cgroup {u64 cgroup_id; u32 attach_type}, tcx {u32 ifindex; u32 attach_type}.
    target, attach = struct.unpack_from("<QI" if kind == LinkKind.CGROUP else "<II", raw, 16)
    return LinkInfo(kind=kind, id=ident, program=program, target=target, attach=attach)


_BY_ID = {"map": Command.MAP_GET_FD_BY_ID, "prog": Command.PROG_GET_FD_BY_ID, "link": Command.LINK_GET_FD_BY_ID}


def identify(fd: int) -> tuple[str, int]:
    """What a descriptor is, ``map``, ``prog`` or ``link``, and its id, which the kernel gives once. The kind is read
    from the kernel's own name of it: ``anon_inode:bpf-map``, ``bpf-prog``, ``bpf_link``. Raises OSError.
    """
    kind = os.readlink(f"/proc/self/fd/{fd}").removeprefix("anon_inode:").strip("[]")[4:]
    return kind, struct.unpack_from("<I", _info(fd), 4)[0]  # every info struct begins with type and id


def exists(kind: str, number: int) -> bool:
    """Whether the kernel still knows an object of :func:`identify`: anything may hold it, a pin is only one of them."""
    result, _ = _call(_BY_ID[kind], struct.pack("<III", number, 0, 0), f"{kind} {number}", (errno.ENOENT,))
    if result >= 0:
        os.close(result)
    return result >= 0


def _info(fd: int, size: int = 256) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    _, attr = _call(Command.OBJ_INFO, struct.pack("<IIQ", fd, size, _at(buffer)))
    return buffer.raw[: struct.unpack_from("<I", attr, 4)[0]]


def pin(fd: int, path: Path) -> None:
    """Gives an object a name on bpffs that keeps it alive. A dot in the name is EPERM there."""
    name = _buffer(os.fsencode(path) + b"\0")
    _call(Command.OBJ_PIN, struct.pack("<QII", _at(name), fd, 0), str(path))


def pinned(path: Path) -> int:
    """A descriptor of what is pinned at ``path``. Raises BpfError ENOENT."""
    name = _buffer(os.fsencode(path) + b"\0")
    return _call(Command.OBJ_GET, struct.pack("<QII", _at(name), 0, 0), str(path))[0]


def update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Sets one entry."""
    k, v = _buffer(key), _buffer(value)
    _call(Command.MAP_UPDATE, struct.pack("<IIQQQ", fd, 0, _at(k), _at(v), flags))


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """One entry's value, None without one."""
    k, v = _buffer(key), ctypes.create_string_buffer(value_size)
    result, _ = _call(Command.MAP_LOOKUP, struct.pack("<IIQQQ", fd, 0, _at(k), _at(v), 0), expected=(errno.ENOENT,))
    return None if result < 0 else v.raw


def lookup_per_cpu(fd: int, key: bytes, value_size: int) -> bytes | None:
    """One entry of a per-CPU map: the values of all :func:`processors` end to end, each rounded up to 8 bytes; None
    without one. :func:`lookup` would have the kernel write past its buffer.
    """
    return lookup(fd, key, ((value_size + 7) & ~7) * processors())


@cache
def processors() -> int:
    """Values that a per-CPU map keeps for one key: the processors this kernel could ever have (num_possible_cpus)."""
    return count_listed(_POSSIBLE.read_text())


def count_listed(listed: str) -> int:
    """How many a CPU list of sysfs names: ``0-3,8-11`` are eight."""
    ranges = (part.partition("-") for part in listed.strip().split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def delete(fd: int, key: bytes) -> bool:
    """Removes one entry; False when there was none."""
    k = _buffer(key)
    return _call(Command.MAP_DELETE, struct.pack("<IIQQQ", fd, 0, _at(k), 0, 0), expected=(errno.ENOENT,))[0] == 0


def _batch(
    command: Command, fd: int, *, keys: int, values: int, count: int, cursor: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    attr = struct.pack("<QQQQIIQQ", *cursor, keys, values, count, fd, 0, 0)
    result, after = _call(command, attr, expected=(errno.ENOENT, errno.ENOSPC))
    return result, struct.unpack_from("<I", after, 32)[0]


NO_ROOM = (errno.E2BIG, errno.ENOSPC, errno.ENOMEM)
"""What a map that takes no further entry says: a hash, a trie, and any of them when the node has no memory left."""


def update_batch(fd: int, keys: bytes, values: bytes, count: int) -> tuple[int, ...]:
    """Sets ``count`` entries laid end to end; returns the places (0 … count - 1) of those that found no room. One
    without room keeps none of the others out.
    """
    k, v = _buffer(keys), _buffer(values)
    key_size, value_size = len(keys) // max(count, 1), len(values) // max(count, 1)
    refused: list[int] = []
    start = 0
    while start < count:
        left = count - start
        attr = struct.pack("<QQQQIIQQ", 0, 0, _at(k) + start * key_size, _at(v) + start * value_size, left, fd, 0, 0)
        result, after = _call(Command.MAP_UPDATE_BATCH, attr, f"of {count} entries", NO_ROOM)
        if result >= 0:
            break
        done = struct.unpack_from("<I", after, 32)[0]
        start += done if done < left else 0  # the kernel had no memory to begin with, and left the count as it was
        refused.append(start)
        start += 1
    return tuple(refused)


def delete_batch(fd: int, keys: bytes, key_size: int) -> int:
    """Removes the entries of keys laid end to end; keys without one are passed over. Returns how many went."""
    gone, start = 0, 0
    while start < len(keys):
        k = _buffer(keys[start:])
        result, done = _batch(
            Command.MAP_DELETE_BATCH, fd, keys=_at(k), values=0, count=(len(keys) - start) // key_size
        )
        gone += done
        start += (done + 1) * key_size if result < 0 else done * key_size
    return gone


def lookup_batch(fd: int, key_size: int, value_size: int, chunk: int = 4096) -> Iterator[tuple[int, bytes, bytes]]:
    """All entries, as (count, keys, values) a chunk. A map that changes meanwhile may show an entry twice or not."""
    entering: ctypes.Array[ctypes.c_char] | None = None
    while True:
        leaving = ctypes.create_string_buffer(max(key_size, 8))
        k, v = ctypes.create_string_buffer(key_size * chunk), ctypes.create_string_buffer(value_size * chunk)
        result, count = _batch(
            Command.MAP_LOOKUP_BATCH, fd, keys=_at(k), values=_at(v), count=chunk, cursor=(_at(entering), _at(leaving))
        )
        if result == -errno.ENOSPC:  # one bucket alone is larger than the chunk
            chunk *= 2
            continue
        if count:
            yield count, k.raw[: count * key_size], v.raw[: count * value_size]
        if result < 0:
            return
        entering = leaving


def program_load(kind: ProgramKind, code: bytes, *, name: str = "", attach: int = 0) -> int:
    """Loads a program; its descriptor. Raises BpfError with the verifier's log when it is refused."""
    try:
        return _load(kind, code, name, attach, None)
    except BpfError as refused:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _load(kind, code, name, attach, log)
        except BpfError as again:
            raise BpfError(Command.PROG_LOAD, again.errno or 0, name, log.value.decode(errors="replace")) from refused


def _load(kind: int, code: bytes, name: str, attach: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
    instructions, license_text = _buffer(code), _buffer(b"GPL\0")
    attr = struct.pack(
        "<IIQQIIQII16sII",
        kind, len(code) // 8, _at(instructions), _at(license_text), 1 if log else 0, len(log) if log else 0, _at(log),
        0, 0, name.encode()[:15], 0, attach,
    )  # fmt: skip
    return _call(Command.PROG_LOAD, attr, name)[0]


def link_create(program: int, target: int, attach: int) -> int:
    """Attaches a program to an ifindex (tcx) or a cgroup descriptor; the link's descriptor. EINVAL: no tcx here."""
    # 48 bytes: the tcx part (relative_fd, expected_revision) is all zeros, "after the others".
    attr = struct.pack("<IIII32x", program, target, attach, 0)
    return _call(Command.LINK_CREATE, attr, f"target {target}")[0]


def link_update(link: int, program: int) -> None:
    """Puts another program into a link, without a moment between the two."""
    _call(Command.LINK_UPDATE, struct.pack("<IIII", link, program, 0, 0))


def link_detach(link: int) -> None:
    """Takes a link off its target; the pin stays."""
    _call(Command.LINK_DETACH, struct.pack("<I", link))


def query(target: int, attach: int) -> tuple[int, ...]:
    """Ids of the programs that run at a hook."""
    ids = ctypes.create_string_buffer(4 * 64)
    attr = struct.pack("<IIIIQIIQQQQ", target, attach, 0, 0, _at(ids), 64, 0, 0, 0, 0, 0)
    _, after = _call(Command.PROG_QUERY, attr, f"target {target}")
    return struct.unpack_from(f"<{struct.unpack_from('<I', after, 24)[0]}I", ids.raw)


def run_on(program: int, packet: bytes, *, repeat: int = 1, context: bytes | None = None) -> Run:
    """Runs a program on a packet (BPF_PROG_TEST_RUN): nothing is sent, maps change for real."""
    before, after = _buffer(packet), ctypes.create_string_buffer(len(packet) + 256)
    ctx = _buffer(context) if context is not None else None
    attr = struct.pack(
        "<IIIIQQIIIIQQIIII",
        program, 0, len(packet), len(after), _at(before), _at(after), repeat, 0,
        len(context) if context is not None else 0, 0, _at(ctx), 0, 0, 0, 0, 0,
    )  # fmt: skip
    _, result = _call(Command.TEST_RUN, attr)
    _, value, _, size = struct.unpack_from("<IIII", result)
    return Run(value, struct.unpack_from("<I", result, 36)[0], after.raw[:size])
