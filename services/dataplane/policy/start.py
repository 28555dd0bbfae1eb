"""The loop of policy, and what follows from its passes: readiness, and the revision that the maps hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chassis.runtime.reconcile import Dirty, Done, Loop
from chassis.runtime.service import Runtime
from proto.policy import Revision
from services.dataplane.feed import Feed
from services.dataplane.policy.enforce import RULES, Enforcer
from services.dataplane.settings import Settings
from services.dataplane.signals import Signal

FULL_POLICY = 5.0


def start(
    runtime: Runtime[Settings],
    enforcer: Enforcer,
    feed: Feed,
    signal: Signal,
    *,
    begun: Callable[[], None],
    reached: Callable[[], None],
) -> PolicyLoop:
    """Enforces from now on. ``signal`` tells of changed local endpoints; ``begun`` is called when policy is in force
    for the first time, ``reached`` at each other revision.
    """
    policy = PolicyLoop(runtime, enforcer, feed, begun, reached)
    Loop(
        runtime,
        "policy",
        cursors=[feed.rules_view.cursor(), signal.cursor(), feed.identities.cursor()],  # as enforce.IDENTITIES
        apply=policy.enforce,
        period=FULL_POLICY,
    )
    return policy


class PolicyLoop:
    """``enforce`` is what a loop over rules, local endpoints and identities runs."""

    def __init__(
        self,
        runtime: Runtime[Settings],
        enforcer: Enforcer,
        feed: Feed,
        begun: Callable[[], None],
        reached: Callable[[], None],
    ) -> None:
        self._enforcer = enforcer
        self._feed = feed
        self._begun = begun
        self._report_reached = reached
        self._rules = runtime.health.require("rules")
        self._telemetry = runtime.telemetry
        self.reached: Revision | None = None
        """The last compilation that the maps have held whole; None until the first since this agent started."""

    async def enforce(self, dirty: Dirty) -> Done:
        """Policy into the maps."""
        begun = self._enforcer.begun
        rules, node = dirty.by_cursor[RULES] if dirty.by_cursor else (), self._feed.node
        with self._telemetry.together("policy.enforce", self._traces(rules), k8s__node__name=node) as span:
            outcome = await self._enforcer.enforce(dirty)
            if span is not None:
                span.set(airmesh__changed=outcome.changed)
        if self._enforcer.begun and not begun:
            self._begun()
        if outcome.revision is not None and outcome.revision != self.reached:
            self.reached = outcome.revision
            self._report_reached()
        view = self._feed.rules_view
        finished = view.synced and self.reached is not None  # what was in sync stays in force
        self._rules.latch(finished, view.why() or "the policy service has not finished a compilation")
        return Done()

    def _traces(self, keys: Iterable[str]) -> list[str]:
        """Of the changes that new rules of identities which live here come from: what they make of this node's kernel
        is part of these. What changes nothing here leaves no span, or each node would have one of every pod.
        """
        entries = self._feed.rules_view.entries
        found = (entries[key].traceparent for key in self._enforcer.fresh(keys) if key in entries)
        return [traceparent for traceparent in found if traceparent]
