"""All attacks at once, from one namespace, from outside, and with one stolen node key."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lab.topology import prefix
from tests.drills.tenants import tenant
from tests.drills.tenants.api import Api, pods
from tests.drills.tenants.stolen_key import Loot, Outcome, steal, unheard
from tests.drills.traffic import PORT, Traffic, pid_in_pod
from tests.journeys.conftest import LabNamespace
from tests.labkit import Lab

PACKETS = Path(__file__).with_name("packets.py")
PODS = {"mallory-n1": "n1", "mallory-n2": "n2", "shape": "n3", "bomb": "n3"}
"""The attacker's pods: senders beside the victim's `server` and `friend`, one to relabel, one to bomb."""
CLOSED = 9555
THIEF, ROBBED = "n3", "n1"


@dataclass(frozen=True, slots=True)
class Sender:
    """One run of packets.py: where, and what."""

    where: str
    """A pod of the attacker's, or ``fab``: the host outside."""
    words: tuple[str, ...]
    rate: int


def senders(victim: dict[str, list[str]], names: list[str], hops: dict[int, str], scale: float) -> Iterator[Sender]:
    """What is sent; ``scale`` 1 is 20,000 SYNs a second from outside. ``hops``: the node of `friend`, by family."""
    for friend, server in zip(sorted(victim["friend"]), sorted(victim["server"]), strict=True):
        version = ip_address(friend).version
        part = scale if version == 4 else scale / 4
        at_friend, at_server = ("--target", friend), ("--target", server)
        open_port, closed = ("--port", str(PORT)), ("--port", str(CLOSED))
        about = ("--about", f"{friend},{server},{PORT}")
        outside = ("--source", "forged", "--via", hops[version])
        as_friend = ("--source", friend)
        yield Sender("fab", ("syn", *at_friend, *open_port, *outside), int(20_000 * part))
        yield Sender("mallory-n2", ("syn", *at_friend, *open_port), int(5_000 * part))
        yield Sender("mallory-n1", ("syn", *at_friend, *open_port, "--source", "forged"), int(2_000 * part))
        yield Sender("mallory-n1", ("udp", *at_friend, *closed), int(5_000 * part))
        yield Sender("mallory-n1", ("icmp", *at_friend, *about), int(2_000 * part))
        yield Sender("mallory-n2", ("icmp", *at_server, *about), int(2_000 * part))
        yield Sender("mallory-n2", ("fragments", *at_friend, *closed), int(1_000 * part))
        yield Sender("mallory-n2", ("fragments", *at_server, *open_port, *as_friend), int(1_000 * part))
        forged = ("forged", *at_server, *open_port, *as_friend, "--payload", _message(7), "--payload", _message(0))
        yield Sender("mallory-n2", forged, int(200 * part))
        yield Sender("mallory-n2", (*forged, "--priority-tag"), int(200 * part))
    for name in names:
        yield Sender("mallory-n1", ("udp", "--target", name, "--port", "53"), int(1_000 * scale / len(names)))


def _message(number: int) -> str:
    """A message of flows.py under a flow that nobody has: heard, it shows at once as one out of order."""
    return (0xFFFE).to_bytes(4, "big").hex() + number.to_bytes(8, "big").hex()


