"""A real CoreDNS is given new texts while it is asked: what it reads costs no query, what it refuses is seen and ends.

The states of a change are stepped by the servers' own pages, as ``services.dns.changes`` does it.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from linux.netns import command
from proto.dns import DnsServerText, DnsTuning, digest_of
from services.dns.core.change import SILENT_SECONDS, Seen, Sign, begun, held, sign, step
from services.dns.core.corefile import Recipe, render
from services.dns.core.decision import Chosen
from services.dns.core.question import is_answered, name_of_api, question
from services.dns.core.samples import parse
from services.dns.core.tuning import TUNABLE, Window, tuned
from tests.coredns import CoreDNS, Room
from tests.kubeapi import KubeApi

pytestmark = pytest.mark.privileged
RECIPE = Recipe(upstreams=(ip_address("192.0.2.53"),))
EVERYTHING = tuple((name, str(most)) for name, (_, most) in TUNABLE.items())
NAME = name_of_api("cluster.local")


def quick(recipe: Recipe) -> str:
    """The text, read again every two seconds."""
    return render(recipe).replace("reload 10s 5s", "reload 2s 1s").replace("lameduck 5s", "lameduck 0s")


@pytest.fixture(scope="module")
def room(kube_api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with Room(tmp_path_factory.mktemp("room"), kube_api) as made:
        yield made


class Asked:
    """One question after the other from a thread, and how many had no answer; each waits as long as a resolver does."""

    def __init__(self, room: Room) -> None:
        self._socket = room.bound(socket.SOCK_DGRAM)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answered, self.lost = 0, 0

    def __enter__(self) -> Asked:
        self._socket.connect(("127.0.0.1", 53))
        self._socket.settimeout(5.0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        self._socket.close()

    def one(self, number: int) -> bool:
        asked = question(NAME, number)
        try:
            self._socket.send(asked)
            return is_answered(asked, self._socket.recv(4096))
        except OSError:
            return False

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.005):
            number = (number + 1) % 65536
            if self.one(number):
                self.answered += 1
            else:
                self.lost += 1


class Loop:
    """A change of one server: ``write`` begins it, ``until`` looks until it is at a state."""

    def __init__(self, room: Room, server: CoreDNS, text: str) -> None:
        self._room, self._server, self.text = room, server, text
        self.tuning = DnsTuning(mode="advise")
        self._now = 1000.0

    def page(self) -> dict[str, DnsServerText]:
        argv = command(self._room.path, "curl", "-s", "-m", "5", "http://127.0.0.1:9153/metrics")
        page = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
        counts = parse(page)
        return {"one": DnsServerText("one", counts.version, counts.refused)} if page else {}

    def write(self, text: str) -> None:
        chosen = held(Chosen(text, self.text), self.tuning.change)
        measured = Window(seconds=1.0, counts=parse("")).measured
        self.tuning = begun(self.tuning, chosen, measured, self.page().values(), now=self._now)
        self._server.write(chosen.text)
        self.text = chosen.text

    def until(self, state: str, silent: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + 90
        while (change := self.tuning.change) is None or change.state != state:
            assert time.monotonic() < end, self.tuning
            servers = {} if silent() else self.page()
            seen = Seen(
                text=digest_of(self.text),
                servers=servers,
                silent_for=SILENT_SECONDS if silent() else 0.0,
                measured=Window(seconds=1.0, counts=parse(""), asked=30).measured,
            )
            found = sign(change, seen, now=self._now + 1) if change is not None else None
            if found is not None:
                self.tuning = step(self.tuning, *found, now=self._now)
            time.sleep(0.2)


def test_texts_that_are_read_and_refused_cost_no_query(room: Room) -> None:
    text = quick(RECIPE)
    with room.coredns(text) as server:
        assert server.starts()
        loop = Loop(room, server, text)
        with Asked(room) as asked:
            loop.write(quick(tuned(RECIPE, EVERYTHING)))
            loop.until("judged")
            loop.tuning = step(loop.tuning, Sign.GOOD, "as before", now=1001.0)
            good = loop.text
            loop.write(good.replace("    loadbalance\n", "    loadbalance\n    nosuch\n"))
            loop.until("taken-back")
            assert loop.tuning.change is not None
            assert "refused" in loop.tuning.change.outcome
            loop.write(loop.text)
            assert loop.text == good, "the text before is back"
        assert server.running.poll() is None
        assert asked.lost == 0
        assert asked.answered > 100


def test_a_text_that_ends_servers_is_taken_back_and_they_start_again(room: Room) -> None:
    """plugin/loop ends a server whose upstream is itself; the kubelet starts it anew, with the text before.

    The plugin asks once, and again only where nothing answers. While texts are changed the server of before may take
    the question, so its upstream is one that stays silent.
    """
    silent = room.bound(socket.SOCK_DGRAM)
    upstream = f"127.0.0.1:{silent.getsockname()[1]}"
    text = quick(RECIPE).replace("192.0.2.53:53", upstream)
    with silent, room.coredns(text) as server:
        assert server.starts()
        loop = Loop(room, server, text)
        loop.write(text.replace(upstream, "127.0.0.1:53"))
        loop.until("taken-back", silent=lambda: server.running.poll() is not None)
        assert "Loop" in server.said
        loop.write(loop.text)
        assert loop.text == text
    assert room.refuses(loop.text) == ""


def test_every_tuned_setting_is_one_that_coredns_starts_with(room: Room) -> None:
    assert room.refuses(render(tuned(RECIPE, EVERYTHING))) == ""
