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
        name="buffer-writes-while-disconnected",
        file="chassis/connection.py",
        old="                pending_size=-1,\n",
        new="",
        tests=(
            "tests/shell/chassis/test_nats_traps.py::test_write_by_a_client_that_was_asked_for_before_the_break_never_appears",
        ),
    ),
    Mutant(
        name="compare-and-set-without-comparing",
        file="chassis/kv.py",
        old='headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}',
        new="headers: dict[str, str] = {}",
        tests=("tests/shell/chassis/test_bus.py",),
    ),
    Mutant(
        name="in-sync-before-the-marker",
        file="chassis/view.py",
        old="            and all(self.scope_complete(scope) for scope in self._markers)\n        )",
        new="        )",
        tests=("tests/shell/chassis/test_bus.py",),
    ),
    Mutant(
        name="forget-what-was-known-when-listing",
        file="chassis/view.py",
        old="        self._stale = set(self._entries) | set(self._marks)\n",
        new="        self._stale = set(self._entries) | set(self._marks)\n        self._entries.clear()\n",
        tests=("tests/shell/chassis/test_nats_traps.py::test_view_follows_a_bucket_that_was_made_anew",),
    ),
    Mutant(
        name="unknown-version-is-deleted",
        file="chassis/view.py",
        old="            self._unreadable(change, str(error), newer=isinstance(error, codec.UnknownVersion))\n",
        new="            held.pop(key, None)\n            self._dirty(key)\n",
        tests=("tests/shell/chassis/test_nats_traps.py::test_view_keeps_the_last_good_value",),
    ),
    Mutant(
        name="take-a-living-holders-lease",
        file="chassis/terms.py",
        old="(ours and mine.term in (0, mine.known)) or now - mine.since >= record.seconds\n",
        new="(ours and mine.term in (0, mine.known)) or now - mine.since >= 0\n",
        tests=("tests/shell/chassis/test_lease.py::test_one_copy_is_active_and_the_next_takes_over",),
    ),
    Mutant(
        name="traceparent-lost",
        file="chassis/kv.py",
        old="        sealed = codec.seal(value, traceparent or current_traceparent())\n",
        new="        sealed = codec.seal(value)\n",
        tests=("tests/shell/cluster/test_mirror.py::test_a_life_of_a_pod_is_one_trace",),
    ),
    Mutant(
        name="everybody-may-write-everything",
        file="chassis/accounts.py",
        old='found += [key] if key == ">" else [key, f"{key}.>"]',
        new='found += [">"]',
        tests=("tests/shell/chassis/test_allow_lists.py",),
    ),
    Mutant(
        name="every-key-is-imported",
        file="chassis/accounts.py",
        old="    role = user.role\n    subjects: list[str] = []\n",
        new='    role = user.role\n    subjects: list[str] = ["$KV.>"]\n',
        tests=("tests/shell/chassis/test_allow_lists.py",),
    ),
    Mutant(
        name="an-answer-to-anybodys-inbox",
        file="chassis/accounts.py",
        old='Import(account, f"{inbox}.{user.name}.*", f"{inbox}.*"),',
        new='Import(account, f"{inbox}.>", f"{inbox}.>"),',
        tests=("tests/shell/chassis/test_accounts.py",),
    ),
    Mutant(
        name="a-node-tells-in-anothers-name",
        file="chassis/accounts.py",
        old='tail = f".{encode_segment(user.node)}" if role.per_node and "{node}" not in subject else ""',
        new='tail = ""',
        tests=("tests/shell/chassis/test_bus.py", "tests/shell/chassis/test_accounts.py"),
    ),
    Mutant(
        name="answer-wherever-a-request-points",
        file="chassis/micro.py",
        old="    if not message.reply.startswith(replies):\n",
        new="    if not message.reply:\n",
        tests=("tests/shell/chassis/test_accounts.py",),
    ),
    Mutant(
        name="a-stored-message-is-a-request",
        file="chassis/micro.py",
        old='        if lower.startswith("nats-") and lower != _REQUEST_INFO:\n',
        new='        if lower == "nats-" + _REQUEST_INFO:\n',
        tests=("tests/shell/chassis/test_accounts.py",),
    ),
    Mutant(
        name="own-unreadable-value-stays",
        file="chassis/view.py",
        old="                if self._damaged and self._mend_by is not None:\n",
        new="                if self._damaged and self._mend_by is None:\n",
        tests=("tests/shell/chassis/test_mending.py::test_every_writer_mends_its_own",),
    ),
    Mutant(
        name="mend-with-what-may-be-old",
        file="chassis/view.py",
        old="            sure = followed if before is None else before.sure\n",
        new="            sure = True\n",
        tests=("tests/shell/chassis/test_mending.py::test_who_may_have_missed_a_value_lets_the_others_go_first",),
    ),
    Mutant(
        name="unreadable-is-in-the-way-of-its-writer",
        file="chassis/kv.py",
        old="(mend and _is_damaged(type(value), stored))",
        new="(mend and False)",
        tests=("tests/shell/cluster/test_mirror.py::test_what_nobody_can_read_is_written_again",),
    ),
    Mutant(
        name="unreadable-aborts-the-pass",
        file="services/policy/publish.py",
        old="        if isinstance(found.why, codec.UnknownVersion):\n",
        new="        if isinstance(found.why, ValueError):\n",
        tests=("tests/shell/policy/test_service.py::test_published_values_that_nobody_can_read_are_written_again",),
    ),
    Mutant(
        name="pull-once",
        file="chassis/tail.py",
        old="            await self._again()  # its time is over, or what it may bring in all\n",
        new="            return\n",
        tests=("tests/shell/chassis/test_nats_traps.py::test_requests_for_messages_end_and_are_asked_again",),
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
)

