"""A node's datapath: the programs loaded, their maps, and where they hang.

:meth:`Datapath.open` takes over what is pinned (``datapath.pins``): new programs are loaded against the *same* maps and
put into the running links one by one, each without a moment between old and new. :meth:`Datapath.close` lets go of
descriptors and leaves everything working; only :meth:`Datapath.detach` takes programs off.

:meth:`Datapath.grow` replaces maps by larger ones in the same way while everything runs: how many entries a map takes
is a property of what is pinned, not of the layout.

When maps of an upgrade begin anew that the agent fills (:attr:`Datapath.unfilled`), the old programs run on with the
old maps, and nothing of this version is hung where they hang. The agent fills the new maps and calls
:meth:`Datapath.switch`: every link gets its new program, then what the old ones used is let go of. An agent that dies
before is followed by one that finds the same and goes on.

Everything resolves interface indices in the caller's network namespace: the agent lives in the node's. Blocking; the
first open compiles (seconds), others take some 50 ms. Refuses a folder that is not on bpffs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from linux import bpf
from linux.bpf import ProgramKind
from services.dataplane.core.datapath.layout import (
    LinkKey,
    Uplink,
    UplinkFlag,
)
from services.dataplane.core.datapath.maps import MAPS
from services.dataplane.core.datapath.pins import Plan, Source
from services.dataplane.datapath.bytecode import Bytecode, Cache
from services.dataplane.datapath.hooks import (
    ENDPOINT_HOOKS,
    SOCKET_HOOKS,
    TUNNEL_HOOKS,
    UPLINK_HOOKS,
    FilterHolder,
    Held,
    Holder,
    Hook,
    LinkHolder,
    Run,
    has_tcx,
    hook_of,
    run_alone,
)
from services.dataplane.datapath.maps import LayoutMismatch, check_shape
from services.dataplane.datapath.pins import Pins
from services.dataplane.datapath.replacement import Replacement
from services.dataplane.datapath.tables import Tables

BPF_FS_MAGIC = 0xCAFE4A11
SOCKETS = "_sockets"
"""Name under which the cgroup links are kept; no interface can be called so by :func:`_pin_name`."""
COLLECT = "collect"
RECOUNT = "recount"
_VANISHED = (errno.ENODEV, errno.ENOENT, errno.ENOLINK)
"""What a link says whose interface went away a moment ago."""


class NotBpffs(RuntimeError):
    """The pin folder is not on a bpf file system."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """What hangs under a name. ``ifindex`` is 0, and ``attached`` False, when a hook of it hangs in the air."""

    name: str
    ifindex: int
    attached: bool
    hooks: tuple[Hook, ...]
    programs: tuple[int, ...]
    """Kernel ids of the programs, in the order of ``hooks``."""


class Datapath:
    """The loaded programs of one node. Make it with :meth:`open`."""

    def __init__(
        self,
        pins: Pins,
        tables: Tables,
        programs: dict[str, int],
        bytecode: Bytecode,
        *,
        plan: Plan,
        tcx: bool,
        filter_pods: bool = False,
    ) -> None:
        self.tables = tables
        self._bytecode = bytecode
        self._lock = threading.RLock()  # links are made by one thread and repaired by another
        self.flows_lock = threading.RLock()
        """Held while conntrack is swept, and while maps or programs are being replaced."""
        self.tcx = tcx
        self.programs = programs
        """Descriptors by program name."""
        self.unfilled: frozenset[Source] = plan.unfilled
        """What new maps are to be filled from before :meth:`switch`; until then the old programs run."""
        self.losses = plan.losses
        """What those who talk lose by this upgrade, by map."""
        self._is_upgrade = plan.is_upgrade
        self._new_maps = plan.begun | plan.made.keys()
        self._pins = pins
        self._links = pins.links
        self._by_hook = _by_hook(programs)
        self._by_links, self._by_filters = LinkHolder(), FilterHolder()
        self._uplinks: Holder = self._by_links if tcx else self._by_filters
        self._pods: Holder = self._by_filters if filter_pods else self._uplinks

    @classmethod
    def open(
        cls,
        pins: Path,
        cache: Path,
        *,
        tcx: bool | None = None,
        filter_pods: bool = False,
        sizes: Mapping[str, int] | None = None,
    ) -> Self:
        """Loads the programs and takes over what is pinned. ``tcx`` None: whatever this kernel has; ``filter_pods``:
        cls_bpf filters for pods all the same. What hangs already stays as it hangs. ``sizes``: entries that maps are to
        take, where not those of ``core.datapath.maps``; one that is pinned and smaller is replaced, a larger one stays.
        Switches at once when nothing is to be filled first.

        Raises NotBpffs, CompileError, LayoutMismatch, BpfError (the verifier's log in it).
        """
        _require_bpffs(pins)
        bytecode = Cache(cache).load()
        _check_layout(bytecode)
        folder = Pins(pins)
        descriptors, plan = folder.open(sizes or {})
        programs = _load_all(bytecode, descriptors)
        supported = has_tcx(programs[Hook.FROM_POD.value]) if tcx is None else tcx
        tables = Tables(descriptors)
        datapath = cls(folder, tables, programs, bytecode, plan=plan, tcx=supported, filter_pods=filter_pods)
        if not plan.unfilled:
            datapath.switch()
            datapath.grow(sizes or {})
        return datapath

    def switch(self) -> None:
        """Every link gets the new program in one step; then the old maps go. To be called once all of ``unfilled`` has
        been filled. Blocking, some 50 µs a link. Raises OSError when a link could not be switched: call it again.
        """
        with self._lock, self.flows_lock:
            self._refresh()
            if self._is_upgrade:
                self.tables.bump_generation()  # flows are judged again, by these maps
            self._pins.promote()
            self.unfilled, self._is_upgrade = frozenset(), False

    def grow(self, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Replaces maps (by name) that take fewer entries than this by larger ones: copied, programs loaded against
        them, every link switched without a moment between. Flows go on. Returns which were replaced. Blocking, some
        100 ms; meanwhile nobody else writes these tables or makes links. While an upgrade waits, maps that the old
        programs use too stay as they are.

        Raises BpfError (ENOMEM) when there is no memory: then nothing has changed.
        """
        tables = self.tables.by_name
        growing = [
            tables[name]
            for name, size in sizes.items()
            if tables[name].spec.may_grow and size > tables[name].entries
            if not self.unfilled or name in self._new_maps
        ]
        if not growing:
            return ()
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(self.flows_lock)
            for table in growing:
                stack.enter_context(table.lock)
            made: list[Replacement] = []
            try:
                for table in growing:
                    pin = self._pins.path(table.spec)
                    made.append(Replacement(table.spec, pin, table.fd, sizes[table.spec.name]))
                descriptors = self.tables.descriptors | {one.spec.name: one.fd for one in made}
                programs = _load_all(self._bytecode, descriptors)
            except BaseException:
                for one in made:
                    one.give_up()
                raise
            for one in made:
                one.take_over()
            self._switch(made, programs)
        return tuple(one.spec.name for one in made)

    def _switch(self, made: Sequence[Replacement], programs: dict[str, int]) -> None:
        """The new maps and programs are those of this node from here on."""
        for one in made:
            self.tables.descriptors[one.spec.name] = one.fd
            self.tables.by_name[one.spec.name].move(one.fd)
        before, self.programs = self.programs, programs
        self._by_hook = _by_hook(programs)
        try:
            if not self.unfilled:
                self._refresh()
        finally:
            for one in made:
                one.catch_up()
                one.close()
            for fd in before.values():
                os.close(fd)

    def attach_endpoint(self, ifindex: int, name: str, run: Run = run_alone) -> None:
        """Hangs ``from_pod`` and ``to_pod`` on a host veth. Idempotent; mends what hangs in the air. What rtnetlink has
        to do for it is given to ``run``.
        """
        self._attach(name, ENDPOINT_HOOKS, ifindex, self._pods, run)

    def attach_uplink(self, ifindex: int, name: str) -> None:
        """Hangs ``from_wire`` and ``to_wire`` on an uplink, from where others of the cluster may come. Idempotent."""
        self.tables.uplinks.put(LinkKey(ifindex=ifindex), Uplink())
        self._attach(name, UPLINK_HOOKS, ifindex, self._uplinks)

    def attach_tunnel(self, ifindex: int, name: str) -> None:
        """Hangs ``to_tunnel`` and ``from_tunnel`` on a tunnel device. Idempotent."""
        self._attach(name, TUNNEL_HOOKS, ifindex, self._uplinks)

    def names(self) -> list[str]:
        """Names under which something is kept, whether it hangs or not."""
        return [_name_of(folder.name) for folder in self._links.iterdir()]

    def keep_uplinks(self, uplinks: Collection[int], loopback: int) -> None:
        """Says which interfaces may bring whose addresses: these alone those of others in the cluster, ``loopback`` the
        node's own.
        """
        wanted = {LinkKey(ifindex=index): Uplink() for index in uplinks}
        wanted[LinkKey(ifindex=loopback)] = Uplink(flags=UplinkFlag.LOCAL)
        now = self.tables.uplinks.items()
        if now != wanted:
            self.tables.uplinks.apply(wanted, [key for key in now if key not in wanted])

    def attach_sockets(self, cgroup: Path) -> None:
        """Hangs the socket programs on a cgroup2 folder. They act in the namespaces of ``tables.cookies`` only."""
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._attach(SOCKETS, SOCKET_HOOKS, descriptor, self._by_links)
        finally:
            os.close(descriptor)

    def detach(self, name: str) -> None:
        """Takes off what hangs under a name; nothing there is no error."""
        self._release(name, deleting=False)

    def forget(self, name: str) -> None:
        """Like :meth:`detach`, of a link that is about to go and takes its programs along; until then they judge."""
        self._release(name, deleting=True)

    def _release(self, name: str, *, deleting: bool) -> None:
        folder = self._link_folder(name)
        with self._lock:
            if folder.is_dir():
                self._holder(folder).release(folder, deleting=deleting)

    def links(self) -> dict[str, LinkState]:
        """What hangs where, as the kernel says it now."""
        states = {}
        for folder in sorted(self._links.iterdir()):
            name = _name_of(folder.name)
            states[name] = _state(name, self._holder(folder).held(folder))
        return states

    def load_apart(self, names: Collection[str], own: Mapping[str, int]) -> dict[str, int]:
        """Some programs once more, hung nowhere: against this node's maps, but for those of ``own`` (descriptors by
        name). The caller closes their descriptors. Blocking, some 10 ms each.
        """
        with self.flows_lock:
            return _load_all(self._bytecode, {**self.tables.descriptors, **own}, names)

    def close(self) -> None:
        """Lets go of every descriptor; links, maps and programs go on."""
        self.tables.close()
        for fd in self.programs.values():
            os.close(fd)

    def _attach(self, name: str, hooks: tuple[Hook, ...], target: int, holder: Holder, run: Run = run_alone) -> None:
        with self._lock:
            self._attach_locked(self._link_folder(name), hooks, target, holder, run)

    def _attach_locked(self, folder: Path, hooks: tuple[Hook, ...], target: int, holder: Holder, run: Run) -> None:
        if folder.is_dir() and any(folder.iterdir()):
            holder = self._holder(folder)
            if self.unfilled:  # the old programs run on; only what hangs in the air is mended
                wanted = os.fstat(target).st_ino if hooks[0].is_socket else target
                hooks = tuple(one.hook for one in holder.held(folder) if one.hook in hooks and one.target != wanted)
        holder.hold(folder, {hook: self._by_hook[hook] for hook in hooks}, target, run)

    def _refresh(self) -> None:
        failed: list[OSError] = []
        for folder in self._links.iterdir():
            try:
                self._holder(folder).refresh(folder, self._by_hook)
            except OSError as error:
                if error.errno not in _VANISHED:
                    failed.append(error)
        if failed:  # one that cannot be switched keeps no other from it
            raise failed[0]

    def _holder(self, folder: Path) -> Holder:
        """Who holds what is pinned there: filters' pins carry the interface's index."""
        return self._by_filters if any("-" in pin.name for pin in folder.iterdir()) else self._by_links

    def _link_folder(self, name: str) -> Path:
        return self._links / _pin_name(name)


def _by_hook(programs: Mapping[str, int]) -> dict[Hook, int]:
    return {hook: programs[hook.value] for hook in Hook if hook.value in programs}


def _state(name: str, held: list[Held]) -> LinkState:
    targets = {entry.target for entry in held}
    attached = bool(held) and 0 not in targets
    return LinkState(
        name=name,
        ifindex=targets.pop() if attached and len(targets) == 1 else 0,
        attached=attached,
        hooks=tuple(entry.hook for entry in held),
        programs=tuple(entry.program for entry in held),
    )


def _load_all(bytecode: Bytecode, descriptors: dict[str, int], names: Collection[str] = ()) -> dict[str, int]:
    """All programs (of these names) or none."""
    loaded: dict[str, int] = {}
    try:
        for name in names or bytecode.programs:
            loaded[name] = _load(bytecode, name, descriptors)
    except BaseException:
        for fd in loaded.values():
            os.close(fd)
        raise
    return loaded


def _load(bytecode: Bytecode, name: str, descriptors: dict[str, int]) -> int:
    program = bytecode.programs[name]
    code = bytearray(program.code)
    for relocation in program.relocations:
        struct.pack_into("<i", code, relocation.offset + 4, descriptors[relocation.table])
    hook = hook_of(name)
    if hook is not None and hook.is_socket:
        return bpf.program_load(hook.kind, bytes(code), name=name, attach=hook.attach)
    return bpf.program_load(ProgramKind.SCHED_CLS, bytes(code), name=name)


def _check_layout(bytecode: Bytecode) -> None:
    """The compiled maps are those of ``core.datapath.maps``. Raises LayoutMismatch."""
    if missing := {spec.name for spec in MAPS} ^ set(bytecode.maps):
        raise LayoutMismatch(
            f"maps {sorted(missing)} are in only one of core/datapath/maps.py and the bytecode: rebuild it"
        )
    for spec in MAPS:
        shape = bytecode.maps[spec.name]
        check_shape(spec, shape.kind, shape.key_size, shape.value_size, shape.entries)


def _pin_name(name: str) -> str:
    """A name as bpffs takes it: no dots, no slashes. Raises ValueError for one that is empty or too long."""
    if not 0 < len(name) <= 64:
        raise ValueError(f"link name {name!r}: must have 1 to 64 characters")
    return "".join(c if c.isalnum() or c in "-_" else f"={ord(c):02X}" for c in name)


def _name_of(pin: str) -> str:
    first, *rest = pin.split("=")
    return first + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)


def _require_bpffs(pins: Path) -> None:
    pins.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(pins), buffer) or struct.unpack_from("<Q", buffer.raw)[0] & 0xFFFFFFFF != BPF_FS_MAGIC:
        raise NotBpffs(f"{pins} is not on bpffs: mount -t bpf bpf {pins}, or set the pin folder to a place that is")
