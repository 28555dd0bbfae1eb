"""Golden files of a top-of-rack switch: what each routing daemon is configured with.

``pytest --update-golden tests/golden/lab`` writes them again, which a review must then allow.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.cluster.sessions import Sessions
from lab.cluster.switches import VENDORS
from lab.topology import Fabric, SwitchDaemon, plan

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("daemon", list(SwitchDaemon))
def test_the_files_of_a_switch_are_the_golden_ones(daemon: SwitchDaemon, update_golden: bool) -> None:
    topology = plan("air", 2, Fabric.TOR)
    files = VENDORS[daemon].files(topology, topology.switch("tor-a"), Sessions(passwords={"n1": "rack-7"}))
    text = "".join(f"==> {name} <==\n{body}" for name, body in files.items())
    path = FOLDER / f"tor-a.{daemon}.txt"
    if update_golden:
        path.write_text(text)
    assert path.read_text() == text
