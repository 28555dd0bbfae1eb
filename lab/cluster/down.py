"""Takes a lab away and proves it: everything of it, by what is on the machine.

Promises to work after a crash or `kill -9` at any moment of `up` or of itself, twice in a row, and when nothing is
there; never to touch another lab or anybody else's processes; to list what is left and say so. The order matters:
the supervisor first (it would start agents again), then the agents, then pinned programs (a pinned cgroup link acts
on every process of the machine, and outlives whoever made it), then all other processes, mounts, namespaces,
cgroups, files. The folders go last: they tell whose things are.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable

from lab.cluster import leftovers as looking
from lab.cluster import namespaces
from lab.cluster.leftovers import Known, Leftover
from lab.paths import Paths

_ROUNDS = 40
_PAUSE_SECONDS = 0.1
_MNT_DETACH = 2
_FREED_LATER = {"map", "prog", "link", "cgroup"}
_FREED_SECONDS = 240.0
"""A program of a cgroup goes with the last socket that was made there: one whose connection was cut off under an attack
has been seen to send its last bytes again for two minutes, as TCP does.
"""
_FIRST = ("supervisor", "dataplane", "routing")


def leftovers(where: Paths) -> list[Leftover]:
    """What of the lab is on the machine."""
    return looking.find(where)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _end_all(where: Paths, only: Callable[[str], bool] = lambda _: True) -> None:
    """Kill the lab's processes until none is left (one may be starting another): nothing here needs an orderly end."""
    for _ in range(_ROUNDS):
        alive = [pid for pid, name in looking.lab_processes(where).items() if only(name)]
        if not alive:
            return
        _kill(alive)
        time.sleep(_PAUSE_SECONDS)


def _unpin(where: Paths) -> None:
    for pin in looking.pins(where):
        with contextlib.suppress(OSError):
            pin.unlink()


def _unmount(where: Paths) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(_ROUNDS):
        points = looking.lab_mounts(where)
        if not points:
            return
        for point in points:
            # Detached: a mount that something still holds goes from sight now and altogether when it is let go.
            libc.umount2(os.fsencode(point), _MNT_DETACH)
        time.sleep(0)


def _remove_cgroups(ids: Iterable[str]) -> None:
    for _ in range(_ROUNDS):
        folders = looking.cgroups(ids)
        if not folders:
            return
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if looking.cgroups(ids):
            time.sleep(_PAUSE_SECONDS)  # the kernel frees a dead process' cgroup a moment later


def _drop(what: str, steps: Callable[[], None], say: Callable[[str], None]) -> None:
    try:
        steps()
    except OSError as refusal:  # the rest is removed all the same; the proof at the end names what stayed
        say(f"{what}: {refusal}")


def down(where: Paths, say: Callable[[str], None]) -> list[Leftover]:
    """Remove the lab; what could not be removed comes back (empty: it is gone)."""
    if not looking.find(where):
        say(f"lab {where.lab}: nothing is there")
        return []
    known = looking.remember(where)
    _drop("agents", lambda: _end_all(where, lambda name: name.startswith(_FIRST)), say)
    _drop("pins", lambda: _unpin(where), say)
    _drop("processes", lambda: _end_all(where), say)
    say("processes ended")
    known = looking.remember(where, known)
    _drop("mounts", lambda: _unmount(where), say)
    _drop("namespaces", lambda: namespaces.remove(namespaces.existing(where.lab)), say)
    _drop("cgroups", lambda: _remove_cgroups(known.containers), say)
    say("mounts, namespaces and cgroups removed")
    for path in looking.outside_files(where, known.containers):
        with contextlib.suppress(OSError):
            path.unlink()
    for folder in (where.run, where.state):
        _drop("folders", lambda folder=folder: _remove_tree(folder), say)  # type: ignore[misc]
    taken = looking.mount_points()  # another lab's kubelet would lose what it has mounted over an empty folder
    for shared in (*looking.SHARED_FOLDERS, *looking.cgroup_roots()):
        if str(shared) not in taken:
            with contextlib.suppress(OSError):
                shared.rmdir()  # refuses one that is not empty
    left = _settled(where, known, say)
    say(f"lab {where.lab}: " + (f"{len(left)} things are left" if left else "nothing is left"))
    return left


def _settled(where: Paths, known: Known, say: Callable[[str], None]) -> list[Leftover]:
    """What is left once the kernel had a moment: it frees maps and namespaces after their last user, not with it."""
    begun = reported = time.monotonic()
    while (left := looking.find(where, known)) and all(one.kind in _FREED_LATER for one in left):
        now = time.monotonic()
        if now > begun + _FREED_SECONDS:
            break
        if now > reported + 10:
            reported = now
            say(f"the kernel has yet to free {len(left)} things of connections that were cut off")
        time.sleep(_PAUSE_SECONDS)
    return left


def _remove_tree(folder: os.PathLike[str]) -> None:
    if os.path.lexists(folder):
        shutil.rmtree(folder)
