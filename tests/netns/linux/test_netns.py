"""Network namespaces on a real kernel: what is one, and which a thread is in."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from linux.netns import (
    NotANamespace,
    by_cookie,
    command,
    cookie_of,
    enter,
    inside,
    netns_cookie,
    of_processes,
    open_first,
    open_netns,
)
from tests.netns.linux.conftest import Namespace

pytestmark = pytest.mark.privileged


def test_a_thread_is_inside_and_comes_home(netns: Namespace) -> None:
    home, inode = netns_cookie(), os.stat("/proc/thread-self/ns/net").st_ino
    descriptor = open_netns(netns.path)
    try:
        with inside(descriptor):
            assert os.stat("/proc/thread-self/ns/net").st_ino == os.fstat(descriptor).st_ino
            assert [name for _, name in socket.if_nameindex()] == ["lo"]
            assert netns_cookie() != home
        with pytest.raises(KeyError), inside(descriptor):
            raise KeyError
        assert (netns_cookie(), os.stat("/proc/thread-self/ns/net").st_ino) == (home, inode)
    finally:
        os.close(descriptor)


def test_one_is_found_again_by_its_cookie(netns: Namespace) -> None:
    home = netns_cookie()
    descriptor = open_netns(netns.path)
    with inside(descriptor):
        cookie = netns_cookie()
    os.close(descriptor)
    before = os.listdir("/proc/self/fd")
    with by_cookie([cookie, 2**63]) as found:
        assert list(found) == [cookie]
        with inside(found[cookie]):
            assert netns_cookie() == cookie
    assert netns_cookie() == home
    assert os.listdir("/proc/self/fd") == before


def test_what_is_no_namespace_is_refused(netns: Namespace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(netns.path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link", "pipe", "."):
        with pytest.raises(NotANamespace, match="give the path of a network namespace"):
            open_netns(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        open_netns(str(tmp_path / "absent"))


def test_a_namespace_of_another_kind_is_not_entered() -> None:
    """It lies on nsfs as well; setns refuses it."""
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(NotANamespace), inside(descriptor):
            pass
    finally:
        os.close(descriptor)


def test_a_thread_may_stay(netns: Namespace) -> None:
    """Its sockets are made there; other threads stay where they are."""
    home = netns_cookie()
    with ThreadPoolExecutor(1, initializer=enter, initargs=(netns.path,)) as there:
        assert there.submit(netns_cookie).result() != home
        made = there.submit(socket.socket, socket.AF_INET, socket.SOCK_DGRAM).result()
    with made:
        assert cookie_of(made) != home
    assert netns_cookie() == home
    with pytest.raises(NotANamespace):
        enter("/proc/version")
    assert netns_cookie() == home


def test_a_program_runs_there(netns: Namespace) -> None:
    said = subprocess.run(
        command(netns.path, "readlink", "/proc/self/ns/net"), check=True, capture_output=True, text=True, timeout=20
    ).stdout
    assert said.strip() == f"net:[{os.stat(netns.path).st_ino}]"


def test_a_namespace_is_found_by_whichever_of_its_processes_is_left(netns: Namespace) -> None:
    """One may end between the look at /proc and the opening; the namespace has not ended with it."""
    run = command(netns.path, "sleep", "60")
    first, second = subprocess.Popen(run), subprocess.Popen(run)
    try:
        wanted = os.stat(netns.path).st_ino
        deadline = time.monotonic() + 10
        while len(paths := of_processes().get(wanted, [])) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(paths) == {f"/proc/{one.pid}/ns/net" for one in (first, second)}
        gone, left = (first, second) if paths[0] == f"/proc/{first.pid}/ns/net" else (second, first)
        gone.kill()
        gone.wait(10)
        descriptor = open_first(paths)
        assert os.fstat(descriptor).st_ino == wanted
        os.close(descriptor)
        left.kill()
        left.wait(10)
        with pytest.raises(FileNotFoundError):
            open_first(paths)
        assert wanted not in of_processes()
    finally:
        for one in (first, second):
            one.kill()
            one.wait(10)


def test_one_that_only_processes_keep_is_found_by_its_cookie() -> None:
    """As a pod's whose path the runtime has taken away."""
    with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as resident:
        try:
            path, home = f"/proc/{resident.pid}/ns/net", os.stat("/proc/self/ns/net").st_ino
            deadline = time.monotonic() + 10
            while os.stat(path).st_ino == home and time.monotonic() < deadline:
                time.sleep(0.01)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            with inside(descriptor):
                cookie = netns_cookie()
            os.close(descriptor)
            before = os.listdir("/proc/self/fd")
            with by_cookie([cookie]) as found:
                assert list(found) == [cookie]
                assert os.fstat(found[cookie]).st_ino == os.stat(path).st_ino
            assert os.listdir("/proc/self/fd") == before
        finally:
            resident.kill()
