"""From `kubectl apply` of a policy to the last node's acknowledgement, at 10 and at 1,000 policies.

    python -m bench.first.policy [EDITS]

One policy that selects a live pod on each of three nodes is edited again and again (another port each time). A watch on
the bus notes when the edit is mirrored (`objects`) and when each node says that its kernel holds every rule up to that
revision (`acks`). The clock starts when kubectl is started; kubectl's own run time stands beside it, as the peer: it is
what a person waits for anyway. Each of the other policies selects one of 100 groups of pods, of which three live.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from bench.first import ground
from bench.first.figures import compare, percentile, table
from bench.first.stage import Stage, stage
from lab.cluster import launch
from proto.codec import kind_prefix, open_sealed
from proto.objects import KIND_OF, NetworkPolicy
from proto.policy import Ack
from proto.subjects import ACKS, JETSTREAM, OBJECTS, Bucket

POLICIES = (10, 1000)
_GROUPS, _AT_ONCE, _PATIENCE = 100, 250, 30.0


def document(namespace: str, name: str, group: int, port: int) -> dict[str, Any]:
    """A policy on one group, which another group may reach."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {"group": f"g{group}"} if group >= 0 else {"measured": "true"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"group": f"g{(group + 1) % _GROUPS}"}}}],
                    "ports": [{"protocol": "TCP", "port": port}],
                }
            ],
        },
    }


class Watch:
    """Notes when something was heard on the bus (seconds of the monotonic clock)."""

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._key = key
        self.mirrored = 0
        """Sequence of the edited policy in `objects`; 0 until it came there."""
        self.mirrored_at = 0.0
        self.heard: list[tuple[float, Ack]] = []
        self.news = asyncio.Event()

    async def begin(self) -> None:
        """Listen; returns when the server has the consumers."""
        await self._consume(OBJECTS, self._key, self._on_object)
        await self._consume(ACKS, "*", self._on_ack)

    async def _consume(self, bucket: Bucket, key: str, noted: Any) -> None:
        stream, name = bucket.stream, f"bench-{secrets.token_hex(6)}"
        subject, inbox = bucket.subject(key), self._client.new_inbox()

        async def more() -> None:
            ask = json.dumps({"batch": 1_000_000, "expires": 30_000_000_000}).encode()
            await self._client.publish(f"{JETSTREAM}.CONSUMER.MSG.NEXT.{stream}.{name}", ask, reply=inbox)

        async def on_message(message: Msg) -> None:
            await (more() if "Status" in (message.headers or {}) else noted(message))

        await self._client.subscribe(inbox, cb=on_message)
        config: dict[str, Any] = {"name": name, "deliver_policy": "new", "ack_policy": "none"}
        config |= {"filter_subject": subject, "mem_storage": True, "inactive_threshold": 60_000_000_000}
        ask = json.dumps({"stream_name": stream, "config": config}).encode()
        answer = json.loads(
            (await self._client.request(f"{JETSTREAM}.CONSUMER.CREATE.{stream}.{name}.{subject}", ask, timeout=5)).data
        )
        if "error" in answer:
            raise SystemExit(f"bucket {bucket.name}: {answer['error']}")
        await more()

    async def _on_object(self, message: Msg) -> None:
        self.mirrored, self.mirrored_at = message.metadata.sequence.stream, time.monotonic()
        self.news.set()

    async def _on_ack(self, message: Msg) -> None:
        if not message.subject.rsplit(".", 1)[1].startswith("_"):
            self.heard.append((time.monotonic(), open_sealed(Ack, message.data)[0]))
            self.news.set()

    def acknowledged(self, nodes: int) -> float | None:
        """When the last of `nodes` nodes had the edit; None while one has not."""
        if not self.mirrored:
            return None
        first: dict[str, float] = {}
        for when, ack in self.heard:
            if ack.rules.sequence >= self.mirrored:
                first.setdefault(ack.node, when)
        return max(first.values()) if len(first) == nodes else None


