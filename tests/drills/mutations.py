"""The bugs that the drill sows: each a change of one place, made by nobody so far and easily made by anybody.

A mutant names the tests that must catch it, few enough to be quick. When its text has moved on, the drill says so: put
it where the code is now, or take it out when the mistake can no longer be made. ``tests/README.md`` lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One bug: ``old`` stands exactly once in ``file`` and becomes ``new``; ``tests`` must catch it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Files of tests, or single ones (``file::test``), as pytest takes them."""


CHASSIS = (
    Mutant(
        name="a-fault-that-returns-stays-silent",
        file="kit/once.py",
        old="        self._lasting &= found.keys()\n",
        new="",
        tests=("tests/core/kit/test_once.py",),
    ),
    Mutant(
        name="collections-visit-all-there-is",
        file="chassis/runtime/garbage.py",
        old="        gc.freeze()\n",
        new="        return\n",
        tests=("tests/shell/chassis/runtime/test_garbage.py",),
    ),
    Mutant(
        name="identity-of-the-namespace-before",
        file="kit/identity.py",
        old="of_pod is pod and of_namespace is namespace and",
        new="of_pod is pod and",
        tests=("tests/core/kit/test_identity.py",),
    ),
    Mutant(
        name="buffer-writes-while-disconnected",
        file="chassis/bus/connection.py",
        old="                pending_size=-1,\n",
        new="",
        tests=(
            "tests/shell/chassis/bus/test_nats_traps.py::test_write_by_a_client_that_was_asked_for_before_the_break_never_appears",
        ),
    ),
    Mutant(
        name="compare-and-set-without-comparing",
        file="chassis/bus/kv.py",
        old='headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}',
        new="headers: dict[str, str] = {}",
        tests=("tests/shell/chassis/bus/test_bus.py",),
    ),
    Mutant(
        name="in-sync-before-the-marker",
        file="chassis/bus/view.py",
        old="            and all(self.scope_complete(scope) for scope in self._markers)\n        )",
        new="        )",
        tests=("tests/shell/chassis/bus/test_bus.py",),
    ),
    Mutant(
        name="forget-what-was-known-when-listing",
        file="chassis/bus/view.py",
        old="        self._stale = set(self._entries) | set(self._marks)\n",
        new="        self._stale = set(self._entries) | set(self._marks)\n        self._entries.clear()\n",
        tests=("tests/shell/chassis/bus/test_nats_traps.py::test_view_follows_a_bucket_that_was_made_anew",),
    ),
    Mutant(
        name="a-view-remembers-what-is-deleted",
        file="chassis/bus/view.py",
        old="        self._wake = asyncio.Event()\n",
        new="        self._wake = asyncio.Event()\n        self._own = self.cursor()\n",
        tests=("tests/drills/test_churn.py::test_nothing_stays_of_what_came_and_went",),
    ),
    Mutant(
        name="unknown-version-is-deleted",
        file="chassis/bus/view.py",
        old="            self._unreadable(change, str(error), newer=isinstance(error, codec.UnknownVersion))\n",
        new="            held.pop(key, None)\n            self._dirty(key)\n",
        tests=("tests/shell/chassis/bus/test_nats_traps.py::test_view_keeps_the_last_good_value",),
    ),
    Mutant(
        name="take-a-living-holders-lease",
        file="chassis/runtime/terms.py",
        old="(ours and mine.term in (0, mine.known)) or now - mine.since >= record.seconds\n",
        new="(ours and mine.term in (0, mine.known)) or now - mine.since >= 0\n",
        tests=("tests/shell/chassis/runtime/test_lease.py::test_one_copy_is_active_and_the_next_takes_over",),
    ),
    Mutant(
        name="traceparent-lost",
        file="chassis/bus/kv.py",
        old="        sealed = codec.seal(value, traceparent or current_traceparent())\n",
        new="        sealed = codec.seal(value)\n",
        tests=("tests/shell/cluster/test_mirror.py::test_a_life_of_a_pod_is_one_trace",),
    ),
    Mutant(
        name="everybody-may-write-everything",
        file="chassis/bus/accounts.py",
        old='found += [key] if key == ">" or grant.exact else [key, f"{key}.>"]',
        new='found += [">"]',
        tests=("tests/shell/chassis/bus/test_allow_lists.py",),
    ),
    Mutant(
        name="a-node-writes-as-many-keys-as-it-likes",
        file="chassis/bus/buckets.py",
        old="    if bucket.renamed is not None:\n",
        new="    if not bucket.slots and bucket.renamed is not None:\n",
        tests=("tests/drills/test_stolen_key.py::test_it_fills_no_bucket",),
    ),
    Mutant(
        name="a-node-writes-below-its-keys",
        file="chassis/bus/accounts.py",
        old='key == ">" or grant.exact else',
        new='key == ">" else',
        tests=("tests/drills/test_stolen_key.py::test_it_fills_no_bucket",),
    ),
    Mutant(
        name="one-node-has-every-answer",
        file="chassis/bus/fair_queue.py",
        old="if self._running.get(asker, 0) < self._each]",
        new="if self._running.get(asker, 0) < self._at_once]",
        tests=("tests/core/chassis/bus/test_fair_queue.py",),
    ),
    Mutant(
        name="every-key-is-imported",
        file="chassis/bus/accounts.py",
        old="    role = user.role\n    subjects: list[str] = []\n",
        new='    role = user.role\n    subjects: list[str] = ["$KV.>"]\n',
        tests=("tests/shell/chassis/bus/test_allow_lists.py",),
    ),
    Mutant(
        name="an-answer-to-anybodys-inbox",
        file="chassis/bus/accounts.py",
        old='Import(account, f"{inbox}.{user.name}.*", f"{inbox}.*"),',
        new='Import(account, f"{inbox}.>", f"{inbox}.>"),',
        tests=("tests/shell/chassis/bus/test_accounts.py",),
    ),
    Mutant(
        name="a-node-tells-in-anothers-name",
        file="chassis/bus/accounts.py",
        old='tail = f".{encode_segment(user.node)}" if role.per_node and "{node}" not in subject else ""',
        new='tail = ""',
        tests=("tests/shell/chassis/bus/test_bus.py", "tests/shell/chassis/bus/test_accounts.py"),
    ),
    Mutant(
        name="answer-wherever-a-request-points",
        file="chassis/bus/micro.py",
        old="    if not message.reply.startswith(replies):\n",
        new="    if not message.reply:\n",
        tests=("tests/shell/chassis/bus/test_accounts.py",),
    ),
    Mutant(
        name="a-stored-message-is-a-request",
        file="chassis/bus/micro.py",
        old='        if lower.startswith("nats-") and lower != _REQUEST_INFO:\n',
        new='        if lower == "nats-" + _REQUEST_INFO:\n',
        tests=("tests/shell/chassis/bus/test_accounts.py",),
    ),
    Mutant(
        name="own-unreadable-value-stays",
        file="chassis/bus/view.py",
        old="                if self._damaged and self._mend_by is not None:\n",
        new="                if self._damaged and self._mend_by is None:\n",
        tests=("tests/shell/chassis/bus/test_mending.py::test_every_writer_mends_its_own",),
    ),
    Mutant(
        name="mend-with-what-may-be-old",
        file="chassis/bus/view.py",
        old="            sure = followed if before is None else before.sure\n",
        new="            sure = True\n",
        tests=("tests/shell/chassis/bus/test_mending.py::test_who_may_have_missed_a_value_lets_the_others_go_first",),
    ),
    Mutant(
        name="unreadable-is-in-the-way-of-its-writer",
        file="chassis/bus/kv.py",
        old="(mend and _is_damaged(type(value), stored))",
        new="(mend and False)",
        tests=("tests/shell/cluster/test_mirror.py::test_what_nobody_can_read_is_written_again",),
    ),
    Mutant(
        name="unreadable-aborts-the-pass",
        file="services/policy/publish.py",
        old="        if isinstance(found, Unreadable) and isinstance(found.why, codec.UnknownVersion):\n",
        new="        if isinstance(found, Unreadable) and isinstance(found.why, ValueError):\n",
        tests=("tests/shell/policy/test_service.py::test_published_values_that_nobody_can_read_are_written_again",),
    ),
    Mutant(
        name="pull-once",
        file="chassis/bus/tail.py",
        old="            await self._again()  # its time is over, or what it may bring in all\n",
        new="            return\n",
        tests=("tests/shell/chassis/bus/test_nats_traps.py::test_requests_for_messages_end_and_are_asked_again",),
    ),
)

