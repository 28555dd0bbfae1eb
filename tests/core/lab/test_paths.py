"""Where a lab keeps its things: below its two folders, whatever the environment says, and nobody else's."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from lab.paths import SOURCE, NodePaths, Paths, Settings, paths, settings
from lab.topology import MAXIMUM_NODES, LabError, plan

NAMES = ("a", "air", "air2", "aira", "twelveletter")
"""Some of which begin as others do."""
SOCKET_BYTES = 107
"""Of a path in ``struct sockaddr_un``, without its end."""


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({}, "/.cache/airmesh"),
        ({"HOME": "/h"}, "/h/.cache/airmesh"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/var/cache"}, "/var/cache/airmesh"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache/airmesh"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "AIRMESH_CACHE": "/own"}, "/own"),
        ({"HOME": "/h", "AIRMESH_CACHE": ""}, "/h/.cache/airmesh"),
    ],
)
def test_the_cache_is_found_as_programs_find_theirs(environment: dict[str, str], cache: str) -> None:
    found = settings(environment)
    assert (str(found.cache), str(found.labs), str(found.run)) == (cache, "/var/lib/airmesh-labs", "/run/airmesh-labs")


@pytest.mark.parametrize("variable", ["AIRMESH_LABS", "AIRMESH_RUN", "AIRMESH_CACHE"])
@pytest.mark.parametrize("value", ["here", "./here", "../x", "~/x", " /x"])
def test_a_relative_folder_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(LabError, match=f"^{variable}=.*: give an absolute folder$"):
        settings({variable: value})
    assert settings({variable: "/x"})


def test_a_home_that_is_relative_is_refused_as_the_cache_it_makes() -> None:
    with pytest.raises(LabError, match=r"AIRMESH_CACHE=home/\.cache/airmesh"):
        settings({"HOME": "home"})


def every(where: Paths) -> list[Path]:
    """All that has a place in a lab of the largest size."""
    found = [getattr(where, name) for name, kind in vars(Paths).items() if isinstance(kind, property)]
    found += [where.kubeconfig_of("kubelet-n1"), where.log("etcd")]
    for host in plan(where.lab, MAXIMUM_NODES).hosts:
        node = where.node(host.name)
        found += [getattr(node, name) for name, kind in vars(NodePaths).items() if isinstance(kind, property)]
    return found


@pytest.mark.parametrize("lab", NAMES)
def test_nothing_lies_outside_of_a_labs_two_folders(lab: str) -> None:
    where = paths(lab, Settings(labs=Path("/l"), run=Path("/r"), cache=Path("/c")))
    assert (where.state, where.run) == (Path("/l") / lab, Path("/r") / lab)
    for path in every(where):
        assert ".." not in path.parts
        assert where.state in path.parents or where.run in path.parents


def test_two_labs_share_no_folder() -> None:
    """One is removed whole without a look at the others: none lies in another."""
    given_ = settings({})
    for one, other in permutations(NAMES, 2):
        first, second = paths(one, given_), paths(other, given_)
        assert first.state not in (second.state, *second.state.parents)
        assert not set(every(first)) & set(every(second))


def test_every_thing_has_a_place_of_its_own() -> None:
    found = every(paths("air", settings({})))
    assert len(found) == len(set(found))


def test_sockets_fit_their_limit_in_the_longest_lab() -> None:
    where = paths("twelveletter", settings({}))
    sockets = [where.supervisor_socket]
    for host in plan("twelveletter", MAXIMUM_NODES).hosts:
        sockets += [where.node(host.name).containerd_socket, where.node(host.name).cni_socket]
    assert max(len(str(path)) for path in sockets) + len(".ttrpc") <= SOCKET_BYTES


@pytest.mark.parametrize("lab", ["", "..", "a/b", "A", "x" * 13, "a b", "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(lab: str) -> None:
    with pytest.raises(LabError, match="lab name"):
        paths(lab, settings({}))


def test_the_source_is_this_repository() -> None:
    assert (SOURCE / "lab" / "paths.py").is_file()
    assert (SOURCE / "Makefile").is_file()