async def edit(on: Stage, watch: Watch, namespace: str, port: int) -> tuple[float, float, float]:
    """One edit: seconds from its begin to kubectl's end and to the last acknowledgement; from mirror to that."""
    watch.mirrored = 0
    watch.heard.clear()
    argv = [launch.kubectl(), f"--kubeconfig={on.where.kubeconfig}", "apply", "-f", "-"]
    body = json.dumps(document(namespace, "edited", -1, port)).encode()
    begun = time.monotonic()
    running = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    applied = asyncio.create_task(running.communicate(body))
    applied.add_done_callback(lambda _: ended.append(time.monotonic()))
    ended: list[float] = []
    try:
        async with asyncio.timeout(_PATIENCE):
            while (last := watch.acknowledged(len(on.plan.nodes))) is None:
                watch.news.clear()
                await watch.news.wait()
            await applied
    except TimeoutError:
        raise SystemExit(f"no acknowledgement of every node within {_PATIENCE:.0f} s: {watch.heard[-3:]}") from None
    if running.returncode:
        raise SystemExit(f"kubectl apply: exit {running.returncode}")
    return ended[0] - begun, last - begun, last - watch.mirrored_at


def prepare(on: Stage) -> str:
    """The namespace, with a pod on each node."""
    namespace = on.pods_namespace()
    pods = [ground.pod(namespace, f"p{number}", host.name) for number, host in enumerate(on.plan.nodes)]
    for number, one in enumerate(pods):
        labels: Any = one["metadata"]
        labels["labels"]["group"] = f"g{number}"
    on.apply(*pods)
    on.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod", "--all", "--timeout=60s")
    return namespace


async def measure(on: Stage, edits: int) -> str:
    """The table."""
    namespace = await asyncio.to_thread(prepare, on)
    client = Client()
    seed = on.seed("cli").read_text().strip()
    await client.connect(on.nats_url, nkeys_seed_str=seed, inbox_prefix=b"_INBOX.cli", name="bench", **on.trust)
    rows = []
    try:
        watch = Watch(client, f"{kind_prefix(KIND_OF[NetworkPolicy])}.>")
        await watch.begin()
        had = 1
        for policies in POLICIES:
            for begin in range(had, policies, _AT_ONCE):
                some = range(begin, min(policies, begin + _AT_ONCE))
                documents = [document(namespace, f"p{number}", number % _GROUPS, 8080) for number in some]
                await asyncio.to_thread(on.apply, *documents, verb="create")
            had = policies
            await asyncio.sleep(3)  # what they changed is acknowledged by then, or counted against us
            await edit(on, watch, namespace, 7000)
            took = []
            for number in range(edits):
                took.append(await edit(on, watch, namespace, 7001 + number))
                await asyncio.sleep(0.3)
            rows.append(line(policies, took))
            print(f"{policies} policies: {edits} edits", file=sys.stderr)
    finally:
        await client.close()
    head = ("policies", "kubectl apply itself, p50", "to the last ack, p50", "p99", "ratio", "mirror to last ack, p50")
    return f"{edits} edits, milliseconds.\n\n" + table((*head, "p99"), rows)


def line(policies: int, took: list[tuple[float, float, float]]) -> tuple[str, ...]:
    """A line of the table."""
    kubectl, last, inside = ([1000 * one[index] for one in took] for index in range(3))
    found = compare(last, kubectl)
    figures = (found.peer, found.ours, percentile(last, 0.99))
    return (
        f"{policies:,}",
        *(f"{figure:.0f}" for figure in figures),
        found.text,
        f"{percentile(inside, 0.5):.0f}",
        f"{percentile(inside, 0.99):.0f}",
    )


def main() -> None:
    """Print the table."""
    edits = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with stage() as on:
        print(asyncio.run(measure(on, edits)))


if __name__ == "__main__":
    main()
