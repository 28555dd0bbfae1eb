/*
 * Connection tracking: an entry per flow and per local pod that takes part (both ends of a same-node flow have their own
 * policy, so each has its own entry).
 *
 * An entry remembers the policy generation that it was judged under. A packet of another generation is judged again, as
 * the flow's first packet was: a right that was taken away ends the flow (POLICY_REVOKED). A full table or a spent
 * budget drops; nothing passes untracked but answers that begin no flow (a reset, a SYN-ACK, an ICMP error), which are
 * judged each time. Time is the coarse clock, written at most about once a second.
 *
 * An endpoint's flows are counted apart by who began them. Those that are not established have a place each in
 * am_ct_recent (recent.h), so there are never more than it has places, and newcomers need no free ones.
 *
 * A connection on the ports of one that is over, between two SYNs of which policy has not changed, takes that one's entry
 * as it lies (am_reuse): neither judged, inserted nor counted again, and half-open as any other.
 */
#ifndef AM_CT_H
#define AM_CT_H

#define AM_REFRESH_NS (1ULL << 30)
#define AM_EEXIST 17

/* Who a packet is judged for. */
struct am_role {
	u64 subject;
	u32 endpoint;
	u8 side;
	u8 from_host; /* begun by this node itself: always let through */
	u8 is_outer; /* from_pod and from_wire: where the peer is matters */
};

AM_INLINE u32 am_generation_now(void)
{
	int zero = 0;
	struct am_generation *generation = am_generation.lookup(&zero);

	return generation ? generation->number : 0;
}

AM_INLINE u64 am_found(u32 generation, u8 where)
{
	return (u64)generation << 8 | where;
}

/* Nobody out there has an address of this node or of its pods. */
AM_INLINE int am_is_forged(const struct am_role *role, struct am_verdict *verdict)
{
	if (!role->is_outer || role->side == AM_SIDE_EGRESS || verdict->where != AM_AT_HERE)
		return 0;
	verdict->rule = AM_NO_RULE;
	verdict->reason = AM_REASON_SPOOFED_ADDRESS;
	return 1;
}

AM_INLINE void am_key_of_pod(const struct am_tuple *tuple, u8 side, struct am_flow_key *key)
{
	u8 sends = side == AM_SIDE_EGRESS;

	key->local = sends ? tuple->source : tuple->destination;
	key->remote = sends ? tuple->destination : tuple->source;
	key->local_port = sends ? tuple->source_port : tuple->destination_port;
	key->remote_port = sends ? tuple->destination_port : tuple->source_port;
	key->protocol = tuple->protocol;
}

/* The count of a side; each has its own limit. */
AM_INLINE u64 *am_count_of(struct am_budget *budget, u8 side)
{
	return &budget->ingress + (side & 1);
}

/* Never below zero, whoever else counts at this moment. */
AM_INLINE void am_uncount(u64 *count)
{
	u64 before = __sync_fetch_and_add(count, -1);

	__sync_fetch_and_add(count, (before - 1) >> 63);
}

AM_INLINE struct am_budget *am_budget_of(u32 endpoint)
{
	struct am_endpoint_key key = { .endpoint = endpoint };

	return am_ct_budget.lookup(&key);
}

/* How many established flows the peer holds that began this one. */
AM_INLINE struct am_held *am_held_by(const struct am_flow_key *key, u32 endpoint)
{
	u32 index = am_peer_of(&key->remote, am_group_of(endpoint, AM_SIDE_INGRESS)) & (AM_HELD - 1);

	return am_ct_peers.lookup(&index);
}

/* What a flow costs is given back: its endpoint's count, the node's, its peer's. */
AM_INLINE void am_release(const struct am_flow_key *key, u32 endpoint, u8 side, u8 is_held)
{
	struct am_budget *budget = am_budget_of(endpoint), *node = am_budget_of(AM_NODE_ENDPOINT);
	struct am_held *held;

	if (budget)
		am_uncount(am_count_of(budget, side));
	if (node)
		am_uncount(&node->ingress);
	if (!is_held)
		return;
	held = am_held_by(key, endpoint);
	if (held)
		am_uncount(&held->count);
}