CLUSTER = (
    Mutant(
        name="broken-policy-isolates-nobody",
        file="services/cluster/core/cache.py",
        old="stand_in = closed(raw) if value is None and self.kind.type is NetworkPolicy else None",
        new="stand_in = None",
        tests=("tests/core/cluster/test_cache.py",),
    ),
    Mutant(
        name="broken-object-is-deleted",
        file="services/cluster/core/diff.py",
        old='    return uid in ("", getattr(there, "uid", uid))\n',
        new="    return False\n",
        tests=("tests/core/cluster/test_cache.py",),
    ),
    Mutant(
        name="delete-keys-of-nodes-that-live",
        file="services/cluster/core/departed.py",
        old="    for node in written.keys() - there - holders:\n",
        new="    for node in written.keys() - holders:\n",
        tests=("tests/core/cluster/test_departed.py",),
    ),
    Mutant(
        name="delete-keys-before-blocks-are-taken-back",
        file="services/cluster/core/departed.py",
        old="    for node in written.keys() - there - holders:\n",
        new="    for node in written.keys() - there:\n",
        tests=("tests/core/cluster/test_departed.py",),
    ),
    Mutant(
        name="who-speaks-has-departed",
        file="services/cluster/core/departed.py",
        old="if known is not None and known.written == keys else",
        new="if known is not None else",
        tests=("tests/core/cluster/test_departed.py",),
    ),
    Mutant(
        name="one-key-may-flood-the-api",
        file="services/cluster/core/object_faults.py",
        old="        if mine.left < 1:\n            return False\n",
        new="",
        tests=("tests/core/cluster/test_object_faults.py",),
    ),
    Mutant(
        name="misspelt-wish-is-taken-in-silence",
        file="services/cluster/core/unserved.py",
        old="        elif key.startswith(OURS) and key not in known:\n",
        new="        elif key.startswith(OURS) and key in known:\n",
        tests=("tests/core/cluster/test_fields.py",),
    ),
)