@dataclass(slots=True)
class Siege:
    """What runs. Made by :func:`siege`."""

    namespace: str
    began: float
    """By the wall clock."""
    taken: dict[str, float] = field(default_factory=dict)
    """When the API server first took what an attack asked for, by the wall clock."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """What the API server refused, by attack."""
    key: Outcome | None = None
    sent: list[str] = field(default_factory=list)
    """What became of each sender."""
    first_sent: dict[str, float] = field(default_factory=dict)
    """When the first of the senders of a place (:attr:`Sender.where`) began to send, by the wall clock."""

    def ended(self, sender: Sender, process: subprocess.Popen[str]) -> None:
        """Ends a sender, and takes down how it fared: one that ended before its time said why."""
        what = f"{sender.where} {' '.join(sender.words)} at {sender.rate}/s"
        lives = process.poll() is None
        if lives:
            process.terminate()
        said, wrong = process.communicate(timeout=10)
        if lives and process.returncode == -signal.SIGTERM:
            self.sent.append(f"had not begun: {what}")
            return
        if process.returncode:
            self.sent.append(f"ENDED: {what}: {wrong.strip()[-300:]}")
            return
        self.sent.append(f"ran: {what}: {said.strip()}")
        began = float(json.loads(said)["began"])
        self.first_sent[sender.where] = min(began, self.first_sent.get(sender.where, began))


@contextmanager
def siege(
    lab: Lab, traffic: Traffic, *, seconds: float, scale: float, attacks: tuple[str, ...], slower: float
) -> Iterator[Siege]:
    """Everything attacks until the end of the block, or for so many seconds at most. ``scale`` is of the packets,
    ``slower`` of the requests to the API server (:data:`tenant.ATTACKS`).
    """
    space = LabNamespace(lab, f"siege-{uuid.uuid4().hex[:8]}")
    lab.kubectl("create", "namespace", space.namespace)
    processes: list[tuple[Sender, subprocess.Popen[str]]] = []
    over = threading.Event()
    try:
        for name, node in PODS.items():
            space.pod(name, node, wait=False)
        for name in PODS:
            space.ready(name)
        api = Api(lab)
        api.merge(pods(space.namespace, "shape"), {"metadata": {"labels": {"drill": "target"}}})
        found = {pod["metadata"]["name"]: pod for pod in lab.get("pods", "-n", space.namespace)["items"]}
        nets = {name: f"/proc/{pid_in_pod(found[name])}/ns/net" for name in ("mallory-n1", "mallory-n2")}
        nets["fab"] = f"/run/netns/{prefix(lab.where.lab)}fab"
        made = Siege(space.namespace, time.time())
        end = time.monotonic() + seconds

        def going() -> bool:
            return not over.is_set() and time.monotonic() < end

        threads = [_tenant(lab, made, attack, going, slower) for attack in attacks]
        threads.append(_thief(lab, made, traffic, going))
        host = lab.node("n2")
        hops = {4: str(host.fabric4), 6: str(host.fabric6)}
        wanted = senders(traffic.addresses, _name_servers(lab), hops, scale)
        processes.extend((sender, _start(sender, nets[sender.where], seconds)) for sender in wanted)
        try:
            yield made
        finally:
            over.set()
            for sender, process in processes:
                made.ended(sender, process)
            for thread in threads:
                thread.join(40)
    finally:
        over.set()
        for _, process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
        lab.kubectl("delete", "namespace", space.namespace, "--wait=false")


def _start(sender: Sender, net: str, seconds: float) -> subprocess.Popen[str]:
    enter = ["nsenter", f"--net={net}", "--", sys.executable, "-I", str(PACKETS)]
    words = [*sender.words, "--rate", str(max(1, sender.rate)), "--seconds", str(seconds)]
    return subprocess.Popen([*enter, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _tenant(lab: Lab, made: Siege, attack: str, going: Any, slower: float) -> threading.Thread:
    pod = {"relabel": "shape", "bombs": "bomb"}.get(attack, "")

    def taken(_step: int) -> None:
        made.taken.setdefault(attack, time.time())

    def work() -> None:
        made.refused[attack] = tenant.run(Api(lab), attack, made.namespace, pod, going, slower, taken)

    thread = threading.Thread(target=work, name=attack, daemon=True)
    thread.start()
    return thread


def _thief(lab: Lab, made: Siege, traffic: Traffic, going: Any) -> threading.Thread:
    loot = Loot(
        url=lab.nats_url,
        seed=lab.seed(f"dataplane-{THIEF}"),
        trust=lab.trust,
        node=THIEF,
        victim=ROBBED,
        address=min(traffic.addresses["server"]),
        block=next((str(cidr) for cidr, holder in blocks(lab).items() if holder == ROBBED and ":" not in cidr), ""),
    )

    def work() -> None:
        made.key = asyncio.run(steal(loot, going, unheard))

    thread = threading.Thread(target=work, name="thief", daemon=True)
    thread.start()
    return thread


def blocks(lab: Lab) -> dict[str, str]:
    """Who holds which block, by what every Node is annotated with."""
    held = {}
    for node in lab.get("nodes")["items"]:
        text = node["metadata"].get("annotations", {}).get("airmesh.io/blocks", "")
        held.update(dict.fromkeys(filter(None, text.split(",")), str(node["metadata"]["name"])))
    return held


def _name_servers(lab: Lab) -> list[str]:
    """Addresses of CoreDNS' pods, of IPv4."""
    found = lab.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]
    return [ip["ip"] for pod in found for ip in pod["status"].get("podIPs", []) if ":" not in ip["ip"]]