/* The place in am_ct_recent of a flow that is established, or gone, is free. */
AM_INLINE void am_strike(u32 cell)
{
	u32 index = (cell - 1) / AM_WAYS;
	struct am_recent_set *set;

	if (!cell)
		return;
	set = (struct am_recent_set *)am_ct_recent.lookup(&index);
	if (set)
		set->group[(cell - 1) & (AM_WAYS - 1)] = 0;
}

AM_INLINE void am_forget(struct am_flow_key *key, const struct am_flow *flow)
{
	u32 endpoint = flow->endpoint, cell = flow->cell;
	u8 side = flow->side, seen = flow->seen, is_held;

	is_held = (seen & AM_SEEN_ESTABLISHED) && side == AM_SIDE_INGRESS && !(flow->flags & AM_FLOW_HOST);
	if (am_ct.delete(key))
		return;
	am_release(key, endpoint, side, is_held);
	if (!(seen & AM_SEEN_ESTABLISHED))
		am_strike(cell);
}

/* A flow becomes established: its peer must have room for it. Returns an AM_REASON_*, 0 when it has. */
AM_INLINE u32 am_confirm(const struct am_flow_key *key, struct am_flow *flow)
{
	struct am_budget *budget;
	struct am_held *held;

	if (flow->side == AM_SIDE_INGRESS && !(flow->flags & AM_FLOW_HOST)) {
		budget = am_budget_of(flow->endpoint);
		held = am_held_by(key, flow->endpoint);
		if (!budget || !held)
			return AM_REASON_CONNTRACK_BUDGET;
		if (budget->ingress > budget->ingress_limit / 2 && held->count >= budget->ingress_limit / AM_PEER_SHARE)
			return AM_REASON_CONNTRACK_BUDGET;
		__sync_fetch_and_add(&held->count, 1);
	}
	am_strike(flow->cell);
	return 0;
}

/* An answered query: the first to go where its group needs a place. */
AM_INLINE void am_is_answered(const struct am_flow *flow)
{
	u32 index = (flow->cell - 1) / AM_WAYS;
	struct am_recent_set *set = flow->cell ? (struct am_recent_set *)am_ct_recent.lookup(&index) : 0;

	if (set)
		set->born[(flow->cell - 1) & (AM_WAYS - 1)] = 0;
}

/* Marks what a packet shows of its flow. Returns an AM_REASON_*, 0 to let it through. */
AM_INLINE u32 am_touch(const struct am_flow_key *key, struct am_flow *flow, const struct am_packet *p, u8 is_reply, u8 is_own)
{
	u64 now = bpf_ktime_get_coarse_ns();
	u8 had = flow->seen, is_due = am_blurred(p, now - flow->last_seen > AM_REFRESH_NS);
	u8 seen = am_see_after(p, is_reply, is_own, had, is_due, (struct am_reach *)&flow->sent), changed;

	seen = am_blurred(p, seen);
	changed = seen ^ had;

	if (!changed && !is_due)
		return 0;
	if (changed & seen & AM_SEEN_ESTABLISHED) {
		if (am_confirm(key, flow))
			return AM_REASON_CONNTRACK_BUDGET;
	} else if ((changed & AM_SEEN_REPLY) && (seen & AM_SEEN_ONE_SHOT)) {
		am_is_answered(flow);
	}
	flow->seen = seen;
	flow->last_seen = now;
	return 0;
}

