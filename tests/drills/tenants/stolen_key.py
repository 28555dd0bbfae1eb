"""One stolen node key, used for all that it can be tried for: a raw NATS client with the seed of a node's dataplane.

    python -m tests.drills.tenants.stolen_key --lab NAME --node n3 --victim n1 --address ADDRESS --seconds S

It writes others' keys, replies into buckets, publishes the victim's address as a pod of its own with another identity,
reports the victim's blocks with huge epochs, asks in the victim's name, and speaks on others' subjects. Bodies are
written out here by hand, so that no check of ours stands before the server's. What must come of it: nothing but lies
about its own node's pods, and those told.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import nats
import nats.errors
from nats.aio.client import Client

from tests.labkit import attach

MOST_SECONDS = 900.0
ROUND_SECONDS = 0.5
BUCKETS = (
    "objects", "blocks", "owners", "claims", "endpoints", "identities", "rules", "acks", "leases", "routes", "dns",
)  # fmt: skip
HUGE = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Loot:
    """What the thief has and knows."""

    url: str
    seed: Path
    trust: dict[str, Any]
    """How a client comes to trust the server."""
    node: str
    victim: str
    """The node it speaks for."""
    address: str
    """Of a pod of the victim's."""
    block: str = ""
    """A block of the victim's."""


@dataclass(slots=True)
class Outcome:
    """What became of the tries."""

    tried: int = 0
    denied: int = 0
    """Refused by the server at once."""
    answered: list[str] = field(default_factory=list)
    """Requests in another's name, or on another's subject, that were answered with success."""


def sealed(body: Any) -> bytes:
    """A value as it lies in a bucket: version, no trace, body."""
    return msgspec.msgpack.encode((1, "", body))


def endpoint(loot: Loot, count: int) -> dict[str, Any]:
    """The victim's pod, said to live with the thief, as somebody whom policies let in."""
    return {
        "node": loot.node,
        "address": loot.address,
        "namespace": "kube-system",
        "pod": "thief",
        "pod_uid": "thief",
        "identity": 1000 + count,
        "mac": b"\x02\0\0\0\0\1",
        "epoch": HUGE + count,
        "sequence": HUGE + count,
        "claimed": True,
    }


def _block(loot: Loot, holder: str) -> dict[str, Any]:
    cidr = loot.block or "10.244.0.0/26"
    return {"cidr": cidr, "pool": "thief", "node": holder, "node_uid": "thief", "epoch": HUGE, "nonce": "n"}


