"""cls_bpf filters on a real kernel: set, set again in their place, read and taken away."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from linux import bpf
from linux.clsact import Filter, Parent, filter_program, remove_filter, set_filters
from linux.netlink import Netlink, NetlinkRefused
from linux.netns import inside, open_netns
from tests.netns.linux.conftest import Namespace

pytestmark = pytest.mark.privileged
LOOPBACK = 1
EITHER = pytest.mark.parametrize("parent", list(Parent))


@pytest.fixture
def programs() -> Iterator[tuple[int, int]]:
    """Two programs that let everything pass (TC_ACT_OK)."""
    leave = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    made = [bpf.program_load(bpf.ProgramKind.SCHED_CLS, leave) for _ in range(2)]
    yield made[0], made[1]
    for fd in made:
        os.close(fd)


@pytest.fixture
def there(netns: Namespace) -> Iterator[Namespace]:
    """This thread in the namespace."""
    descriptor = open_netns(netns.path)
    try:
        with inside(descriptor):
            yield netns
    finally:
        os.close(descriptor)


def run(filters: list[Filter], ifindex: int = LOOPBACK) -> None:
    with Netlink() as kernel:
        kernel.run(set_filters(ifindex, filters))


@EITHER
def test_a_filter_is_replaced_in_its_place(there: Namespace, programs: tuple[int, int], parent: Parent) -> None:
    for fd in programs:
        run([Filter(parent, fd, "am_test")])
        assert filter_program(LOOPBACK, parent) == bpf.program_info(fd).id
    said = there.tc(f"filter show dev lo {parent.name.lower()}")
    assert said.count(" am_test ") == 1, said
    (other,) = set(Parent) - {parent}
    assert filter_program(LOOPBACK, other) == 0


@EITHER
def test_what_is_not_there_is_gone(there: Namespace, programs: tuple[int, int], parent: Parent) -> None:
    for ifindex in (LOOPBACK, 999):
        assert filter_program(ifindex, parent) == 0
        remove_filter(ifindex, parent)
    run([Filter(parent, programs[0], "am_test")])
    remove_filter(LOOPBACK, parent)
    assert filter_program(LOOPBACK, parent) == 0
    remove_filter(LOOPBACK, parent)
    assert "am_test" not in there.tc(f"filter show dev lo {parent.name.lower()}")


def test_an_interface_that_is_not_there_takes_no_filter(there: Namespace, programs: tuple[int, int]) -> None:
    with pytest.raises(NetlinkRefused, match=r"clsact of link 999: No such device|Cannot find device"):
        run([Filter(Parent.INGRESS, programs[0], "am_test")], ifindex=999)
