"""FRR's bfdd in a namespace, with the zebra that it takes interfaces from.

Both give up root for the user ``frr``, so their folder is one that this user may enter.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from linux.netns import command
from proto.net import Address
from tests.netns.routing.bfd.ends import FIRST, KEYS, OWN, PEER, WAIT, need, until
from tests.netns.routing.conftest import Netns

Peer = dict[str, object]


class Frr:
    """Started, reconfigured and killed."""

    def __init__(self, netns: Netns) -> None:
        self.netns = netns
        self.programs = {name: need(name, "frr") for name in ("zebra", "bfdd", "vtysh")}
        self.folder = Path(tempfile.mkdtemp(prefix="am-frr-"))
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        peers = "".join(
            f" peer {OWN[family]} local-address {PEER[family]} interface fab0\n  profile switch\n !\n"
            for family in KEYS
        )
        (self.folder / "bfdd.conf").write_text(
            "bfd\n profile switch\n  detect-multiplier 3\n  receive-interval 50\n  transmit-interval 50\n !\n"
            f"{peers}!\n"
        )
        (self.folder / "zebra.conf").write_text("")
        for path in (self.folder, *self.folder.iterdir()):
            shutil.chown(path, "frr", "frr")

    async def start(self) -> None:
        self._start("zebra")
        await until((self.folder / "zserv.api").exists, "zebra listens")
        self._start("bfdd", "--bfdctl", str(self.folder / "bfdd.sock"))
        await until((self.folder / "bfdd.vty").exists, "bfdd listens")

    def _start(self, name: str, *more: str) -> None:
        at = str(self.folder)
        words = [self.programs[name], "-f", f"{at}/{name}.conf", "-z", f"{at}/zserv.api", "-i", f"{at}/{name}.pid"]
        words += ["--vty_socket", at, "-P", "0", *more]
        self.running[name] = subprocess.Popen(
            command(str(self.netns.path), *FIRST, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self, *names: str) -> None:
        for name in names or tuple(self.running):
            if (running := self.running.pop(name, None)) is not None:
                running.kill()
                running.wait(timeout=WAIT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def ask(self, *words: str) -> str:
        asked = [word for one in words for word in ("-c", one)]
        done = subprocess.run(
            [self.programs["vtysh"], "--vty_socket", str(self.folder), "-d", "bfdd", *asked],
            check=False,
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        return done.stdout

    def configure(self, family: int, *words: str) -> None:
        """Commands in a peer's block."""
        peer = f"peer {OWN[family]} local-address {PEER[family]} interface fab0"
        refused = self.ask("configure terminal", "bfd", peer, *words)
        assert not refused, refused

    def peer(self, family: int) -> Peer:
        """What ``show bfd peers`` says of this node."""
        said: list[Peer] = json.loads(self.ask("show bfd peers json") or "[]")
        own: Address = OWN[family]
        return next((one for one in said if one["peer"] == str(own)), {})
