"""Whose mounts are whose, where shims listen, which words `ldd` and /proc use."""

from pathlib import Path

import pytest

from lab.cluster.leftovers import into_labs, mounts_below, shim_socket
from lab.cluster.mesh import unified_cgroup
from lab.images.build import key, parse_go_version
from lab.images.contents import libraries
from lab.paths import paths, settings
from lab.topology import LabError

MOUNTS = """\
/dev/vda / ext4 rw 0 0
overlay /var/lib/airmesh-labs/air/n1/x overlay rw 0 0
tmpfs /var/lib/airmesh-labs/air/n1/x/deep tmpfs rw 0 0
tmpfs /var/lib/airmesh-labs/air2/n1/x tmpfs rw 0 0
bpf /run/airmesh-labs/air/n1/with\\040space bpf rw 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""


def test_mounts_are_the_labs_own_deepest_first() -> None:
    where = paths("air", settings({}))
    assert mounts_below(MOUNTS, (where.state, where.run)) == [
        "/run/airmesh-labs/air/n1/with space",
        "/var/lib/airmesh-labs/air/n1/x/deep",
        "/var/lib/airmesh-labs/air/n1/x",
    ]


@pytest.mark.parametrize(
    ("route", "leads"),
    [
        ("172.30.0.0/24 dev x", True),
        ("172.30.0.11 dev x", True),
        ("10.244.0.64/26 via 1.2.3.4", True),
        ("10.0.0.0/8 dev x", True),
        ("fd00:10:244::40/122 dev x", True),
        ("fd00:10:96::/112 dev x", True),
        ("192.168.1.0/24 dev eth0", False),
        ("fe80::/64 dev eth0", False),
        ("default via 10.0.0.1 dev eth0", False),
        ("unreachable default", False),
        ("", False),
    ],
)
def test_routes_that_lead_to_labs_are_distinguished(route: str, leads: bool) -> None:
    assert into_labs(route) == leads


def test_a_shims_socket_is_named_by_its_containerd_and_container() -> None:
    one = shim_socket(Path("/run/airmesh-labs/air/n1/containerd.sock"), "abc")
    other = shim_socket(Path("/run/airmesh-labs/air/n2/containerd.sock"), "abc")
    assert one != other
    assert len(one.name) == 64


def test_sockets_of_the_longest_lab_fit_their_limit() -> None:
    where = paths("twelveletter", settings({})).node("n60")
    assert max(len(str(p)) for p in (where.containerd_socket, where.cni_socket)) + len(".ttrpc") < 107


def test_libraries_are_the_absolute_words_of_ldd() -> None:
    said = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x86/libc.so.6 (0x7f)\n\t/lib64/ld-linux.so.2 (0x7f)\n"
    assert libraries(said) == ["/lib/x86/libc.so.6", "/lib64/ld-linux.so.2"]
    assert libraries("\tnot a dynamic executable\n") == []


def test_cgroup2_is_found_or_its_lack_is_named() -> None:
    assert unified_cgroup(MOUNTS) == "/sys/fs/cgroup/unified"
    with pytest.raises(LabError, match="mount -t cgroup2"):
        unified_cgroup("tmpfs / tmpfs rw 0 0\n")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.27rc1 linux/amd64", (1, 27)),
        ("go version go2.0 x", (2, 0)),
    ],
)
def test_go_versions(said: str, version: tuple[int, int]) -> None:
    assert parse_go_version(said) == version


def test_what_is_not_go_is_no_go() -> None:
    with pytest.raises(LabError, match="go version"):
        parse_go_version("gopher 1")


def test_keys_distinguish_contents_whatever_their_order() -> None:
    assert key({"a": b"1", "b": b"2"}) == key({"b": b"2", "a": b"1"})
    assert key({"a": b"1", "b": b"2"}) != key({"a": b"12", "b": b""})


def test_relative_folders_are_refused_by_name() -> None:
    with pytest.raises(LabError, match="AIRMESH_LABS"):
        settings({"AIRMESH_LABS": "here"})