/* May the endpoint not have one flow more? Where the node's table is nearly full, less is enough. */
AM_INLINE u64 am_is_spent(struct am_budget *budget, const struct am_budget *node, u64 has_node, u8 side, u64 has_one)
{
	u64 limit = *(&budget->ingress_limit + (side & 1));
	s64 count = *am_count_of(budget, side) - has_one;

	if (has_node && (s64)(node->ingress - has_one) >= (s64)node->ingress_limit)
		limit /= AM_PRESSURE;
	return count >= (s64)limit;
}

/* Whoever stands in the place goes, unless it is established. Returns 1 when that was a flow of the same group. */
AM_INLINE int am_clear(const struct am_packet *p, struct am_recent_set *set, u32 way, u32 cell, u32 group)
{
	struct am_flow_key *key = &am_work_of(p)->elder;
	struct am_flow *flow;
	u32 whose;

	way &= AM_WAYS - 1;
	whose = set->group[way];
	if (!whose)
		return 0;
	set->group[way] = 0;
	__builtin_memcpy(key, set->key[way], sizeof(*key));
	flow = am_ct.lookup(key);
	if (!flow || flow->cell != cell || (flow->seen & AM_SEEN_ESTABLISHED))
		return 0;
	am_forget(key, flow);
	return whose == group;
}

/* The part of an entry that says where its flow stands, as one word. */
union am_stand {
	struct {
		u8 seen;
		u8 flags;
		u8 side;
		u8 hole[5];
	};
	u64 word;
};
_Static_assert(__builtin_offsetof(struct am_flow, seen) == sizeof(struct am_flow) - sizeof(union am_stand), "lies over an entry");

/*
 * A connection that is over leaves its entry to the next one on its ports. It is counted already, but holds nothing of
 * its peer's until it is established. Returns 0 where another processor was first.
 */
AM_INLINE int am_reuse(const struct am_flow_key *key, struct am_flow *flow, const struct am_packet *p, u8 is_own, u32 cell)
{
	u64 *place = (u64 *)&flow->seen;
	union am_stand had = { .word = *(volatile u64 *)place }, begun = had;
	struct am_reach reach = {};
	struct am_held *held;

	if (!(had.seen & AM_SEEN_ESTABLISHED))
		return 0;
	begun.seen = am_see_first(p, is_own, &reach);
	begun.flags = (had.flags & ~AM_FLOW_TRANSLATED) | (p->is_translated ? AM_FLOW_TRANSLATED : 0);
	if (__sync_val_compare_and_swap(place, had.word, begun.word) != had.word)
		return 0;
	flow->sent = reach.sent;
	flow->expected = reach.expected;
	flow->cell = cell;
	flow->last_seen = bpf_ktime_get_coarse_ns();
	if (had.side == AM_SIDE_INGRESS && !(had.flags & AM_FLOW_HOST)) {
		held = am_held_by(key, flow->endpoint);
		if (held)
			am_uncount(&held->count);
	}
	return 1;
}

