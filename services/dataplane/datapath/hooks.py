"""Attachment of programs: tcx links, cls_bpf filters, cgroup links. Each is made so that it outlives the agent.

A *holder* keeps one program at one hook under one pin path:
* :class:`LinkHolder` pins a bpf link (tcx or cgroup). A new program goes in by BPF_LINK_UPDATE, with no moment between.
* :class:`FilterHolder` sets a cls_bpf filter (which needs no pin to stay) and pins the *program* under a name that
  carries the interface index, so that the agent finds again what it has attached.
Never delete and add: a link that hangs in the air (device gone, or detached by hand) is the one case made anew, and
there the new one is attached before the old pin goes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from linux import bpf, clsact
from linux.bpf import AttachKind, ProgramKind
from linux.netlink import Message, Netlink

NO_INTERFACE = 0x7FFFFFFF


class Hook(Enum):
    """A place for a program; the value is the program's name."""

    FROM_POD = "from_pod"
    TO_POD = "to_pod"
    FROM_WIRE = "from_wire"
    TO_WIRE = "to_wire"
    FROM_TUNNEL = "from_tunnel"
    TO_TUNNEL = "to_tunnel"
    SOCK_RELEASE = "sock_release"
    """The first of the socket hooks: who gets a place in ``am_slots`` is sure to give it back."""
    CONNECT4 = "connect4"
    CONNECT6 = "connect6"
    SENDMSG4 = "sendmsg4"
    SENDMSG6 = "sendmsg6"
    RECVMSG4 = "recvmsg4"
    RECVMSG6 = "recvmsg6"
    GETPEERNAME4 = "getpeername4"
    GETPEERNAME6 = "getpeername6"

    @property
    def attach(self) -> AttachKind:
        """The kernel's name of the place."""
        return _ATTACH[self]

    @property
    def kind(self) -> ProgramKind:
        """What kind of program hangs there."""
        if not self.is_socket:
            return ProgramKind.SCHED_CLS
        return ProgramKind.CGROUP_SOCK if self is Hook.SOCK_RELEASE else ProgramKind.CGROUP_SOCK_ADDR

    @property
    def is_socket(self) -> bool:
        """A cgroup hook."""
        return self.attach not in (AttachKind.TCX_INGRESS, AttachKind.TCX_EGRESS)


_ATTACH = {
    Hook.FROM_POD: AttachKind.TCX_INGRESS,
    Hook.TO_POD: AttachKind.TCX_EGRESS,
    Hook.FROM_WIRE: AttachKind.TCX_INGRESS,
    Hook.TO_WIRE: AttachKind.TCX_EGRESS,
    Hook.FROM_TUNNEL: AttachKind.TCX_INGRESS,
    Hook.TO_TUNNEL: AttachKind.TCX_EGRESS,
    Hook.SOCK_RELEASE: AttachKind.CGROUP_INET_SOCK_RELEASE,
    Hook.CONNECT4: AttachKind.CGROUP_INET4_CONNECT,
    Hook.CONNECT6: AttachKind.CGROUP_INET6_CONNECT,
    Hook.SENDMSG4: AttachKind.CGROUP_UDP4_SENDMSG,
    Hook.SENDMSG6: AttachKind.CGROUP_UDP6_SENDMSG,
    Hook.RECVMSG4: AttachKind.CGROUP_UDP4_RECVMSG,
    Hook.RECVMSG6: AttachKind.CGROUP_UDP6_RECVMSG,
    Hook.GETPEERNAME4: AttachKind.CGROUP_INET4_GETPEERNAME,
    Hook.GETPEERNAME6: AttachKind.CGROUP_INET6_GETPEERNAME,
}


def hook_of(name: str) -> Hook | None:
    """The hook of this name; None for one that only another version has."""
    return next((hook for hook in Hook if hook.value == name), None)


ENDPOINT_HOOKS = (Hook.FROM_POD, Hook.TO_POD)
UPLINK_HOOKS = (Hook.FROM_WIRE, Hook.TO_WIRE)
TUNNEL_HOOKS = (Hook.TO_TUNNEL, Hook.FROM_TUNNEL)
"""In this order: once the way in hangs, ``routing`` tells the others that it is open."""
SOCKET_HOOKS = tuple(hook for hook in Hook if hook.is_socket)


@dataclass(frozen=True, slots=True)
class Held:
    """What hangs under one pin. ``target`` (ifindex or cgroup id) is 0 when it hangs in the air."""

    hook: Hook
    target: int
    program: int


Run = Callable[[Sequence[Message]], None]
"""Sends rtnetlink messages as one batch."""


def run_alone(messages: Sequence[Message]) -> None:
    """A batch by a socket of its own."""
    with Netlink() as rtnetlink:
        rtnetlink.run(messages)