IPAM = (
    Mutant(
        name="skip-the-compare-and-set",
        file="services/ipam/store.py",
        old="written = await (store.create(key, value) if over is None else store.update(key, value, over.revision))",
        new="written = await store.put(key, value)",
        tests=("tests/core/ipam/test_simulation.py",),
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
        name="claims-rest-no-time",
        file="services/ipam/core/claims.py",
        old='elif lasts(("free", str(address), str(claim.epoch)), cooldown):',
        new='elif lasts(("free", str(address), str(claim.epoch)), 0):',
        tests=("tests/core/ipam/test_recovery_and_claims.py",),
    ),
)

POLICY = (
    Mutant(
        name="absent-selector-selects-all",
        file="services/policy/core/selectors.py",
        old="    if selector is None:\n        return False\n",
        new="    if selector is None:\n        return True\n",
        tests=("tests/core/policy/test_selectors.py",),
    ),
    Mutant(
        name="empty-pod-selector-in-any-namespace",
        file="services/policy/core/compile.py",
        old='    return PeerRef(policy.namespace if peer.namespace_selector is None else "", peer)\n',
        new='    return PeerRef("", Peer(peer.pod_selector, peer.namespace_selector or EVERYTHING))\n',
        tests=("tests/core/policy/test_compile.py",),
    ),
    Mutant(
        name="ignore-except",
        file="services/policy/core/cidrs.py",
        old="    holes = [_span(network) for network in block.excepted]\n",
        new="    holes: list[Span] = []\n",
        tests=("tests/core/policy/test_cidrs.py::test_partition",),
    ),
    Mutant(
        name="ipv6-world-holds-ipv4",
        file="services/policy/core/cidrs.py",
        old="    if block.cidr.version == 6:\n        holes.append(_span(_MAPPED))\n",
        new="",
        tests=("tests/core/policy/test_cidrs.py",),
    ),
    Mutant(
        name="drop-ipv6-blocks",
        file="services/policy/core/cidrs.py",
        old="    for version in (4, 6):\n",
        new="    for version in (4,):\n",
        tests=("tests/core/policy/test_cidrs.py",),
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
        changed = await self._write_rules(mine, wanted.revision, fence, anew=anew)
        replaced = await self._write_partition(wanted, fence, anew=anew) if shard == 0 else []
        frontier = Frontier(shard=shard, shards=len(self._leases), revision=wanted.revision)
        decide = plan.deciding(plan.frontier_step, frontier, anew=anew)
        moved = await self._rules.write(frontier_key(shard), frontier, decide, fence)
""",
        new="""\
        frontier = Frontier(shard=shard, shards=len(self._leases), revision=wanted.revision)
        decide = plan.deciding(plan.frontier_step, frontier, anew=anew)
        moved = await self._rules.write(frontier_key(shard), frontier, decide, fence)
        changed = await self._write_rules(mine, wanted.revision, fence, anew=anew)
        replaced = await self._write_partition(wanted, fence, anew=anew) if shard == 0 else []
""",
        tests=("tests/shell/policy/test_service.py",),
    ),
)

ROUTING = (
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
)

DATAPLANE = (
    Mutant(
        name="start-before-the-frontier",
        file="services/dataplane/core/admission.py",
        old="    if not any(_covers(frontier, identity, seen) for frontier in frontiers):\n",
        new="    if not list(frontiers):\n",
        tests=("tests/core/dataplane/test_admission.py",),
    ),
    Mutant(
        name="journal-without-fdatasync",
        file="services/dataplane/journal.py",
        old="        os.fdatasync(self._file)\n",
        new="",
        tests=("tests/shell/dataplane/test_journal.py",),
    ),
    Mutant(
        name="freed-address-rests-no-time",
        file="services/dataplane/core/journal.py",
        old="        if now - at >= cooldown:\n",
        new="        if now >= at:\n",
        tests=("tests/core/dataplane/test_journal.py",),
    ),
    Mutant(
        name="later-word-wins-an-address",
        file="services/dataplane/core/ipcache.py",
        old="        if other is None or _rank(endpoint) > _rank(other):\n",
        new="        if True:\n",
        tests=("tests/core/dataplane/test_ipcache.py",),
    ),
    Mutant(
        name="any-external-ip-is-honoured",
        file="services/dataplane/core/here.py",
        old="        return any(address in network for network in self.external)\n",
        new="        return True\n",
        tests=("tests/core/dataplane/test_fronts.py",),
    ),
    Mutant(
        name="external-policy-local-reaches-other-nodes",
        file="services/dataplane/core/fronts.py",
        old="flags, choice = flags | ServiceFlag.LOCAL_ONLY, Choice.LOCAL",
        new="flags, choice = flags | ServiceFlag.LOCAL_ONLY, Choice.CLUSTER",
        tests=("tests/core/dataplane/test_fronts.py",),
    ),
    Mutant(
        name="hints-of-some-endpoints-are-followed",
        file="services/dataplane/core/endpoint_choice.py",
        old="        if not all(hints(endpoint) for endpoint, _ in ready):\n            return []\n",
        new="",
        tests=("tests/core/dataplane/test_services.py",),
    ),
    Mutant(
        name="terminating-endpoints-pass-health-checks",
        file="services/dataplane/core/health_checks.py",
        old="            and takes_new(endpoint, not_ready_too=service.publish_not_ready)\n",
        new="            and endpoint.serving\n",
        tests=("tests/core/dataplane/test_health_checks.py",),
    ),
    Mutant(
        name="rank-ignored-among-nested-lines",
        file="services/dataplane/core/policy_maps.py",
        old="    if len({rule.rank for rule in best.values()}) > 1:\n",
        new="    if False:\n",
        tests=("tests/core/dataplane/test_policy_maps.py",),
    ),
    Mutant(
        name="remove-lines-before-adding",
        file="services/dataplane/enforce.py",
        old="""\
        self._tables.policy.apply(steps.add_lines)
        self._tables.subjects.apply({}, steps.remove_subjects)
        self._tables.subjects.apply(steps.set_subjects)
        self._tables.policy.apply({}, steps.remove_lines)
""",
        new="""\
        self._tables.policy.apply({}, steps.remove_lines)
        self._tables.subjects.apply({}, steps.remove_subjects)
        self._tables.subjects.apply(steps.set_subjects)
        self._tables.policy.apply(steps.add_lines)
""",
        tests=("tests/bpf/test_policy_steps.py",),
    ),
    Mutant(
        name="generation-not-bumped",
        file="services/dataplane/enforce.py",
        old="""\
        if changed:
            self._tables.bump_generation()
        return Enforced(reached, changed)
""",
        new="        return Enforced(reached, changed)\n",
        tests=("tests/bpf/test_policy_steps.py",),
    ),
    Mutant(
        name="delete-and-add-a-filter",
        file="services/dataplane/kernel/clsact.py",
        old="        body = _filter(ifindex, one.parent)",
        new="        remove_filter(ifindex, one.parent)\n        body = _filter(ifindex, one.parent)",
        tests=("tests/bpf/test_live.py::test_replaced_under_traffic",),
    ),
    Mutant(
        name="detach-and-attach-a-link",
        file="services/dataplane/kernel/hooks.py",
        old=(
            "                if link is not None and bpf.link_info(link).target:\n"
            "                    bpf.link_update(link, programs[Hook(path.name)])\n"
        ),
        new=(
            "                if link is not None and (target := bpf.link_info(link).target):\n"
            "                    hook = Hook(path.name)\n"
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
        tests=("tests/shell/dataplane/test_server.py::test_removals_do_not_wait_while_additions_do",),
    ),
    Mutant(
        name="del-waits-for-the-add-of-its-attachment",
        file="services/dataplane/cni/server.py",
        old="                        add.cancel()\n",
        new="                        pass\n",
        tests=("tests/shell/dataplane/test_server.py::test_del_ends_the_add_of_its_own_attachment",),
    ),
    Mutant(
        name="any-user-may-call-the-agent",
        file="services/dataplane/cni/server.py",
        old="    return bool(user == 0 or user == os.geteuid())\n",
        new="    return bool(user >= 0)\n",
        tests=("tests/shell/dataplane/test_server.py::test_another_user_is_not_answered",),
    ),
    Mutant(
        name="believe-any-endpoint",
        file="services/dataplane/beliefs.py",
        old="in self._judged.values() if doubt is None]",
        new="in self._judged.values() if doubt is None or endpoint.node]",
        tests=("tests/shell/dataplane/test_beliefs.py::test_it_does_not_speak_of_others",),
    ),
    Mutant(
        name="take-back-what-is-undecided",
        file="services/dataplane/beliefs.py",
        old="return frozenset() if self.whole else",
        new="return frozenset() if self.doubts else",
        tests=("tests/shell/dataplane/test_beliefs.py::test_nothing_is_decided_before_both_are_whole",),
    ),
    Mutant(
        name="end-sockets-that-no-service-sent",
        file="services/dataplane/stale_sockets.py",
        old="        return tables.asked_for(one.cookie, one.peer, one.port) is not None and (",
        new="        return (",
        tests=("tests/netns/dataplane/test_stale_sockets.py::test_a_client_is_told_and_connects_to_another",),
    ),
)

DATAPATH = (
    Mutant(
        name="absent-subject-allows",
        file="services/dataplane/bpf/policy.h",
        old="		verdict->reason = AM_REASON_POLICY_UNKNOWN;\n",
        new="		verdict->reason = AM_REASON_FORWARDED;\n",
        tests=("tests/bpf/test_verdicts.py::TestUnknown",),
    ),
    Mutant(
        name="rank-ignored",
        file="services/dataplane/bpf/policy.h",
        old="	if (!line || (best->found && best->rank <= line->rank))\n",
        new="	if (!line || best->found)\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="reply-judged-as-if-it-began",
        file="services/dataplane/bpf/ct.h",
        old="		am_judge(role->subject, key, flow->side, verdict);\n",
        new="		am_judge(role->subject, key, role->side, verdict);\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="one-entry-for-both-sides",
        file="services/dataplane/bpf/ct.h",
        old="	u8 sends = side == AM_SIDE_EGRESS;\n",
        new="	u8 sends = 1;\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="live-flows-are-not-judged-again",
        file="services/dataplane/bpf/ct.h",
        old="	if (flow->generation != verdict->generation && !(flow->flags & AM_FLOW_HOST)) {\n",
        new="	if (0) {\n",
        tests=("tests/bpf/test_verdicts.py",),
    ),
    Mutant(
        name="whereabouts-outlive-their-generation",
        file="services/dataplane/bpf/ct.h",
        old="	if (known & 0xff && known >> 8 == v->generation)\n",
        new="	if (known & 0xff)\n",
        tests=("tests/bpf/test_whereabouts.py",),
    ),
    Mutant(
        name="whereabouts-nobody-asked-for-are-believed",
        file="services/dataplane/bpf/ct.h",
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
        file="services/dataplane/bpf/spoof.h",
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
        file="services/dataplane/bpf/ct.h",
        old="	if (!p->is_error)\n		am_touch(flow, p, is_reply);\n",
        new="	am_touch(flow, p, is_reply);\n",
        tests=("tests/bpf/test_errors.py::TestOnlyRead",),
    ),
    Mutant(
        name="error-ends-a-flow",
        file="services/dataplane/bpf/ct.h",
        old="	if (flow && !p->is_error) /* an address that had another owner */\n",
        new="	if (flow) /* an address that had another owner */\n",
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
        file="services/dataplane/bpf/parse.h",
        old="	struct am_fragment_key key = { .link = link };\n",
        new="	struct am_fragment_key key = { .link = link * 0 };\n",
        tests=("tests/bpf/test_fragments.py::TestOfOthers",),
    ),
    Mutant(
        name="fragment-noted-before-its-source-is-checked",
        file="services/dataplane/bpf/datapath.c",
        old="	if (!reason && !to_node)\n		reason = am_check_source(p, link);\n"
        "	if (!reason)\n		reason = am_join(p, skb->ifindex);\n",
        new="	if (!reason)\n		reason = am_join(p, skb->ifindex);\n"
        "	if (!reason && !to_node)\n		reason = am_check_source(p, link);\n",
        tests=("tests/bpf/test_fragments.py::TestOfOthers",),
    ),
    Mutant(
        name="fragments-without-a-bound-for-a-sender",
        file="services/dataplane/bpf/parse.h",
        old="	key.place = am_place_of(p);\n",
        new="	key.place = am_place_of(p) ^ p->fragment << 13;\n",
        tests=("tests/bpf/test_fragments.py::TestOfOthers",),
    ),
    Mutant(
        name="any-card-brings-anybody",
        file="services/dataplane/bpf/spoof.h",
        old="	if (link ? am_owns(link, &p->source) : !am_is_known(&p->source))\n",
        new="	if (!link || am_owns(link, &p->source))\n",
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
        file="services/dataplane/bpf/datapath.c",
        old="			reason = am_check_forwarded(p);\n",
        new="			reason = 0;\n",
        tests=("tests/bpf/test_ways_in.py",),
    ),
    Mutant(
        name="tag-behind-a-tag-is-not-looked-at",
        file="services/dataplane/bpf/datapath.c",
        old="	if (skb->protocol == AM_ETH_VLAN || skb->protocol == AM_ETH_QINQ)\n",
        new="	if (0)\n",
        tests=("tests/bpf/test_ways_in.py::test_frames_as_they_come",),
    ),
    Mutant(
        name="full-table-lets-pass",
        file="services/dataplane/bpf/ct.h",
        old="	return error == -AM_EEXIST ? AM_REASON_FORWARDED : AM_REASON_CONNTRACK_FULL;\n",
        new="	return AM_REASON_FORWARDED;\n",
        tests=("tests/bpf/test_tables.py::TestBroom::test_full_table_drops",),
    ),
    Mutant(
        name="service-without-backends-is-left-alone",
        file="services/dataplane/bpf/sock.c",
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
        file="services/dataplane/bpf/sock.c",
        old="		am_note(had, &its, &asked);\n",
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
)

MUTANTS = (*CHASSIS, *CLUSTER, *IPAM, *POLICY, *ROUTING, *DATAPLANE, *DATAPATH, *DNS)