/* A flow begins. `over` is the entry of one before it that is over, or 0. */
AM_INLINE u32 am_track(struct am_flow_key *key, struct am_flow *over, const struct am_packet *p, const struct am_role *role, struct am_verdict *v)
{
	struct am_budget *budget = am_budget_of(role->endpoint), *node = am_budget_of(AM_NODE_ENDPOINT);
	struct am_flow *flow = &am_work_of(p)->flow;
	u32 group = am_group_of(role->endpoint, role->side), chance, way, cell, *index = &am_work_of(p)->index;
	struct am_recent_set *set;
	u64 is_spent, has_node;
	long error;
	int went;

	if (!budget)
		return AM_REASON_CONNTRACK_BUDGET;
	has_node = am_blurred(p, node != 0);
	if (!node) /* one path for the verifier */
		node = budget;
	/* A node always reaches its pods. */
	is_spent = role->from_host ? 0 : am_blurred(p, am_is_spent(budget, node, has_node, role->side, over != 0));
	chance = bpf_get_prandom_u32();
	*index = budget->first + (chance & budget->mask);
	set = (struct am_recent_set *)am_ct_recent.lookup(index);
	if (!set)
		return AM_REASON_CONNTRACK_FULL;
	way = am_blurred(p, am_free_place(set));
	if (is_spent | (way == AM_WAYS)) {
		/* The other one, or this one again: one path for the verifier. */
		*index = budget->first + (am_choose_half(set, chance) & budget->mask);
		set = (struct am_recent_set *)am_ct_recent.lookup(index);
		if (!set)
			return AM_REASON_CONNTRACK_FULL;
		way = am_choose_place(set, group, is_spent);
		went = am_clear(p, set, way, *index * AM_WAYS + way + 1, group);
		if (is_spent & !went)
			return AM_REASON_CONNTRACK_BUDGET;
	}
	way = am_blurred(p, way);
	cell = *index * AM_WAYS + way + 1;
	if (over) {
		if (!am_reuse(key, over, p, role->side == AM_SIDE_EGRESS, cell))
			return AM_REASON_FORWARDED;
	} else {
		__builtin_memset(flow, 0, sizeof(*flow));
		flow->cell = cell;
		flow->last_seen = bpf_ktime_get_coarse_ns();
		flow->whereabouts = am_found(v->generation, v->where);
		flow->generation = v->generation;
		flow->endpoint = role->endpoint;
		flow->rule = v->rule;
		flow->flags = (role->from_host ? AM_FLOW_HOST : 0) | (p->is_translated ? AM_FLOW_TRANSLATED : 0);
		flow->side = role->side;
		flow->seen = am_see_first(p, role->side == AM_SIDE_EGRESS, (struct am_reach *)&flow->sent);
		error = am_ct.insert(key, flow); /* BPF_NOEXIST */
		if (error) /* Another processor was first: the flow is tracked. */
			return error == -AM_EEXIST ? AM_REASON_FORWARDED : AM_REASON_CONNTRACK_FULL;
		__sync_fetch_and_add(am_count_of(budget, role->side), 1);
		__sync_fetch_and_add(&node->ingress, has_node);
	}
	am_enlist(set, way, group, am_peer_of(&key->remote, group), key);
	return AM_REASON_FORWARDED;
}

/* verdict->where for a packet of a known flow (0: nobody has asked yet). An ICMP error may come from anybody on the way. */
AM_INLINE void am_locate(const struct am_packet *p, const struct am_role *role, const struct am_flow_key *key, struct am_flow *flow, struct am_verdict *v)
{
	u64 known = flow->whereabouts;

	if (known & 0xff && known >> 8 == v->generation)
		v->where = known & 0xff;
	else
		v->where = am_at(&key->remote);
	if (!p->is_error)
		flow->whereabouts = am_found(v->generation, v->where);
	/* Nobody outside is between two who are both here. */
	else if (role->side == AM_SIDE_INGRESS && v->where != AM_AT_HERE)
		v->where = am_at(&p->source);
}

/* A packet of a flow that is known. */
AM_INLINE void am_continue(const struct am_packet *p, const struct am_role *role, struct am_flow_key *key, struct am_flow *flow, struct am_verdict *verdict)
{
	u8 is_reply = flow->side != role->side;
	u32 flags;

	if (role->is_outer)
		am_locate(p, role, key, flow, verdict);
	if (am_is_forged(role, verdict))
		return;
	if (flow->generation != verdict->generation && !(flow->flags & AM_FLOW_HOST)) {
		verdict->peer = am_identity_of(&key->remote, &flags);
		am_judge(role->subject, key, flow->side, verdict);
		if (verdict->reason) {
			/* The entry stays, to be judged again: without it an answer that is on its way would begin
			 * a flow of its own, of which the next packet would be the reply. It ages as any other. */
			verdict->reason = AM_REASON_POLICY_REVOKED;
			return;
		}
		if (!p->is_error)
			flow->generation = verdict->generation;
	}
	/* The same ports may be used by way of a Service and directly, one after the other. */
	if (!is_reply && !p->is_error && !(flow->flags & AM_FLOW_TRANSLATED) != !p->is_translated)
		flow->flags ^= AM_FLOW_TRANSLATED;
	verdict->is_back = is_reply && (flow->flags & AM_FLOW_TRANSLATED);
	verdict->reason = p->is_error ? 0 : am_touch(key, flow, p, is_reply, role->side == AM_SIDE_EGRESS);
	if (!verdict->reason)
		verdict->reason = is_reply ? AM_REASON_REPLY : AM_REASON_FORWARDED;
}