class Holder(Protocol):
    """Keeps programs at hooks."""

    def hold(self, folder: Path, programs: Mapping[Hook, int], target: int, run: Run) -> None:
        """Makes programs run at ``target`` (an ifindex, or a cgroup's descriptor); idempotent. ``run`` is called once,
        with the rtnetlink messages that this takes (maybe none), before anything is pinned.
        """

    def held(self, folder: Path) -> list[Held]:
        """What is kept under this folder, as it really is now."""

    def refresh(self, folder: Path, programs: dict[Hook, int]) -> None:
        """Puts new programs in place of those that run; hooks of another version that this one lacks are let go of."""

    def release(self, folder: Path, *, deleting: bool) -> None:
        """Takes everything under this folder off its hooks, and the folder away; ``deleting``: the interface is about
        to go, and takes what hangs on it along.
        """


def has_tcx(program: int) -> bool:
    """Whether this kernel has tcx: it then misses the interface (ENODEV), else it doubts the attach type (EINVAL)."""
    try:
        os.close(bpf.link_create(program, NO_INTERFACE, AttachKind.TCX_INGRESS))
    except bpf.BpfError as error:
        return error.errno == errno.ENODEV
    return True


@contextmanager
def _descriptor(path: Path) -> Iterator[int | None]:
    """The object pinned at ``path``, None without one; closed afterwards."""
    try:
        fd: int | None = bpf.pinned(path)
    except bpf.BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


class LinkHolder:
    """Holds by pinned bpf links."""

    def hold(self, folder: Path, programs: Mapping[Hook, int], target: int, run: Run) -> None:
        """See :class:`Holder`. Raises BpfError: ENODEV for an unknown interface in this namespace."""
        run(())
        for hook, program in programs.items():
            self._hold_one(folder, hook, program, target)

    @staticmethod
    def _hold_one(folder: Path, hook: Hook, program: int, target: int) -> None:
        path = folder / hook.value
        wanted = os.fstat(target).st_ino if hook.is_socket else target
        with _descriptor(path) as link:
            if link is not None and bpf.link_info(link).target == wanted:
                bpf.link_update(link, program)
                return
            fresh = bpf.link_create(program, target, hook.attach)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                bpf.pin(fresh, path)
            finally:
                os.close(fresh)

    def held(self, folder: Path) -> list[Held]:
        """See :class:`Holder`."""
        found = []
        for path in sorted(folder.iterdir()):
            hook = hook_of(path.name)
            with _descriptor(path) as link:
                if link is not None and hook is not None:
                    info = bpf.link_info(link)
                    found.append(Held(hook, info.target, info.program))
        return found

    def refresh(self, folder: Path, programs: dict[Hook, int]) -> None:
        """See :class:`Holder`."""
        for path in sorted(folder.iterdir()):
            hook = hook_of(path.name)
            with _descriptor(path) as link:
                if link is not None and hook is not None and bpf.link_info(link).target:
                    bpf.link_update(link, programs[hook])
            if hook is None:
                path.unlink()

    def release(self, folder: Path, *, deleting: bool) -> None:
        """See :class:`Holder`."""
        for path in folder.iterdir():
            # The link is detached first: some process may still hold a descriptor of it.
            with _descriptor(path) as link:
                if link is not None:
                    bpf.link_detach(link)
            path.unlink(missing_ok=True)
        folder.rmdir()


_PARENTS = {AttachKind.TCX_INGRESS: clsact.Parent.INGRESS, AttachKind.TCX_EGRESS: clsact.Parent.EGRESS}


class FilterHolder:
    """Holds by cls_bpf filters. Pins are programs, named ``<hook>-<ifindex>``."""

    def hold(self, folder: Path, programs: Mapping[Hook, int], target: int, run: Run) -> None:
        """See :class:`Holder`. Raises OSError ENODEV for an unknown interface in this namespace."""
        filters = (clsact.Filter(_PARENTS[hook.attach], program, hook.value) for hook, program in programs.items())
        run(clsact.set_filters(target, filters))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            for hook in programs:
                for stale in folder.glob(f"{hook.value}-*"):
                    stale.unlink()
        for hook, program in programs.items():
            bpf.pin(program, folder / f"{hook.value}-{target}")

    def held(self, folder: Path) -> list[Held]:
        """See :class:`Holder`."""
        return [
            Held(hook, ifindex if program else 0, program)
            for hook, ifindex in self._kept(folder)
            for program in [clsact.filter_program(ifindex, _PARENTS[hook.attach])]
        ]

    def refresh(self, folder: Path, programs: dict[Hook, int]) -> None:
        """See :class:`Holder`."""
        for hook, ifindex in self._kept(folder):
            if clsact.filter_program(ifindex, _PARENTS[hook.attach]):
                self.hold(folder, {hook: programs[hook]}, ifindex, run_alone)
        for path in folder.iterdir():
            if hook_of(path.name.rsplit("-", 1)[0]) is None:
                path.unlink()

    def release(self, folder: Path, *, deleting: bool) -> None:
        """See :class:`Holder`."""
        for hook, ifindex in self._kept(folder):
            if not deleting:
                clsact.remove_filter(ifindex, _PARENTS[hook.attach])
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    @staticmethod
    def _kept(folder: Path) -> list[tuple[Hook, int]]:
        parts = [path.name.rsplit("-", 1) for path in sorted(folder.iterdir())]
        return [(hook, int(ifindex)) for name, ifindex in parts if (hook := hook_of(name)) is not None]
