"""An upgrade between real namespaces: connections that talk, maps of other layouts, agents killed at any step."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from linux import bpf, clsact
from proto.policy import Direction
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath.maps import MAPS
from services.dataplane.core.datapath.pins import Source, layout_of
from services.dataplane.datapath.pins import opened_maps
from services.dataplane.datapath.programs import Datapath
from tests.bpf.former import BEFORE, OTHER, REPLACED, UNFILLED, as_before, change, ids, pins_of
from tests.bpf.live import LiveNode, attach, fill, live_node, opened
from tests.bpf.world import inside, scope_number

pytestmark = pytest.mark.privileged

PORT = 7000


@pytest.fixture
def node() -> Iterator[LiveNode]:
    with live_node("up") as built:
        yield built


@pytest.fixture
def before(folder: Path, cache: Path, node: LiveNode, way: bool) -> Iterator[Datapath]:
    """A datapath at work whose agent has gone; its descriptors of programs stay, to tell them from others."""
    built = opened(folder, cache, node, tcx=way)
    fill(built, node)
    attach(built, node)
    yield built
    built.close()


def isolate(datapath: Datapath, node: LiveNode) -> None:
    """Nobody may begin anything with a: only as answers of a flow that is known do b's packets reach it."""
    entry = pl.Subject(
        ingress=scope_number(node.a.identity, Direction.INGRESS), ingress_isolated=True, egress_isolated=False
    )
    datapath.tables.subjects.put(pl.SubjectKey(identity=node.a.identity), entry)
    datapath.tables.bump_generation()


class Talk:
    """Connections that a began with b over both families."""

    def __init__(self, node: LiveNode, stack: ExitStack) -> None:
        self._node = node
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        for version in (4, 6):
            server = stack.enter_context(node.b.socket(version, socket.SOCK_STREAM))
            server.bind((str(node.b.address(version)), PORT))
            server.listen()
            for _ in range(2):
                client = stack.enter_context(node.a.socket(version, socket.SOCK_STREAM))
                client.settimeout(20)
                client.connect((str(node.b.address(version)), PORT))
                accepted = stack.enter_context(server.accept()[0])
                accepted.settimeout(20)
                self.pairs.append((client, accepted))
        self._receiver = stack.enter_context(node.a.socket(4, socket.SOCK_DGRAM))
        self._receiver.bind((str(node.a.address(4)), PORT))
        self._receiver.setblocking(False)
        self._intruder = stack.enter_context(node.b.socket(4, socket.SOCK_DGRAM))

    def goes_on(self) -> bool:
        """Whether every connection carries a word to b and back."""
        try:
            for number, (client, accepted) in enumerate(self.pairs):
                word = number.to_bytes(4, "big") + os.urandom(4)
                client.sendall(word)
                accepted.sendall(accepted.recv(8))
                if client.recv(8) != word:
                    return False
        except TimeoutError:
            return False
        return True

    def is_guarded(self) -> bool:
        """Whether what b begins does not reach a. To be asked when the connections have gone on: they came later."""
        self._intruder.sendto(b"let me in", (str(self._node.a.address(4)), PORT))
        gone_on = self.goes_on()
        try:
            self._receiver.recv(100)
        except BlockingIOError:
            return gone_on
        return False

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """They talk all the while; none may miss a word."""
        stop, lost = threading.Event(), []

        def talk() -> None:
            while not stop.is_set():
                if not self.goes_on():
                    lost.append("a word")
                    return

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            yield
            stop.wait(0.1)
        finally:
            stop.set()
            talking.join()
        assert lost == []


@pytest.fixture
def talk(before: Datapath, node: LiveNode) -> Iterator[Talk]:
    with ExitStack() as stack:
        talking = Talk(node, stack)
        isolate(before, node)
        assert talking.is_guarded()
        yield talking


def running(datapath: Datapath, node: LiveNode) -> set[int]:
    with inside(node.netns):
        return {program for state in datapath.links().values() for program in state.programs}


def loaded(datapath: Datapath) -> set[int]:
    return {bpf.program_info(fd).id for fd in datapath.programs.values()}