IPAM = (
    Mutant(
        name="skip-the-compare-and-set",
        file="services/ipam/store.py",
        old="            written = await store.update(key, value, over.revision)\n",
        new="            written = await store.put(key, value)\n",
        tests=("tests/core/ipam/test_store.py",),
    ),
    Mutant(
        name="claim-re-held-while-its-holder-lives",
        file="services/ipam/core/claims.py",
        old="    if is_running(holder := pod(claim.pod_uid)):\n",
        new="    if is_running(holder := None):\n",
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
    Mutant(
        name="give-before-every-node-has-spoken",
        file="services/ipam/core/recovery.py",
        old="node.name not in reported and (node.ready or not node.blocks)))",
        new="False))",
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
    Mutant(
        name="believe-the-body-of-a-request",
        file="services/ipam/senders.py",
        old="            if request.node != node:\n",
        new="            if not node:\n",
        tests=("tests/drills/test_stolen_key.py::test_it_takes_no_block_and_no_claim",),
    ),
    Mutant(
        name="take-the-epoch-of-a-report",
        file="services/ipam/core/recovery.py",
        old="mine = Block(cidr, reporter.pool, node, reporter.uid, epoch, _nonce(reported))",
        new="mine = Block(cidr, reporter.pool, node, reporter.uid, max(epoch, reported.epoch), _nonce(reported))",
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
    Mutant(
        name="report-takes-what-another-holds",
        file="services/ipam/core/recovery.py",
        old="    if complete:\n        return GiveUp(",
        new="    if complete and reported.epoch <= known.epoch:\n        return GiveUp(",
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
    Mutant(
        name="who-reports-first-has-what-two-claim",
        file="services/ipam/core/recovery.py",
        old="    return Write(_contested(mine), known)\n\n",
        new='    return GiveUp(cidr, "another has it")\n\n',
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
    Mutant(
        name="knowing-the-nonce-releases-a-claim",
        file="services/ipam/core/claims.py",
        old="(claim.node, claim.container, claim.interface, claim.nonce) != (\n        node,\n",
        new="(claim.container, claim.interface, claim.nonce) != (\n",
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
    Mutant(
        name="one-node-takes-every-block",
        file="services/ipam/grants.py",
        old="                self._refuse_more(request.node, request.family)\n",
        new="                pass\n",
        tests=("tests/drills/test_stolen_key.py::test_it_takes_no_block_and_no_claim",),
    ),
    Mutant(
        name="claims-rest-no-time",
        file="services/ipam/core/claims.py",
        old='elif lasts(("free", str(address), str(claim.epoch)), cooldown):',
        new='elif lasts(("free", str(address), str(claim.epoch)), 0):',
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
    Mutant(
        name="pool-that-asks-for-a-tunnel-gives-addresses",
        file="kit/pools.py",
        old="        verdict = _unsupported(pool) or PoolVerdict(pool.name, OK)\n",
        new="        verdict = PoolVerdict(pool.name, OK)\n",
        tests=("tests/core/kit/test_pools.py", "tests/core/cluster/test_fields.py"),
    ),
    Mutant(
        name="status-is-well-with-a-refused-pool",
        file="cli/reports/agents.py",
        old="    found += addresses or ()\n",
        new="",
        tests=("tests/core/cli/test_reports.py",),
    ),
    Mutant(
        name="node-waits-for-a-pool-that-does-not-select-it",
        file="services/dataplane/core/ipam/addressing.py",
        old="for pool in pools.enabled(family) if pool.takes(node)]",
        new="for pool in pools.enabled(family)]",
        tests=("tests/core/dataplane/ipam/test_addressing.py",),
    ),
)

POLICY = (
    Mutant(
        name="a-namespace-that-is-gone-is-remembered",
        file="services/policy/core/identities.py",
        old="            if not mine:\n                del self._keys_by_namespace[old.namespace]\n",
        new="",
        tests=("tests/core/policy/test_graph.py",),
    ),
    Mutant(
        name="absent-selector-selects-all",
        file="kit/selectors.py",
        old="    if selector is None:\n        return False\n",
        new="    if selector is None:\n        return True\n",
        tests=("tests/core/kit/test_selectors.py",),
    ),
    Mutant(
        name="empty-pod-selector-in-any-namespace",
        file="services/policy/core/dialects/networkpolicy.py",
        old="    return SelectorPeer(namespace=home, namespace_selector=peer.namespace_selector,",
        new="    return SelectorPeer(namespace_selector=peer.namespace_selector or type(peer.pod_selector)(),",
        tests=("tests/core/policy/test_compile.py",),
    ),
    Mutant(
        name="ignore-except",
        file="services/policy/core/cidrs.py",
        old="        for hole in holes:\n            edge(hole).ended.append(block)\n",
        new="",
        tests=("tests/core/policy/test_cidrs.py::test_partition",),
    ),
    Mutant(
        name="ipv6-world-holds-ipv4",
        file="services/policy/core/cidrs.py",
        old="    if block.cidr.version == 6 and overlap(block.cidr, _MAPPED):\n        yield _MAPPED\n",
        new="",
        tests=("tests/core/policy/test_cidrs.py",),
    ),
    Mutant(
        name="drop-ipv6-blocks",
        file="services/policy/core/cidrs.py",
        old="    for version in (4, 6):\n        entries +=",
        new="    for version in (4,):\n        entries +=",
        tests=("tests/core/policy/test_cidrs.py",),
    ),
    Mutant(
        name="a-policy-may-name-any-number-of-cidrs",
        file="services/policy/core/cidr_sets.py",
        old="        if cost.prefixes > limits.policy_prefixes:\n",
        new="        if not cost.prefixes:\n",
        tests=("tests/core/policy/test_cidr_sets.py",),
    ),
    Mutant(
        name="the-cluster-pays-for-the-largest-namespace",
        file="services/policy/core/cidr_sets.py",
        old="    while total > limits.prefixes:\n",
        new="    while total < 0:\n",
        tests=("tests/core/policy/test_cidr_sets.py",),
    ),
    Mutant(
        name="an-edit-counts-every-namespaces-blocks",
        file="services/policy/core/cidr_sets.py",
        old="        for namespace in self._stale:\n",
        new="        for namespace in {*self._costs, *self._stale}:\n",
        tests=("tests/core/policy/test_cidr_sets.py",),
    ),
    Mutant(
        name="a-refused-policy-lets-its-blocks-in",
        file="services/policy/core/cidr_sets.py",
        old="        if named is None or name in self._refused or name in",
        new="        if named is None or name in",
        tests=("tests/core/policy/test_cidr_sets.py",),
    ),
    Mutant(
        name="put-old-rules-over-new",
        file="services/policy/core/plan.py",
        old="        return Step.YIELD\n",
        new="        return Step.WRITE\n",
        tests=("tests/core/policy/test_plan.py",),
    ),
    Mutant(
        name="frontier-before-rules",
        file="services/policy/shards.py",
        old="""\
        changed = await self._write_identities(mine, wanted.revision, fence, anew=anew)
""",
        new="""\
        early = Frontier(shard=shard, shards=len(self._leases), revision=wanted.revision)
        await self._rules.write(frontier_key(shard), early, plan.deciding(plan.frontier_step, early, anew=anew), fence)
        changed = await self._write_identities(mine, wanted.revision, fence, anew=anew)
""",
        tests=("tests/shell/policy/test_service.py",),
    ),
    Mutant(
        name="who-has-just-left-may-not-live-there",
        file="services/policy/core/residents.py",
        old="        kept = {identity for identity, since in gone.items() if now - since < grace}\n",
        new="        kept: set[int] = set()\n",
        tests=("tests/core/policy/test_residents.py",),
    ),
    Mutant(
        name="frontier-without-residents",
        file="services/policy/shards.py",
        old="        await self.residents.publish(shard, wanted.revision, fence, everything=everything)\n",
        new="",
        tests=("tests/shell/policy/test_residents.py::test_a_frontier_promises_the_residents",),
    ),
    Mutant(
        name="hidden-label-counts-as-absent",
        file="kit/selectors.py",
        old="    if value is None and hidden and hidden_key(requirement.key) in hidden:\n",
        new="    if False:\n",
        tests=("tests/core/kit/test_selectors.py",),
    ),
    Mutant(
        name="untold-label-isolates-nobody",
        file="services/policy/core/compile.py",
        old="may_select(subject.pod_selector, member.labels, member.hidden_keys)",
        new="may_select(subject.pod_selector, member.labels)",
        tests=("tests/core/policy/test_graph.py",),
    ),
    Mutant(
        name="a-new-identity-recompiles-everybody",
        file="services/policy/core/matches.py",
        old="        return {member.identity} | self._count_ports(member, 1)\n",
        new="        return set(self.members) | self._count_ports(member, 1)\n",
        tests=("tests/core/policy/test_graph.py::test_only_what_a_change_touches_is_recompiled",),
    ),
    Mutant(
        name="a-rule-for-each-peer",
        file="services/policy/core/compile.py",
        old="            yield Clause(direction, source, shared, False, pods, numbers, rule.action)\n",
        new="""\
            for one in pods:
                yield Clause(direction, source, shared, False, (one,), (), rule.action)
            for number in numbers:
                yield Clause(direction, source, shared, False, (), (number,), rule.action)
""",
        tests=("tests/core/policy/test_compile.py",),
    ),
    Mutant(
        name="what-is-passed-on-is-allowed",
        file="services/policy/core/tiers.py",
        old="clause._replace(action=Action.DENY if after.isolated else Action.ALLOW)",
        new="clause._replace(action=Action.ALLOW)",
        tests=("tests/core/policy/test_tiers.py",),
    ),
    Mutant(
        name="an-action-that-no-node-enforces-is-taken",
        file="services/policy/core/compile.py",
        old="    if rule.action not in limits.actions:\n",
        new="    if False:\n",
        tests=("tests/core/policy/test_tiers.py",),
    ),
    Mutant(
        name="a-direction-denied-whole-is-open-where-nothing-isolates",
        file="services/policy/core/compile.py",
        old="    return any(policy.isolates(direction) or policy.rules(direction) for policy in policies)\n",
        new="    return any(policy.isolates(direction) for policy in policies)\n",
        tests=("tests/core/policy/test_tiers.py",),
    ),
    Mutant(
        name="united-rules-move-past-a-deny",
        file="services/policy/core/compile.py",
        old="        for run, (_, same) in enumerate(groupby(found, key=_action)):\n",
        new="        for run, same in [(0, found)]:\n",
        tests=("tests/core/policy/test_tiers.py",),
    ),
    Mutant(
        name="one-tenants-ports-push-out-others",
        file="services/policy/core/matches.py",
        old="        return home not in namespaces, -len(namespaces), port\n",
        new="        return False, 0, port\n",
        tests=("tests/core/policy/test_compile.py",),
    ),
    Mutant(
        name="a-namespace-without-a-budget",
        file="services/policy/core/budget.py",
        old="            over.add(member.identity)\n",
        new="            pass\n",
        tests=("tests/core/policy/test_graph.py",),
    ),
    Mutant(
        name="foreign-selectors-spend-the-budget",
        file="services/policy/core/budget.py",
        old="    if not foreign or member.hidden_keys:\n",
        new="    if True:\n",
        tests=("tests/core/policy/test_graph.py",),
    ),
    Mutant(
        name="new-identities-push-out-old-ones",
        file="services/policy/core/budget.py",
        old="    return roster.lingers(member.identity), member.identity not in recorded, member.identity\n",
        new="    return roster.lingers(member.identity), member.identity in recorded, member.identity\n",
        tests=("tests/core/policy/test_graph.py",),
    ),
    Mutant(
        name="everything-that-was-lingers",
        file="services/policy/core/plan.py",
        old="        most = max(min(used[namespace], limits.identities - used[namespace]), FEW)\n",
        new="        most = len(found)\n",
        tests=("tests/core/policy/test_plan.py",),
    ),
    Mutant(
        name="policies-name-keys-of-everybodys-pods",
        file="services/policy/core/named.py",
        old="    yield from _asked(policy.subject, ())\n",
        new="    yield from (key._replace(scope='') for key in _asked(policy.subject, ()))\n",
        tests=("tests/core/policy/test_graph.py",),
    ),
    Mutant(
        name="labels-of-the-node-make-an-identity",
        file="proto/identity.py",
        old="    return key in UNSTABLE_LABELS or key.startswith(UNSTABLE_PREFIXES)\n",
        new="    return key in UNSTABLE_LABELS\n",
        tests=("tests/core/kit/test_identity.py", "tests/core/policy/test_zones.py"),
    ),
    Mutant(
        name="frontier-without-relevant-keys",
        file="services/policy/shards.py",
        old="            relevant=self._graph.relevant,\n",
        new="",
        tests=("tests/shell/dataplane/endpoint/test_admission.py",),
    ),
    Mutant(
        name="frontier-without-namespaces",
        file="services/policy/shards.py",
        old="            namespaces=wanted.namespaces,\n",
        new="",
        tests=("tests/shell/policy/test_service.py::test_rules_identities_frontiers_and_markers",),
    ),
    Mutant(
        name="a-full-bucket-stops-the-frontier",
        file="services/policy/shards.py",
        old="""\
            why = refused
            if present is None:
""",
        new="""\
            raise
            if present is None:
""",
        tests=("tests/shell/policy/test_service.py::test_a_full_bucket_of_records_does_not_stop_the_frontier",),
    ),
    Mutant(
        name="rules-that-are-not-taken-stay-as-they-were",
        file="services/policy/shards.py",
        old="            written = await self._deny(identity, policy.revision, fence)\n",
        new="            written = False\n",
        tests=(
            "tests/shell/policy/test_service.py::test_rules_that_the_bus_does_not_take_are_denied_and_hold_up_nobody",
        ),
    ),
    Mutant(
        name="the-frontier-waits-for-room",
        file="services/policy/shards.py",
        old="                if victim is None:\n",
        new="                if victim != -1:\n",
        tests=(
            "tests/shell/policy/test_service.py::test_a_bucket_of_rules_that_is_full_to_the_brim_takes_the_frontier",
        ),
    ),
    Mutant(
        name="rules-of-a-namespace-without-a-budget",
        file="services/policy/core/sizes.py",
        old="        if total > self._most:\n",
        new="        if False:\n",
        tests=("tests/core/policy/test_graph.py",),
    ),
)

ROUTING = (
    Mutant(
        name="nobody-is-told-who-holds-up-recovery",
        file="services/ipam/upkeep.py",
        old="            self._publish(fault, remedy, key[1])",
        new="            pass",
        tests=("tests/shell/ipam/test_recovery.py",),
    ),
    Mutant(
        name="sweep-routes-before-in-sync",
        file="services/routing/core/plan.py",
        old="    if not (mesh.blocks_complete and mesh.claims_complete):\n        return False\n",
        new="",
        tests=("tests/core/routing/test_plan.py",),
    ),
    Mutant(
        name="no-routes-for-ipv6-blocks",
        file="services/routing/core/plan.py",
        old="if name != mesh.me and block is not None and block.node == name:",
        new="if name != mesh.me and block is not None and block.node == name and prefix.version == 4:",
        tests=("tests/core/routing/test_plan.py",),
    ),
    Mutant(
        name="believe-any-announcer",
        file="services/routing/core/plan.py",
        old="if name != mesh.me and block is not None and block.node == name:",
        new="if name != mesh.me:",
        tests=("tests/core/routing/test_plan.py",),
    ),
    Mutant(
        name="believe-routes-in-anothers-name",
        file="services/routing/mirror.py",
        old="if routes.node == _writer(key)}",
        new="if routes.node}",
        tests=("tests/netns/routing/test_routes.py::test_a_node_that_speaks_in_anothers_name_draws_no_traffic",),
    ),
    Mutant(
        name="an-impostor-makes-others-unready",
        file="services/routing/core/plan.py",
        old="            of_others=True,\n        )\n        for writer",
        new="        )\n        for writer",
        tests=("tests/core/routing/test_plan.py",),
    ),
    Mutant(
        name="a-false-announcement-makes-others-unready",
        file="services/routing/core/plan.py",
        old="                        of_others=True,\n                    )\n                )\n                break",
        new="                    )\n                )\n                break",
        tests=("tests/core/routing/test_plan.py",),
    ),
    Mutant(
        name="a-path-for-what-is-announced-and-not-held",
        file="services/routing/core/plan.py",
        old="held = [prefix for prefix in told.prefixes if _holds(name, prefix, mesh)]",
        new="held = told.prefixes",
        tests=("tests/core/routing/test_plan.py",),
    ),
    Mutant(
        name="a-model-that-the-other-node-cannot-do",
        file="services/routing/core/models/__init__.py",
        old="    if name not in pair.peer.models:",
        new="    if False:",
        tests=("tests/core/routing/test_models.py",),
    ),
    Mutant(
        name="another-model-than-was-asked-for",
        file="services/routing/core/models/__init__.py",
        old="    for name in asked[:-1]:",
        new="    for name in models:",
        tests=("tests/core/routing/test_models.py",),
    ),
    Mutant(
        name="mtu-without-what-a-model-adds",
        file="kit/models.py",
        old="min(uplinks, default=USUAL_MTU) - overhead,",
        new="min(uplinks, default=USUAL_MTU),",
        tests=("tests/core/kit/test_models.py",),
    ),
)

DATAPLANE = (
    Mutant(
        name="start-before-the-frontier",
        file="services/dataplane/core/endpoint/admission.py",
        old="        if not frontier.revision.covers(seen):\n",
        new="        if False:\n",
        tests=("tests/core/dataplane/endpoint/test_admission.py",),
    ),
    Mutant(
        name="identity-by-a-namespace-of-before",
        file="services/dataplane/core/endpoint/admission.py",
        old="        if frontier.namespaces > knowledge.namespaces_at:\n",
        new="        if False:\n",
        tests=("tests/core/dataplane/endpoint/test_admission.py",),
    ),
    Mutant(
        name="frontier-names-a-namespace-of-an-earlier-life",
        file="services/policy/feed.py",
        old="key.startswith(_NAMESPACES) and listed(key)",
        new="key.startswith(_NAMESPACES) and key in entries",
        tests=("tests/shell/policy/test_lives.py",),
    ),
    Mutant(
        name="node-counts-namespaces-of-an-earlier-life",
        file="services/dataplane/feed.py",
        old=" if key.startswith(prefix) and view.listed(key))",
        new=" if key in view.entries and key.startswith(prefix))",
        tests=("tests/shell/policy/test_lives.py",),
    ),
    Mutant(
        name="journal-without-fdatasync",
        file="services/dataplane/ipam/journal.py",
        old="        os.fdatasync(self._file)\n",
        new="",
        tests=("tests/shell/dataplane/ipam/test_journal.py",),
    ),
    Mutant(
        name="freed-address-rests-no-time",
        file="services/dataplane/core/ipam/journal.py",
        old="        if now - at >= cooldown:\n",
        new="        if now >= at:\n",
        tests=("tests/core/dataplane/ipam/test_journal.py",),
    ),
    Mutant(
        name="later-word-wins-an-address",
        file="services/dataplane/core/ipcache/entries.py",
        old="    return max(able, key=_precedence, default=None)\n",
        new="    return able[-1] if able else None\n",
        tests=("tests/core/dataplane/ipcache/test_ipcache.py",),
    ),
    Mutant(
        name="former-address-of-an-endpoint-stays",
        file="services/dataplane/core/ipcache/entries.py",
        old="            self._dirty.add(before.address)\n",
        new="",
        tests=("tests/core/dataplane/ipcache/test_ipcache.py",),
    ),
    Mutant(
        name="a-block-concerns-nobody",
        file="services/dataplane/core/ipcache/judge.py",
        old="                self._dirty |= self._at.get(address, set())\n        else",
        new="                pass\n        else",
        tests=("tests/core/dataplane/ipcache/test_judge.py",),
    ),
    Mutant(
        name="any-external-ip-is-honoured",
        file="services/dataplane/core/loadbalancer/node_context.py",
        old="        return any(address in network for network in self.external)\n",
        new="        return True\n",
        tests=("tests/core/dataplane/loadbalancer/test_frontends.py",),
    ),
    Mutant(
        name="external-policy-local-reaches-other-nodes",
        file="services/dataplane/core/loadbalancer/frontends.py",
        old="flags, choice = flags | ServiceFlag.LOCAL_ONLY, Choice.LOCAL",
        new="flags, choice = flags | ServiceFlag.LOCAL_ONLY, Choice.CLUSTER",
        tests=("tests/core/dataplane/loadbalancer/test_frontends.py",),
    ),
    Mutant(
        name="hints-of-some-endpoints-are-followed",
        file="services/dataplane/core/loadbalancer/endpoint_choice.py",
        old="        if not all(hints(endpoint) for endpoint, _ in ready):\n            return []\n",
        new="",
        tests=("tests/core/dataplane/loadbalancer/test_services.py",),
    ),
    Mutant(
        name="a-refused-service-keeps-its-endpoints",
        file="services/dataplane/core/loadbalancer/frontends.py",
        old="                slices = () if owner in closed else objects.slices(name)\n",
        new="                slices = objects.slices(name)\n",
        tests=("tests/core/dataplane/loadbalancer/test_services.py",),
    ),
    Mutant(
        name="terminating-endpoints-pass-health-checks",
        file="services/dataplane/core/loadbalancer/health_checks.py",
        old="            and takes_new(endpoint, not_ready_too=service.publish_not_ready)\n",
        new="            and endpoint.serving\n",
        tests=("tests/core/dataplane/loadbalancer/test_health_checks.py",),
    ),
    Mutant(
        name="removals-wait-for-additions",
        file="services/dataplane/datapath/maps.py",
        old="""\
            try:
                left = self._set(upserts)
            finally:
                gone = self._remove(deletes)
""",
        new="""\
            left = self._set(upserts)
            if left:
                raise TableFull(self.spec, left, self.entries)
            gone = self._remove(deletes)
""",
        tests=("tests/bpf/test_tables.py::TestTable",),
    ),
    Mutant(
        name="oldest-of-the-largest-tenant-gives",
        file="services/dataplane/core/datapath/shares.py",
        old="        members.sort(key=lambda one: one[0])\n",
        new="        members.sort(key=lambda one: one[0], reverse=True)\n",
        tests=("tests/core/dataplane/datapath/test_shares.py",),
    ),
    Mutant(
        name="a-busy-tenant-waits-for-no-turn",
        file="services/dataplane/core/loadbalancer/turns.py",
        old="            if amount > LITTLE:\n",
        new="            if amount < 0:\n",
        tests=("tests/core/dataplane/datapath/test_shares.py",),
    ),
    Mutant(
        name="front-without-its-backends",
        file="services/dataplane/core/loadbalancer/services.py",
        old="set_services={key: one for key, one in steps.set_services.items() if one.number not in short},",
        new="set_services=steps.set_services,",
        tests=("tests/core/dataplane/loadbalancer/test_services.py",),
    ),
    Mutant(
        name="whoever-came-first-has-the-front",
        file="services/dataplane/core/loadbalancer/frontends.py",
        old="            first, second = sorted((holder, front), key=_rank)\n",
        new="            first, second = holder, front\n",
        tests=("tests/core/dataplane/loadbalancer/test_services.py",),
    ),
    Mutant(
        name="grown-table-begins-anew",
        file="services/dataplane/datapath/replacement.py",
        old="                bpf.update_batch(self.fd, keys, values, count)\n",
        new="",
        tests=("tests/bpf/test_live.py::test_a_table_grows_under_flows_that_go_on",),
    ),
    Mutant(
        name="rank-ignored-in-a-scope",
        file="services/dataplane/core/policy/scopes.py",
        old="    mine.sort(key=lambda rule: (rule.rank, rule.verdict))\n",
        new="",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="outer-cidrs-before-those-in-them",
        file="services/dataplane/core/policy/cidr_maps.py",
        old="if actual.get(key) != value), key=_length, reverse=True)",
        new="if actual.get(key) != value), key=_length)",
        tests=("tests/core/dataplane/policy/test_cidr_maps.py",),
    ),
    Mutant(
        name="all-namespaces-share-their-cidr-sets",
        file="services/dataplane/core/policy/cidr_maps.py",
        old="    return blake2b(namespace.encode(), digest_size=8).digest() if namespace else bytes(8)\n",
        new="    return bytes(8)\n",
        tests=("tests/core/dataplane/policy/test_cidr_maps.py",),
    ),
    Mutant(
        name="port-without-what-contains-it",
        file="services/dataplane/core/policy/scopes.py",
        old="    return {port: _union(port, own) for port in own}\n",
        new="    return own\n",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="old-scope-goes-before-the-subject-flips",
        file="services/dataplane/core/policy/maps.py",
        old="        yield from self._fill()\n        yield from self._flip(final=False)\n",
        new=(
            "        for number in [one for one in self.held.scopes if not self._is_wanted(one)]:\n"
            "            yield self.held.drop(number)\n"
            "        yield from self._fill()\n"
            "        yield from self._flip(final=False)\n"
        ),
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="subject-flips-before-its-scope-is-whole",
        file="services/dataplane/core/policy/maps.py",
        old="not in self.refused and number in self.held.scopes:\n",
        new="not in self.refused:\n",
        tests=("tests/core/dataplane/policy/test_policy_maps.py::test_a_subject_flips_when_its_scope_is_whole",),
    ),
    Mutant(
        name="policy-maps-ask-for-no-room",
        file="services/dataplane/core/policy/steps.py",
        old="        return any(asked * 5 > room * 4 for asked, room in pairs)\n",
        new="        return any(asked > room * 1000 for asked, room in pairs)\n",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="whoever-comes-next-gets-no-place",
        file="services/dataplane/core/policy/selected_places.py",
        old="        return newest_of_the_largest(sizes, newest_first, short)\n",
        new="        return list(fresh)[-short:]\n",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="who-gives-its-place-keeps-its-flows",
        file="services/dataplane/core/policy/maps.py",
        old="                lost = lost or bool(self.held.sets[before].mask & in_force)\n",
        new="",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="cidrs-without-room-are-not-told",
        file="services/dataplane/policy/partitions.py",
        old="for name in self._refused if name in self._in_force}\n",
        new="for name in ()}\n",
        tests=("tests/bpf/test_cidr_partitions.py",),
    ),
    Mutant(
        name="full-map-keeps-the-old-rights",
        file="services/dataplane/core/policy/maps.py",
        old="            self._refuse(self._users.get(number, ()), sizes)\n            return\n",
        new="            return\n",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="generation-not-bumped",
        file="services/dataplane/core/policy/maps.py",
        old="        if removes or told:\n            yield Bump()\n",
        new="",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="identity-that-lost-a-selector-keeps-its-flows",
        file="services/dataplane/core/policy/maps.py",
        old="        if lost:\n            yield Bump()\n",
        new="",
        tests=("tests/core/dataplane/policy/test_policy_maps.py",),
    ),
    Mutant(
        name="member-goes-from-a-view-out-of-sync",
        file="services/dataplane/policy/enforce.py",
        old='                elif view.synced and not key.startswith("_"):\n',
        new='                elif not key.startswith("_"):\n',
        tests=("tests/bpf/test_policy_steps.py",),
    ),
    Mutant(
        name="enforces-before-identities-are-in-sync",
        file="services/dataplane/policy/enforce.py",
        old="feed.rules_view.synced and feed.identities.synced",
        new="feed.rules_view.synced",
        tests=("tests/bpf/test_policy_steps.py",),
    ),
    Mutant(
        name="acknowledged-before-the-members-are-here",
        file="services/dataplane/policy/enforce.py",
        old="least if members and self._maps.settled else None",
        new="least",
        tests=("tests/bpf/test_policy_steps.py",),
    ),
    Mutant(
        name="policy-maps-taken-over-one-by-one",
        file="services/dataplane/core/datapath/pins.py",
        old="        taken -= policy\n",
        new="        pass\n",
        tests=("tests/core/dataplane/datapath/test_pins.py",),
    ),
    Mutant(
        name="map-outlives-what-it-refers-to",
        file="services/dataplane/core/datapath/pins.py",
        old="any(other.name not in taken for other in rule.refers)",
        new="False",
        tests=("tests/core/dataplane/datapath/test_pins.py",),
    ),
    Mutant(
        name="map-half-filled-counts-as-taken-over",
        file="services/dataplane/core/datapath/pins.py",
        old="    lost = [spec for spec in rules if spec.name not in taken]\n",
        new="    lost = [spec for spec in rules if spec.name not in taken | fresh.keys()]\n",
        tests=("tests/core/dataplane/datapath/test_pins.py",),
    ),
    Mutant(
        name="successor-of-a-grown-table-is-small",
        file="services/dataplane/core/datapath/pins.py",
        old="return max(asked, now[spec.name].entries) if",
        new="return asked if",
        tests=("tests/core/dataplane/datapath/test_pins.py",),
    ),
    Mutant(
        name="meaning-of-entries-is-no-part-of-the-layout",
        file="services/dataplane/core/datapath/pins.py",
        old="flags {spec.flags} revision {spec.revision} ",
        new="flags {spec.flags} revision 0 ",
        tests=("tests/core/dataplane/datapath/test_pins.py",),
    ),
    Mutant(
        name="flows-of-the-version-before-are-forgotten",
        file="services/dataplane/datapath/pins.py",
        old=", LAYOUTS_BEFORE.get(former.name[1:]))",
        new=")",
        tests=("tests/bpf/test_upgrade.py::test_connections_outlive_the_change_from_one_hash_for_all",),
    ),
    Mutant(
        name="programs-switched-before-maps-are-filled",
        file="services/dataplane/datapath/programs.py",
        old="        if not plan.unfilled:\n",
        new="        if folder:\n",
        tests=("tests/bpf/test_upgrade.py::test_policy_is_never_judged_by_maps_that_are_half_filled",),
    ),
    Mutant(
        name="new-programs-hung-while-an-upgrade-waits",
        file="services/dataplane/datapath/programs.py",
        old="            if self.unfilled:  # the old programs run on; only what hangs in the air is mended\n",
        new="            if not folder.exists():\n",
        tests=("tests/bpf/test_upgrade.py::test_policy_is_never_judged_by_maps_that_are_half_filled",),
    ),
    Mutant(
        name="old-links-grow-into-an-upgrade-that-waits",
        file="services/dataplane/datapath/programs.py",
        old="            if not self.unfilled:\n                self._refresh()\n",
        new="            self._refresh()\n",
        tests=("tests/bpf/test_upgrade.py::test_one_map_has_grown_and_another_is_changed",),
    ),
    Mutant(
        name="flows-keep-the-verdict-of-the-old-maps",
        file="services/dataplane/datapath/programs.py",
        old="                self.tables.bump_generation()  # flows are judged again, by these maps\n",
        new="                pass\n",
        tests=("tests/bpf/test_upgrade.py::test_flows_are_judged_by_the_new_maps",),
    ),
    Mutant(
        name="upgrade-waits-for-nothing",
        file="services/dataplane/datapath/upgrade.py",
        old="        if missing:\n",
        new="        if missing and not self._datapath.unfilled:\n",
        tests=("tests/netns/dataplane/datapath/test_upgrade.py::test_new_maps_are_filled_before_programs_use_them",),
    ),
    Mutant(
        name="delete-and-add-a-filter",
        file="linux/clsact.py",
        old="        body = _filter(ifindex, one.parent)",
        new="        remove_filter(ifindex, one.parent)\n        body = _filter(ifindex, one.parent)",
        tests=("tests/bpf/test_live.py::test_replaced_under_traffic",),
    ),
    Mutant(
        name="detach-and-attach-a-link",
        file="services/dataplane/datapath/hooks.py",
        old=(
            "                if link is not None and hook is not None and bpf.link_info(link).target:\n"
            "                    bpf.link_update(link, programs[hook])\n"
        ),
        new=(
            "                if link is not None and hook is not None and (target := bpf.link_info(link).target):\n"
            "                    bpf.link_detach(link)\n"
            "                    path.unlink()\n"
            "                    self._hold_one(folder, hook, programs[hook], target)\n"
        ),
        tests=("tests/bpf/test_live.py::test_replaced_under_traffic",),
    ),
    Mutant(
        name="removals-share-the-room-of-additions",
        file="services/dataplane/cni/server.py",
        old="        if self._served[verb] >= MAX_CALLS[verb]:\n",
        new="        if self._served.total() >= MAX_CALLS[Verb.ADD]:\n",
        tests=("tests/shell/dataplane/cni/test_server.py::test_removals_do_not_wait_while_additions_do",),
    ),
    Mutant(
        name="del-waits-for-the-add-of-its-attachment",
        file="services/dataplane/cni/server.py",
        old="                        add.cancel()\n",
        new="                        pass\n",
        tests=("tests/shell/dataplane/cni/test_server.py::test_del_ends_the_add_of_its_own_attachment",),
    ),
    Mutant(
        name="any-user-may-call-the-agent",
        file="services/dataplane/cni/server.py",
        old="    return bool(user == 0 or user == os.geteuid())\n",
        new="    return bool(user >= 0)\n",
        tests=("tests/shell/dataplane/cni/test_server.py::test_another_user_is_not_answered",),
    ),
    Mutant(
        name="believe-any-endpoint",
        file="services/dataplane/core/ipcache/judge.py",
        old="        doubt = self._holdings.doubt(self._writers[segment], endpoint)\n",
        new="        doubt = None\n",
        tests=("tests/shell/dataplane/ipcache/test_ownership.py::test_it_does_not_speak_of_others",),
    ),
    Mutant(
        name="believe-any-identity",
        file="services/dataplane/core/ipcache/judge.py",
        old="        if doubt is None and endpoint.identity not in self._residents.get(segment, ()):\n",
        new="        if doubt is None and not endpoint.identity:\n",
        tests=(
            "tests/shell/dataplane/ipcache/test_ownership.py::test_an_identity_counts_where_a_pod_has_it",
            "tests/drills/test_stolen_key.py::test_what_it_says_of_itself_moves_no_packet_of_anothers",
        ),
    ),
    Mutant(
        name="take-back-what-is-undecided",
        file="services/dataplane/ipcache/ownership.py",
        old="        if not self.whole:\n            return frozenset(doubt",
        new="        if not self.doubts:\n            return frozenset(doubt",
        tests=("tests/shell/dataplane/ipcache/test_ownership.py::test_nothing_is_decided_before_both_are_whole",),
    ),
    Mutant(
        name="end-sockets-that-no-service-sent",
        file="services/dataplane/loadbalancer/stale_sockets.py",
        old="        return tables.asked_for(one.cookie, one.peer, one.port) is not None and (",
        new="        return (",
        tests=(
            "tests/netns/dataplane/loadbalancer/test_stale_sockets.py::test_a_client_is_told_and_connects_to_another",
        ),
    ),
    Mutant(
        name="living-pods-keep-the-mtu-they-were-made-with",
        file="services/dataplane/core/endpoint/plan.py",
        old="            if link.mtu != one.mtu\n",
        new="            if not one.mtu\n",
        tests=("tests/core/dataplane/endpoint/test_plan.py",),
    ),
    Mutant(
        name="only-the-hosts-end-follows-the-mtu",
        file="services/dataplane/endpoint/links.py",
        old="pod.run([rtnl.set_mtu(size.peer, size.mtu, tolerated=_GONE)])",
        new="pod.run([])",
        tests=("tests/netns/dataplane/endpoint/test_link_sizes.py",),
    ),
)

DATAPATH = (
    Mutant(
        name="drop-blamed-on-the-newest-policy",
        file="services/dataplane/core/policy/history.py",
        old="        found = self._kept.get(identity, {}).get(number)\n",
        new="        found = next(reversed(self._kept.get(identity, {}).values()), None)\n",
        tests=("tests/core/dataplane/endpoint/test_plan.py", "tests/bpf/test_policy_steps.py"),
    ),
    Mutant(
        name="absent-subject-allows",
        file="services/dataplane/bpf/policy.h",
        old="		verdict->reason = AM_REASON_POLICY_UNKNOWN;\n",
        new="		verdict->reason = AM_REASON_FORWARDED;\n",
        tests=("tests/bpf/test_verdicts.py::TestUnknown",),
    ),
    Mutant(
        name="second-word-of-a-vector-is-the-first",
        file="services/dataplane/bpf/policy.h",
        old="\t\t*index = 64 + am_lowest_bit(rules->word[1]);\n",
        new="\t\t*index = am_lowest_bit(rules->word[1]);\n",
        tests=("tests/bpf/test_oracle.py",),
    ),
    Mutant(
        name="selectors-of-the-peer-ignored",
        file="services/dataplane/bpf/policy.h",
        old="\t\tam_add_rules_of(&peer, AM_PEER_SELECTOR_SET, set, &rules);\n",
        new="\t\t;\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="rule-that-is-missing-allows",
        file="services/dataplane/bpf/policy.h",
        old="\tif (none)\n\t\treturn;\n\tverdict->reason = AM_REASON_POLICY_DENIED;\n",
        new="\tif (none)\n\t\treturn;\n\tverdict->reason = AM_REASON_FORWARDED;\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="reply-judged-as-if-it-began",
        file="services/dataplane/bpf/verdict.h",
        old="		am_evaluate_policy(role->subject, key, flow->side, verdict);\n",
        new="		am_evaluate_policy(role->subject, key, role->side, verdict);\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="one-entry-for-both-sides",
        file="services/dataplane/bpf/conntrack.h",
        old="	u8 sends = side == AM_SIDE_EGRESS;\n",
        new="	u8 sends = 1;\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="live-flows-are-not-judged-again",
        file="services/dataplane/bpf/verdict.h",
        old="	if (flow->generation != verdict->generation && !(flow->flags & AM_FLOW_HOST)) {\n",
        new="	if (0) {\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="whereabouts-outlive-their-generation",
        file="services/dataplane/bpf/verdict.h",
        old="	if (known & 0xff && known >> 8 == v->generation)\n",
        new="	if (known & 0xff)\n",
        tests=("tests/bpf/test_whereabouts.py",),
    ),
    Mutant(
        name="whereabouts-nobody-asked-for-are-believed",
        file="services/dataplane/bpf/verdict.h",
        old="	if (known & 0xff && known >> 8 == v->generation)\n",
        new="	if (known >> 8 == v->generation)\n",
        tests=("tests/bpf/test_whereabouts.py",),
    ),
    Mutant(
        name="packet-in-pieces-is-not-read",
        file="services/dataplane/bpf/parse.h",
        old="	return bpf_skb_load_bytes(skb, offset, to, size);\n",
        new="	return bpf_skb_load_bytes(skb, offset + 1, to, size);\n",
        tests=("tests/bpf/test_live.py::test_packet_that_does_not_lie_in_one_piece",),
    ),
    Mutant(
        name="anti-spoof-off-for-ipv6",
        file="services/dataplane/bpf/endpoint.h",
        old="	return am_same_addr(address, &link->address4) || am_same_addr(address, &link->address6);\n",
        new="	return am_same_addr(address, &link->address4) || !am_is_mapped(address);\n",
        tests=("tests/bpf/test_spoofing.py",),
    ),
    Mutant(
        name="error-about-anybodys-packet-leaves-a-pod",
        file="services/dataplane/bpf/spoof.h",
        old="	return p->inner_l4 && am_same_addr(&p->flow.source, &p->source) ? 0 : AM_REASON_SPOOFED_ERROR;\n",
        new="	return 0;\n",
        tests=("tests/bpf/test_errors.py::TestOfOthers",),
    ),
    Mutant(
        name="error-refreshes-a-flow",
        file="services/dataplane/bpf/verdict.h",
        old="	verdict->reason = p->is_error ? 0 : am_ct_update(",
        new="	verdict->reason = am_ct_update(",
        tests=("tests/bpf/test_errors.py::TestOnlyRead",),
    ),
    Mutant(
        name="error-ends-a-flow",
        file="services/dataplane/bpf/verdict.h",
        old="		if (!p->is_error)\n			am_ct_delete(key, flow);\n",
        new="		am_ct_delete(key, flow);\n",
        tests=("tests/bpf/test_errors.py::TestOnlyRead",),
    ),
    Mutant(
        name="error-refreshes-a-translation",
        file="services/dataplane/bpf/nat.h",
        old="	if (w->packet.is_error) /* read, and no more */\n		return 1;\n",
        new="",
        tests=("tests/bpf/test_errors.py::TestOnlyRead",),
    ),
    Mutant(
        name="fragments-of-all-links-in-one-place",
        file="services/dataplane/bpf/fragment.h",
        old="	struct am_fragment_key key = { .link = link };\n",
        new="	struct am_fragment_key key = { .link = link * 0 };\n",
        tests=("tests/bpf/test_fragments.py::TestOfOthers",),
    ),
    Mutant(
        name="fragment-noted-before-its-source-is-checked",
        file="services/dataplane/bpf/pod.c",
        old="	if (!reason && !to_node)\n		reason = am_check_source(p, link);\n"
        "	if (!reason)\n		reason = am_fragment_ports(p, skb->ifindex);\n",
        new="	if (!reason)\n		reason = am_fragment_ports(p, skb->ifindex);\n"
        "	if (!reason && !to_node)\n		reason = am_check_source(p, link);\n",
        tests=("tests/bpf/test_fragments.py::TestOfOthers",),
    ),
    Mutant(
        name="fragments-without-a-bound-for-a-sender",
        file="services/dataplane/bpf/fragment.h",
        old="	key.place = am_fragment_place(p);\n",
        new="	key.place = am_fragment_place(p) ^ p->fragment << 13;\n",
        tests=("tests/bpf/test_fragments.py::TestOfOthers",),
    ),
    Mutant(
        name="any-card-brings-anybody",
        file="services/dataplane/bpf/spoof.h",
        old="	if (link ? am_has_address(link, &p->source) : !am_is_in_cluster(&p->source))\n",
        new="	if (!link || am_has_address(link, &p->source))\n",
        tests=("tests/bpf/test_ways_in.py::TestToPod",),
    ),
    Mutant(
        name="uplinks-bring-who-is-here",
        file="services/dataplane/bpf/spoof.h",
        old="		role->is_outer = !(uplink->flags & AM_UPLINK_LOCAL);\n",
        new="",
        tests=("tests/bpf/test_ways_in.py::TestToPod",),
    ),
    Mutant(
        name="whatever-no-interface-brought-is-the-nodes-own",
        file="services/dataplane/bpf/spoof.h",
        old="	return !skb->ingress_ifindex && p->is_fragment && !skb->sk;\n",
        new="	return 0;\n",
        tests=("tests/bpf/test_ways_in.py::test_fragments_that_forget_where_they_came_from",),
    ),
    Mutant(
        name="forwarded-in-anybodys-name",
        file="services/dataplane/bpf/uplink.c",
        old="			reason = am_check_forwarded(p);\n",
        new="			reason = 0;\n",
        tests=("tests/bpf/test_ways_in.py",),
    ),
    Mutant(
        name="tag-behind-a-tag-is-not-looked-at",
        file="services/dataplane/bpf/uplink.c",
        old="	if (skb->protocol == AM_ETH_VLAN || skb->protocol == AM_ETH_QINQ)\n",
        new="	if (0)\n",
        tests=("tests/bpf/test_ways_in.py::test_frames_as_they_come",),
    ),
    Mutant(
        name="half-open-counts-as-established",
        file="services/dataplane/bpf/flow_state.h",
        old="			 (u32)(p->acknowledged - (is_own ? reach->expected : reach->sent)) < AM_EARLY)\n",
        new="			 p->acknowledged)\n",
        tests=("tests/bpf/test_states.py",),
    ),
    Mutant(
        name="blind-reset-ends-a-flow",
        file="services/dataplane/bpf/flow_state.h",
        old="		if (is_own || !(seen & AM_SEEN_ESTABLISHED) || am_in_window(p->sequence, reach->expected))\n",
        new="		if (1)\n",
        tests=("tests/bpf/test_states.py",),
    ),
    Mutant(
        name="reset-that-nobody-took-stays",
        file="services/dataplane/bpf/flow_state.h",
        old="		seen &= ~AM_SEEN_RESET;\n",
        new="		;\n",
        tests=("tests/bpf/test_states.py",),
    ),
    Mutant(
        name="answer-to-nothing-begins-a-flow",
        file="services/dataplane/bpf/verdict.h",
        old="	if (verdict->reason || p->is_error || !am_may_create(p))\n",
        new="	if (verdict->reason || p->is_error)\n",
        tests=("tests/bpf/test_states.py",),
    ),
    Mutant(
        name="strangers-spend-a-pods-own-flows",
        file="services/dataplane/bpf/budget.h",
        old="	return &budget->ingress + (side & 1);\n",
        new="	return &budget->egress;\n",
        tests=("tests/bpf/test_floods.py::TestHalfOpen",),
    ),
    Mutant(
        name="newcomer-ends-an-established-flow",
        file="services/dataplane/bpf/conntrack.h",
        old="	if (!flow || flow->cell != cell || (flow->seen & AM_SEEN_ESTABLISHED))\n",
        new="	if (!flow)\n",
        tests=("tests/bpf/test_floods.py::TestPlaces",),
    ),
    Mutant(
        name="neighbour-spends-anothers-places",
        file="services/dataplane/bpf/recent.h",
        old="		rank |= same << 50 | spare << 49 | like << 40 | age << 3 | i;\n",
        new="		rank |= age << 3 | i;\n",
        tests=("tests/bpf/test_floods.py::TestNeighbour",),
    ),
    Mutant(
        name="one-peer-takes-all",
        file="services/dataplane/bpf/conntrack.h",
        old="		__sync_fetch_and_add(&held->count, 1);\n",
        new="",
        tests=("tests/bpf/test_floods.py::TestNeighbour",),
    ),
    Mutant(
        name="next-on-the-ports-holds-its-peers-share",
        file="services/dataplane/bpf/conntrack.h",
        old="		if (held)\n			am_decrement(&held->count);\n	}\n	return 1;\n",
        new="	}\n	return 1;\n",
        tests=("tests/bpf/test_floods.py::TestSamePorts",),
    ),
    Mutant(
        name="next-on-the-ports-gives-no-place-up",
        file="services/dataplane/bpf/conntrack.h",
        old="	flow->cell = cell;\n	flow->last_seen",
        new="	flow->last_seen",
        tests=("tests/bpf/test_floods.py::TestSamePorts",),
    ),
    Mutant(
        name="next-on-the-ports-is-never-judged",
        file="services/dataplane/bpf/conntrack.h",
        old=" && flow->generation == generation &&\n",
        new=" &&\n",
        tests=("tests/bpf/test_floods.py::TestSamePorts",),
    ),
    Mutant(
        name="half-open-keeps-a-translation-port",
        file="services/dataplane/bpf/nat.h",
        old="		may |= w->is_late & ~(u64)(had->seen / AM_SEEN_ESTABLISHED) & 1;\n",
        new="",
        tests=("tests/bpf/test_outside_flows.py",),
    ),
    Mutant(
        name="count-wraps-below-zero",
        file="services/dataplane/bpf/budget.h",
        old="	__sync_fetch_and_add(count, (before - 1) >> 63);\n",
        new="",
        tests=("tests/bpf/test_floods.py::TestCounts",),
    ),
    Mutant(
        name="recount-overwrites-what-packets-count",
        file="services/dataplane/bpf/gc.c",
        old="	s64 now = (s64)__sync_fetch_and_add(count, difference) + difference;\n",
        new="	s64 now = *count = 10;\n",
        tests=("tests/bpf/test_floods.py::TestCounts",),
    ),
    Mutant(
        name="flows-of-the-dead-stay",
        file="services/dataplane/policy/enforce.py",
        old="        return frozenset(key.endpoint for key in self._tables.budgets.items()) - alive\n",
        new="        return frozenset(alive - alive)\n",
        tests=("tests/bpf/test_restart.py",),
    ),
    Mutant(
        name="namespaces-of-the-dead-stay",
        file="services/dataplane/policy/enforce.py",
        old="        self._tables.cookies.apply(namespaces.upserts, namespaces.deletes)\n",
        new="        self._tables.cookies.apply(namespaces.upserts)\n",
        tests=("tests/bpf/test_restart.py",),
    ),
    Mutant(
        name="full-table-lets-pass",
        file="services/dataplane/bpf/conntrack.h",
        old="	return error == -AM_EEXIST ? AM_REASON_FORWARDED : AM_REASON_CONNTRACK_FULL;\n",
        new="	return AM_REASON_FORWARDED;\n",
        tests=("tests/bpf/test_tables.py::TestBroom::test_full_table_drops",),
    ),
    Mutant(
        name="service-without-backends-is-left-alone",
        file="services/dataplane/bpf/sock_lb.h",
        old="		bpf_set_retval(-AM_ECONNREFUSED);\n		return -1;\n",
        new="		return 0;\n",
        tests=("tests/bpf/test_sockets.py",),
    ),
    Mutant(
        name="closed-socket-keeps-its-place",
        file="services/dataplane/bpf/sock.c",
        old="		__sync_val_compare_and_swap(&slot->socket, socket, 0);\n",
        new="		return AM_ALLOW;\n",
        tests=("tests/bpf/test_places.py",),
    ),
    Mutant(
        name="who-loses-its-place-is-forgotten",
        file="services/dataplane/bpf/sock_lb.h",
        old="		am_reverse_insert(had, &its, &asked);\n",
        new="",
        tests=("tests/bpf/test_places.py",),
    ),
)

DNS = (
    Mutant(
        name="shrink-coredns-at-once",
        file="services/dns/core/sizing.py",
        old="        if quiet_for < rule.shrink_after:\n",
        new="        if quiet_for < 0:\n",
        tests=("tests/core/dns/test_sizing.py",),
    ),
    Mutant(
        name="corefile-of-a-person-is-written-over",
        file="services/dns/core/decision.py",
        old="    return Chosen(merged.text, present, _unmet(merged.unmet) if merged.unmet else None)\n",
        new="    return Chosen(render(recipe), present, _unmet(merged.unmet) if merged.unmet else None)\n",
        tests=("tests/shell/dns/test_steward.py::test_what_a_person_writes_is_decided_on_and_what_is_broken_is_told",),
    ),
    Mutant(
        name="broken-corefile-is-written-over",
        file="services/dns/core/decision.py",
        old='        return Chosen(present, present, ByHand("CorefileBroken", fault, broken.remedy))\n',
        new='        return Chosen(render(recipe), present, ByHand("CorefileBroken", fault, broken.remedy))\n',
        tests=("tests/core/dns/test_merge.py",),
    ),
)

LINUX = (
    Mutant(
        name="processors-are-numbered",
        file="linux/bpf.py",
        old="    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)\n",
        new="    return max(int(last or first) for first, _, last in ranges) + 1\n",
        tests=("tests/core/linux/test_bpf.py",),
    ),
    Mutant(
        name="a-dump-that-failed-is-whole",
        file="linux/netlink.py",
        old="                if kind == _DONE and code <= 0:\n",
        new="                if kind == _DONE:\n",
        tests=("tests/netns/linux/test_netlink.py::test_a_dump_that_fails_is_no_empty_list",),
    ),
    Mutant(
        name="the-first-refusal-is-the-only-one",
        file="linux/netlink.py",
        old="                if code and code not in message.tolerated:\n",
        new="                if code and code not in message.tolerated and not refused:\n",
        tests=("tests/netns/linux/test_netlink.py::test_every_refusal_is_heard_and_the_others_take_effect",),
    ),
)

CLI = (
    Mutant(
        name="a-forged-value-is-shown",
        file="cli/link.py",
        old="                if change.forged:\n",
        new="                if False:\n",
        tests=("tests/shell/cli/test_commands.py::TestAnswers",),
    ),
    Mutant(
        name="an-acknowledgement-says-whose-it-is",
        file="cli/gather.py",
        old="            named[decode_segment(key)] = value\n",
        new="            named[value.node if decode_segment(key) else key] = value\n",
        tests=("tests/shell/cli/test_commands.py::TestAnswers",),
    ),
    Mutant(
        name="whoever-hangs-up-is-a-nats-server",
        file="chassis/bus/connection.py",
        old="    return bool(client._server_info) or unread(client).startswith(GREETING)\n",
        new="    return True\n",
        tests=("tests/shell/cli/test_commands.py::TestNoBus",),
    ),
)

LAB = (
    Mutant(
        name="a-kubelets-own-mount-is-the-machines",
        file="lab/cluster/node.py",
        old='mkdir -p "$1" && mount --make-slave "$(findmnt --noheadings --output TARGET --target "$1")"',
        new='mkdir -p "$1"',
        tests=(
            "tests/netns/lab/cluster/test_lab.py::test_a_kubelets_volumes_are_seen_outside_and_its_device_plugins_are_not",
        ),
    ),
    Mutant(
        name="the-runtime-sees-no-volumes",
        file="lab/cluster/node.py",
        old='"--propagation", "unchanged"',
        new='"--propagation", "slave"',
        tests=(
            "tests/netns/lab/cluster/test_lab.py::test_a_kubelets_volumes_are_seen_outside_and_its_device_plugins_are_not",
        ),
    ),
    Mutant(
        name="a-folder-under-a-mount-is-removed",
        file="lab/cluster/down.py",
        old="        if str(shared) not in taken:\n",
        new="        if True:\n",
        tests=(
            "tests/netns/lab/cluster/test_lab.py::test_a_folder_under_another_labs_kubelet_stays_and_a_mount_that_came_out_goes",
        ),
    ),
)

MUTANTS = (*CHASSIS, *CLUSTER, *IPAM, *POLICY, *ROUTING, *DATAPLANE, *DATAPATH, *DNS, *LINUX, *CLI, *LAB)
