"""Lines between the agent and the process that runs BFD: there and back, and what is not read."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

import pytest

from services.routing.bfd.messages import VERSION, Order, Report, Unreadable, Wanted, line, read_order, read_report
from services.routing.core.bfd.packet import Diagnostic, Discard, State
from services.routing.core.bfd.session import Failure, Remote, Session, Settings
from services.routing.core.bfd.sessions import Key
from services.routing.core.bfd.status import status_of

KEY = Key(ip_address("fe80::1"), ip_address("fe80::2"), "eth0")
FAILED = Session(
    settings=Settings(),
    discriminator=2**32 - 1,
    since=5,
    state=State.INIT,
    remote=Remote(state=State.DOWN, discriminator=9, receive_us=50_000),
    failure=Failure(diagnostic=Diagnostic.NEIGHBOR_DOWN, remote_state=State.ADMIN_DOWN, independent=True),
)


def test_an_order_there_and_back() -> None:
    wanted = Wanted(local=KEY.local, peer=KEY.peer, interface="eth0", settings=Settings(multiplier=5, enabled=False))
    order = Order(wanted=(wanted,), linger_seconds=1.5)
    said = line(order)
    assert said.endswith(b"\n")
    assert said.count(b"\n") == 1
    assert read_order(said) == order
    assert read_order(said).wanted[0].key == KEY


@pytest.mark.parametrize("discards", [Counter(), Counter([Discard.HOPS])])
def test_a_report_there_and_back(discards: Counter[Discard]) -> None:
    report = Report(instance=3, whole=True, statuses=(status_of(KEY, FAILED, discards, "why: what to do"),))
    assert read_report(line(report)) == report


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"wanted": [{"local": "nowhere", "peer": "10.0.0.1", "interface": "", "settings": {}}]}',
        b'{"wanted": [{"local": "10.0.0.2", "peer": "10.0.0.1", "interface": "", "settings": {"multiplier": 0}}]}',
        f'{{"version": {VERSION + 1}}}'.encode(),
        b'{"version": 0, "what": "a later one may say"}',
    ],
)
def test_what_is_no_order_of_this_version(octets: bytes) -> None:
    with pytest.raises(Unreadable):
        read_order(octets)