def reopened(folder: Path, cache: Path, node: LiveNode, stack: ExitStack) -> Datapath:
    datapath = opened(folder, cache, node)
    stack.callback(datapath.close)
    return datapath


def switch(datapath: Datapath, node: LiveNode) -> None:
    with inside(node.netns):
        datapath.switch()


def test_connections_outlive_the_change_from_one_hash_for_all(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    had = ids(folder)
    flows = before.tables.flows.items()
    as_before(folder, BEFORE)
    with ExitStack() as stack:
        with talk.meanwhile():
            new = reopened(folder, cache, node, stack)
            assert (new.unfilled, new.losses) == (UNFILLED, {})
            switch(new, node)
        assert running(new, node) <= loaded(new)
        assert flows.keys() <= new.tables.flows.items().keys()
        now = ids(folder)
        assert {name for name in now if now[name] != had[name]} == REPLACED
        assert [path.name for path in folder.iterdir()] == ["v2"]
        assert {path.name for path in (folder / "v2").iterdir()} == {"maps", "links"}
        assert talk.is_guarded()


def test_from_a_layout_that_nobody_knows_all_begins_again(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    as_before(folder, "123456789abc")
    with ExitStack() as stack:
        with talk.meanwhile():
            new = reopened(folder, cache, node, stack)
            attach(new, node)  # as the agent does every few seconds
        assert new.unfilled == frozenset(Source)
        assert {"am_ct", "am_nat"} <= new.losses.keys()
        assert not running(new, node) & loaded(new), "the old programs run until the new maps are filled"
        assert new.tables.flows.items() == {}
        assert talk.is_guarded()
        fill(new, node)
        switch(new, node)
        assert running(new, node) <= loaded(new)
        assert [path.name for path in folder.iterdir()] == ["v2"]
        assert talk.goes_on(), "policy allows it anew"


def test_one_map_is_added(folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk) -> None:
    had = ids(folder)
    pins_of(folder)["am_src_ranges"].unlink()
    with ExitStack() as stack:
        with talk.meanwhile():
            new = reopened(folder, cache, node, stack)
            assert new.unfilled == {Source.SERVICES}
            assert new.losses == {}
            assert not running(new, node) & loaded(new)
            switch(new, node)
            assert running(new, node) <= loaded(new)
        now = ids(folder)
        assert {name for name in now if now[name] != had[name]} == {"am_src_ranges"}
        assert talk.is_guarded()


def test_one_map_has_grown_and_another_is_changed(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    grown = {"am_ct": 1 << 18, "am_ipcache": 1 << 20}
    with inside(node.netns):
        before.grow(grown)
    had = ids(folder)
    change(folder, "am_ipcache")
    with ExitStack() as stack:
        with talk.meanwhile():
            new = reopened(folder, cache, node, stack)
            with inside(node.netns):
                assert new.grow({"am_ipcache": 1 << 21, "am_services": 1 << 17}) == ("am_ipcache",), "others are shared"
            assert new.unfilled == {Source.ADDRESSES}
            assert not running(new, node) & loaded(new)
            fill_addresses(before, new)
            switch(new, node)
        assert new.tables.ipcache.entries == 1 << 21
        assert new.tables.flows.entries == 1 << 18
        assert {name for name, number in ids(folder).items() if number != had[name]} == {"am_ipcache"}
        assert talk.is_guarded()
        again = reopened(folder, cache, node, stack)
        assert again.tables.ipcache.entries == 1 << 21


def fill_addresses(old: Datapath, new: Datapath) -> None:
    new.tables.ipcache.apply(old.tables.ipcache.items())


def test_a_table_of_another_layout_has_a_successor_as_large(
    folder: Path, cache: Path, node: LiveNode, before: Datapath
) -> None:
    with inside(node.netns):
        before.grow({"am_ct": 1 << 18})
    change(folder, "am_ct")
    with ExitStack() as stack:
        assert reopened(folder, cache, node, stack).tables.flows.entries == 1 << 18


def test_conntrack_of_another_layout_begins_again_and_says_so(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    change(folder, "am_ct")
    with ExitStack() as stack:
        new = reopened(folder, cache, node, stack)
        assert new.unfilled == frozenset(), "nobody can fill it"
        assert new.losses.keys() == {"am_ct"}
        assert running(new, node) <= loaded(new)
        assert talk.goes_on(), "a's next packet takes it up in the middle: it may begin what it likes"
        assert talk.is_guarded()


def test_policy_is_never_judged_by_maps_that_are_half_filled(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    """One of its maps has changed: the others begin anew too, since the old programs go on with theirs as they are."""
    had = ids(folder)
    change(folder, "am_scope_port")
    with ExitStack() as stack:
        with talk.meanwhile():
            new = reopened(folder, cache, node, stack)
            assert new.unfilled == {Source.POLICY}
            assert new.tables.subjects.items() == {}
            # The agent writes what it likes into its maps: nobody is judged by them yet.
            new.tables.subjects.put(pl.SubjectKey(identity=node.a.identity), pl.Subject(ingress_isolated=False,
                                    egress_isolated=True))  # fmt: skip
            new.tables.bump_generation()
            attach(new, node)
        assert talk.is_guarded()
        for pod in (node.a, node.b):
            new.tables.subjects.put(
                pl.SubjectKey(identity=pod.identity), pl.Subject(ingress_isolated=False, egress_isolated=False)
            )
        isolate(new, node)
        with talk.meanwhile():
            switch(new, node)
        assert talk.is_guarded()
        changed = {name for name, number in ids(folder).items() if number != had[name]}
        assert changed == {"am_cidrs", "am_subjects", "am_selected", "am_scope_peer", "am_scope_port", "am_scope_rule"}


def test_flows_are_judged_by_the_new_maps(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    """Policy has changed while the old programs ran on: what they let through ends with the switch."""
    change(folder, "am_scope_port")
    with ExitStack() as stack:
        new = reopened(folder, cache, node, stack)
        fill(new, node)
        new.tables.subjects.put(
            pl.SubjectKey(identity=node.a.identity), pl.Subject(ingress_isolated=False, egress_isolated=True)
        )
        new.tables.bump_generation()
        assert talk.goes_on(), "by the old maps"
        switch(new, node)
        for client, _ in talk.pairs:
            client.settimeout(0.3)
        for _, accepted in talk.pairs:
            accepted.settimeout(0.3)
        assert not talk.goes_on()


def test_a_map_of_another_version_goes_with_the_switch(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    fd = bpf.map_create(1, 4, 4, 8, name="am_former")
    bpf.pin(fd, folder / "v2" / "maps" / f"am_former-{OTHER}")
    os.close(fd)
    with ExitStack() as stack:
        new = reopened(folder, cache, node, stack)
        assert new.unfilled == {Source.POLICY}, "it may have been one of policy's"
        assert "am_former" in pins_of(folder)
        fill(new, node)
        isolate(new, node)
        switch(new, node)
        assert "am_former" not in pins_of(folder)
        assert talk.is_guarded()


def test_a_hook_of_another_version_is_let_go_of(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, way: bool
) -> None:
    links = folder / "v2" / "links" / node.a.device
    kept = {pin.name for pin in links.iterdir()}
    bpf.pin(before.programs["from_pod"], links / ("later_hook" if way else f"later_hook-{node.a.ifindex}"))
    with ExitStack() as stack:
        new = reopened(folder, cache, node, stack)
        assert {pin.name for pin in links.iterdir()} == kept
        assert running(new, node) <= loaded(new)


def test_there_and_back_and_there_again(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk
) -> None:
    """What a version before this one has run in the meantime is what runs, not what this one left."""
    with ExitStack() as stack:
        reopened(folder, cache, node, stack)
        left = ids(folder)
        # As that one does: maps of its own beside, each link moved into its folder.
        (folder / "v2" / "maps").rename(folder / "kept")
        as_if_new = reopened(folder / "former", cache, node, stack)
        fill(as_if_new, node)
        isolate(as_if_new, node)
        ran = ids(folder / "former")
        as_before(folder / "former", BEFORE)
        former = folder / f"v{BEFORE}"
        (folder / "former" / f"v{BEFORE}").rename(former)
        (folder / "kept").rename(folder / "v2" / "maps")
        for link in (folder / "v2" / "links").iterdir():
            link.rename(former / "links" / link.name)
        with talk.meanwhile():
            new = reopened(folder, cache, node, stack)
            assert new.unfilled == UNFILLED
            switch(new, node)
        now = ids(folder)
        assert {name for name in now if now[name] != ran[name]} == REPLACED
        assert not set(now.values()) & set(left.values())
        assert new.unfilled == frozenset()
        assert running(new, node) <= loaded(new)


@pytest.mark.parametrize(
    "changed", [(), ("am_ipcache", "am_scope_port"), ("am_frags",)], ids=["same", "filled", "lost"]
)
def test_an_agent_killed_at_any_step(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk, changed: tuple[str, ...]
) -> None:
    """It is killed later and later in an upgrade from one hash for all, of which each new life finds what the last one
    left. Connections go on and policy holds at every moment.
    """
    had = ids(folder)
    as_before(folder, BEFORE)
    for name in changed:
        (folder / f"v{BEFORE}" / "maps" / name).unlink()
    killed, step = 0, 3
    while not _lives(folder, cache, node, step):
        assert talk.is_guarded(), f"killed at step {step}"
        killed, step = killed + 1, step + 9
    assert killed > 8
    assert talk.is_guarded()
    assert [path.name for path in folder.iterdir()] == ["v2"]
    assert {path.name for path in (folder / "v2").iterdir()} == {"maps", "links"}
    now = ids(folder)
    assert set(now) == {spec.name for spec in MAPS}
    assert {now[name] for name in ("am_ct", "am_ct_recent", "am_nat")} == {
        had[name] for name in ("am_ct", "am_ct_recent", "am_nat")
    }
    assert all(pin.name.endswith(layout_of(spec)) for spec in MAPS for pin in [pins_of(folder)[spec.name]])
    for fd in opened_maps(folder).values():
        os.close(fd)


@pytest.mark.parametrize("reached", [0, 1], ids=["before", "between"])
def test_an_agent_killed_while_new_maps_take_the_place_of_the_old(
    folder: Path, cache: Path, node: LiveNode, before: Datapath, talk: Talk, reached: int
) -> None:
    """Two renames: between them neither folder is in its place. The programs have been switched."""
    had = ids(folder)
    change(folder, "am_scratch")
    assert not _lives(folder, cache, node, reached, (Path, ("rename",)))
    left = {path.name for path in (folder / "v2").iterdir()}
    assert left == ({"maps", "next", "links"} if reached == 0 else {"last", "next", "links"})
    assert talk.is_guarded()
    with ExitStack() as stack:
        new = reopened(folder, cache, node, stack)
        assert {path.name for path in (folder / "v2").iterdir()} == {"maps", "links"}
        now = ids(folder)
        assert {name for name in now if now[name] != had[name]} == {"am_scratch"}
        assert running(new, node) <= loaded(new)
        assert talk.is_guarded()


Steps = tuple[Any, tuple[str, ...]]
ALL_STEPS: tuple[Steps, ...] = (
    (bpf, ("pin", "link_update", "link_create")),
    (Path, ("rename", "unlink", "rmdir", "mkdir")),
    (clsact, ("set_filters",)),
)
"""What changes the pins or the hooks."""


def _lives(folder: Path, cache: Path, node: LiveNode, steps: int, *counted: Steps) -> bool:
    """An agent's life that ends at the start of the so-manieth step; True when it came through."""
    child = os.fork()
    if child == 0:
        try:
            _die_after(steps, counted or ALL_STEPS)
            with inside(node.netns):
                datapath = Datapath.open(folder, cache)
                if datapath.unfilled:
                    if Source.POLICY in datapath.unfilled:
                        fill(datapath, node)
                        isolate(datapath, node)
                    datapath.switch()
            os._exit(0)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1)
    return code == 0


def _die_after(steps: int, what: tuple[Steps, ...]) -> None:
    """Counts these calls, in this process."""
    left = [steps]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(1)
            return original(*args, **kwargs)

        return call

    for where, names in what:
        for name in names:
            setattr(where, name, counted(getattr(where, name)))