def requests(loot: Loot) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests to ipam, on the subject of everybody and on those of either node, in either name."""
    owner = {"namespace": "kube-system", "kind": "StatefulSet", "name": "thief", "ordinal": 0}
    asks = {
        "owner": owner,
        "family": 4,
        "pod_uid": "thief",
        "container": "thief",
        "interface": "eth0",
        "nonce": "thief",
    }
    for name in (loot.victim, loot.node):
        bodies: dict[str, dict[str, Any]] = {
            "report": {"node": name, "node_uid": "thief", "blocks": [_block(loot, name)], "claims": []},
            "block": {"node": name, "node_uid": "thief", "family": 4, "nonce": "thief"},
            "claim": {**asks, "node": name, "address": loot.address},
            "release": {"address": loot.address, "container": "thief", "interface": "eth0", "nonce": "thief"},
        }
        for what, body in bodies.items():
            if name == loot.node and what in ("block", "claim"):
                continue  # that would be its right
            for where in ("", f".{loot.victim}", f".{loot.node}"):
                yield f"airmesh.v1.ipam.{what}{where}", body


def publications(loot: Loot, count: int) -> Iterator[tuple[str, bytes, str]]:
    """Subject, bytes and reply of what is only sent."""
    digits = ip_address(loot.address).packed.hex()
    lie = sealed(endpoint(loot, count))
    garbage = b"\xff not a value"
    for bucket in BUCKETS:
        for key in ("_epoch", "_complete", loot.victim, f"{loot.victim}.{digits}", "_frontier.0", "_relevant"):
            yield f"$KV.{bucket}_v1.{key}", garbage, ""
        # The server never looks at the reply: the answer of JetStream would be stored there.
        into = f"$KV.{bucket}_v1._epoch"
        for prefix in ("$JS.API", "airmesh.v1.jetstream"):
            yield f"{prefix}.STREAM.INFO.KV_{bucket}_v1", b"", into
            yield f"{prefix}.DIRECT.GET.KV_{bucket}_v1.$KV.{bucket}_v1._epoch", b"", into
            yield f"{prefix}.STREAM.DELETE.KV_{bucket}_v1", b"", ""
            yield f"{prefix}.STREAM.PURGE.KV_{bucket}_v1", b"", ""
            consumer = {"stream_name": f"KV_{bucket}_v1", "config": {"deliver_subject": "airmesh.v1.ipam.release"}}
            yield f"{prefix}.CONSUMER.CREATE.KV_{bucket}_v1", msgspec.json.encode(consumer), into
    yield f"$KV.endpoints_v1.{loot.victim}.{digits}", lie, ""
    yield f"$KV.leases_v1.node.{loot.victim}", garbage, ""
    yield "airmesh.v1.ipam.show", b"\x80", "$KV.rules_v1._frontier.0"
    for service in ("policy", "ipam", "cluster", "dns"):
        yield f"airmesh.v1.events.{service}.fault", msgspec.msgpack.encode({"service": service, "fault": "lie"}), ""
    yield f"airmesh.v1.flows.{loot.victim}.dropped", garbage, ""


async def one_round(client: Client, loot: Loot, outcome: Outcome, count: int) -> None:
    """Everything once."""
    for subject, body, reply in publications(loot, count):
        outcome.tried += 1
        await client.publish(subject, body, reply=reply)
    # These it may write: they are lies about its own node.
    own = f"$KV.endpoints_v1.{loot.node}.{ip_address(loot.address).packed.hex()}"
    await client.publish(own, sealed(endpoint(loot, count)))
    for subject, request in requests(loot):
        outcome.tried += 1
        with suppress(nats.errors.Error, TimeoutError):
            headers = {"Airmesh-Version": "1"}
            said = await client.request(subject, msgspec.msgpack.encode(request), timeout=0.5, headers=headers)
            answer = msgspec.msgpack.decode(said.data)
            its_own = subject.endswith(f".{loot.node}") and request.get("node", loot.node) == loot.node
            if isinstance(answer, dict) and answer.get("ok") and not its_own:
                outcome.answered.append(f"{subject} with {request}")
    with suppress(nats.errors.Error, TimeoutError):
        await client.flush(2)


async def steal(loot: Loot, going: Callable[[], bool], report: Callable[[Exception], Awaitable[None]]) -> Outcome:
    """Round after round while ``going``; comes back when the server throws it out."""
    outcome = Outcome()

    async def error(why: Exception) -> None:
        outcome.denied += "ermission" in str(why)
        await report(why)

    async def connect() -> Client:
        return await nats.connect(
            loot.url,
            nkeys_seed=str(loot.seed),
            **loot.trust,
            name="thief",
            inbox_prefix=f"_INBOX.dataplane-{loot.node}".encode(),
            error_cb=error,
            connect_timeout=2,
            allow_reconnect=False,
        )

    async def insist() -> Client:
        """A server lets in whoever begins with the handshake within 50 ms: a thief on a busy machine may be late."""
        while True:
            try:
                return await connect()
            except (nats.errors.Error, OSError) as why:
                await report(why)
                if not going():
                    raise
                await asyncio.sleep(0.5)

    client = await insist()
    try:
        for count in itertools.count():
            if not going():
                break
            try:
                if client.is_closed:
                    client = await connect()
                await one_round(client, loot, outcome, count)
            except (nats.errors.Error, OSError, TimeoutError):
                await asyncio.sleep(ROUND_SECONDS)
            await asyncio.sleep(ROUND_SECONDS)
        with suppress(nats.errors.Error, OSError, TimeoutError):
            await client.publish(f"$KV.endpoints_v1.{loot.node}.{ip_address(loot.address).packed.hex()}", b"",
                                 headers={"KV-Operation": "DEL"})  # fmt: skip
            await client.flush(2)
    finally:
        with suppress(nats.errors.Error, OSError):
            await client.close()
    return outcome


async def unheard(_why: Exception) -> None:
    """Errors are counted elsewhere."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="tests.drills.tenants.stolen_key")
    parser.add_argument("--lab", required=True)
    parser.add_argument("--node", default="n3")
    parser.add_argument("--victim", default="n1")
    parser.add_argument("--address", required=True, help="of a pod on the victim's node")
    parser.add_argument("--block", default="", help="of the victim's node")
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    lab = attach(given.lab)
    seed = lab.seed(f"dataplane-{given.node}")
    loot = Loot(
        url=lab.nats_url,
        seed=seed,
        trust=lab.trust,
        node=given.node,
        victim=given.victim,
        address=given.address,
        block=given.block,
    )
    end = time.monotonic() + min(given.seconds, MOST_SECONDS)
    print(asyncio.run(steal(loot, lambda: time.monotonic() < end, unheard)))


if __name__ == "__main__":
    main()
