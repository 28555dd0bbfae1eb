"""Network namespaces: opened once, proved to be one, and entered by one thread.

Owns every ``setns``. Promises: a path from the runtime is opened without following a link in its last part
and is refused unless it lies on nsfs (``NSFS_MAGIC``, include/uapi/linux/magic.h); what is then used is the
descriptor. If the thread cannot come home from a namespace, the process ends: nothing may be configured in the wrong
one. A namespace belongs to a thread: who enters one has a thread of its own for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_NSFS_MAGIC = 0x6E736673
_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
_libc = ctypes.CDLL(None, use_errno=True)


class NotANamespace(ValueError):
    """The path is not that of a network namespace."""


def open_netns(path: str) -> int:
    """Descriptor of a network namespace. Raises FileNotFoundError, or NotANamespace for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotANamespace(f"{path}: {error.strerror}; give the path of a network namespace") from error
    if _filesystem(descriptor) != _NSFS_MAGIC:
        os.close(descriptor)
        raise NotANamespace(f"{path} is not on nsfs; give the path of a network namespace")
    return descriptor


def _filesystem(descriptor: int) -> int:
    answer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(descriptor, answer):
        return 0
    return int(struct.unpack_from("<q", answer)[0])


def enter(path: str) -> None:
    """Moves the calling thread into a network namespace for good: its sockets are made there from now on, and
    /proc/sys/net is that of the namespace. Raises FileNotFoundError or NotANamespace.
    """
    descriptor = open_netns(path)
    try:
        _enter(descriptor)
    finally:
        os.close(descriptor)


def command(path: str, *program: str) -> list[str]:
    """The command line that runs a program in a network namespace; it keeps its pid.

    By nsenter(1) with ``--net`` alone: ``ip netns exec`` would remount /sys in a private mount namespace, which then
    never sees the mounts that containerd makes.
    """
    return ["nsenter", f"--net={path}", "--", *program]


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise NotANamespace(f"setns: {os.strerror(code)}")


@contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """The calling thread is in the namespace meanwhile. Only for threads that own no other thread's work."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(descriptor)
        try:
            yield
        finally:
            try:
                _enter(home)
            except NotANamespace:
                os._exit(70)  # this thread would go on in a pod's namespace
    finally:
        os.close(home)


@contextmanager
def by_cookie(cookies: Iterable[int]) -> Iterator[dict[int, int]]:
    """Descriptors, open meanwhile, of the namespaces that have these cookies, as far as they are found: among those
    mounted in /run/netns (by ip-netns(8) and container runtimes), then among those of processes. The calling thread
    looks into each; only for threads that may be :func:`inside`.
    """
    wanted, found, seen = set(cookies), dict[int, int](), set[int]()
    with ExitStack() as opened:
        for paths in _known():
            if not wanted:
                break
            with suppress(OSError, NotANamespace), ExitStack() as this:
                descriptor = open_first(paths)
                this.callback(os.close, descriptor)
                inode = os.fstat(descriptor).st_ino
                if inode in seen:
                    continue
                seen.add(inode)
                with inside(descriptor):
                    cookie = netns_cookie()
                if cookie in wanted:
                    wanted.remove(cookie)
                    found[cookie] = descriptor
                    opened.push(this.pop_all())
        yield found


def _known() -> Iterator[list[str]]:
    """The paths of one namespace after the other; those of processes are looked for only when they are asked for."""
    yield from ([str(path)] for path in Path("/run/netns").glob("*"))
    yield from of_processes().values()


def of_processes() -> dict[int, list[str]]:
    """The network namespaces that processes are in, by inode: a path by each of them, since any may end."""
    found: dict[int, list[str]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            path = f"/proc/{name}/ns/net"
            with suppress(OSError):  # it has ended
                found.setdefault(os.stat(path).st_ino, []).append(path)
    return found


def open_first(paths: Iterable[str]) -> int:
    """Descriptor of the first of these paths that is still there. Raises FileNotFoundError when none is."""
    for path in paths:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    raise FileNotFoundError(errno.ENOENT, "every process of the namespace has ended")


def netns_cookie() -> int:
    """Cookie of the calling thread's namespace: what ``bpf_get_netns_cookie`` gives for its sockets."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return cookie_of(probe)


def cookie_of(opened: socket.socket) -> int:
    """Cookie of the namespace that a socket belongs to, whichever it is used from."""
    return int.from_bytes(opened.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