/* A packet of no flow that is known, or of one that is `over`: it may begin one. */
AM_INLINE void am_open(const struct am_packet *p, const struct am_role *role, struct am_flow_key *key, struct am_flow *over, struct am_verdict *verdict)
{
	u64 peer = AM_IDENTITY_HOST;
	u32 flags = 0;

	if (over) { /* the same flow to policy, whose answer stands (am_may_follow) */
		if (role->is_outer)
			am_locate(p, role, key, over, verdict);
		if (am_is_forged(role, verdict))
			return;
		verdict->rule = over->rule;
	} else {
		if (p->is_error) { /* about no flow of ours: a message like any other, but never the start of a flow */
			key->local = role->side == AM_SIDE_EGRESS ? p->source : p->destination;
			key->remote = role->side == AM_SIDE_EGRESS ? p->destination : p->source;
			key->protocol = p->protocol;
		}
		if (!role->from_host)
			peer = am_identity_of(&key->remote, &flags);
		if (role->is_outer)
			verdict->where = am_place_of_peer(&key->remote, peer, flags);
		if (am_is_forged(role, verdict))
			return;
		verdict->rule = AM_NO_RULE;
		verdict->peer = peer;
		verdict->reason = AM_REASON_FORWARDED;
		if (!role->from_host)
			am_judge(role->subject, key, role->side, verdict);
		if (verdict->reason || p->is_error || !am_may_begin(p))
			return;
	}
	verdict->reason = am_track(key, over, p, role, verdict);
	verdict->is_new = 1;
}

/*
 * May a connection take over the entry of the one before it, which is over? Where policy and its owner are what they
 * were, and it has given back its place (am_confirm).
 */
AM_INLINE int am_may_follow(const struct am_flow *flow, const struct am_role *role, u32 generation)
{
	return flow->endpoint == role->endpoint && flow->side == role->side && flow->generation == generation &&
	       (flow->seen & AM_SEEN_ESTABLISHED) && !(flow->flags & AM_FLOW_HOST) == !role->from_host;
}

/* Sets verdict->reason: FORWARDED or REPLY to let the packet through, else why not. */
AM_INLINE void am_admit(const struct am_packet *p, const struct am_role *role, struct am_verdict *verdict)
{
	struct am_flow_key *key = &am_work_of(p)->flow_key;
	struct am_flow *flow;

	__builtin_memset(key, 0, sizeof(*key));
	/* Read before the maps are asked: a change in between leaves an entry that is judged again. */
	verdict->generation = am_generation_now();
	am_key_of_pod(&p->flow, role->side, key);
	/* An error is read, and no more: it may find a flow, but begins, keeps and ends none. */
	flow = p->is_error && !p->inner_l4 ? 0 : am_ct.lookup(key);
	if (flow && flow->endpoint == role->endpoint && !(am_begins(p) && am_is_closed(flow->seen))) {
		am_continue(p, role, key, flow, verdict);
		return;
	}
	/* An address that had another owner, or a new connection on the ports of one that is over. */
	if (flow && (p->is_error || !am_may_follow(flow, role, verdict->generation))) {
		if (!p->is_error)
			am_forget(key, flow);
		flow = 0;
	}
	am_open(p, role, key, flow, verdict);
}

#endif
