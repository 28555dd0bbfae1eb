/*
 * Connection tracking: an entry per flow and per local pod that takes part (both ends of a same-node flow have their own
 * policy, so each has its own entry).
 *
 * An entry remembers the policy generation that it was judged under. A packet of another generation is judged again, as
 * the flow's first packet was: a right that was taken away ends the flow (POLICY_REVOKED). A full table or a spent
 * budget drops; nothing passes untracked. Time is the coarse clock, written at most about once a second.
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

AM_INLINE void am_touch(struct am_flow *flow, const struct am_packet *p, u8 is_reply)
{
	u64 now = bpf_ktime_get_coarse_ns();
	u8 seen = flow->seen;

	if (is_reply)
		seen |= AM_SEEN_REPLY;
	if (p->protocol == AM_TCP) {
		/* A new connection on the ports of one that is over. */
		if (!is_reply && (p->tcp_flags & (AM_TCP_SYN | AM_TCP_ACK)) == AM_TCP_SYN)
			seen = 0;
		if (p->tcp_flags & AM_TCP_FIN)
			seen |= is_reply ? AM_SEEN_FIN_REPLY : AM_SEEN_FIN_ORIGINAL;
		if (p->tcp_flags & AM_TCP_RST)
			seen |= AM_SEEN_RESET;
	}
	if (seen != flow->seen || now - flow->last_seen > AM_REFRESH_NS) {
		flow->seen = seen;
		flow->last_seen = now;
	}
}

AM_INLINE void am_release(u32 endpoint)
{
	struct am_endpoint_key key = { .endpoint = endpoint };
	struct am_budget *budget = am_ct_budget.lookup(&key);

	if (budget)
		__sync_fetch_and_add(&budget->count, -1);
}

AM_INLINE void am_forget(struct am_flow_key *key, u32 endpoint)
{
	if (!am_ct.delete(key))
		am_release(endpoint);
}

AM_INLINE u32 am_track(struct am_flow_key *key, const struct am_packet *p, const struct am_role *role, struct am_verdict *v)
{
	struct am_endpoint_key owner = { .endpoint = role->endpoint };
	struct am_budget *budget = am_ct_budget.lookup(&owner);
	struct am_flow flow = {
		.last_seen = bpf_ktime_get_coarse_ns(),
		.whereabouts = am_found(v->generation, v->where),
		.generation = v->generation,
		.endpoint = role->endpoint,
		.rule = v->rule,
		.flags = (role->from_host ? AM_FLOW_HOST : 0) | (p->is_translated ? AM_FLOW_TRANSLATED : 0),
		.side = role->side,
	};
	long error;

	if (!budget)
		return AM_REASON_CONNTRACK_BUDGET;
	if (__sync_fetch_and_add(&budget->count, 1) >= budget->limit) {
		__sync_fetch_and_add(&budget->count, -1);
		return AM_REASON_CONNTRACK_BUDGET;
	}
	error = am_ct.insert(key, &flow); /* BPF_NOEXIST */
	if (!error)
		return AM_REASON_FORWARDED;
	__sync_fetch_and_add(&budget->count, -1);
	/* Another processor was first: the flow is tracked. */
	return error == -AM_EEXIST ? AM_REASON_FORWARDED : AM_REASON_CONNTRACK_FULL;
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
	if (!p->is_error)
		am_touch(flow, p, is_reply);
	verdict->reason = is_reply ? AM_REASON_REPLY : AM_REASON_FORWARDED;
}

/* A packet of no flow that is known: it may begin one. */
AM_INLINE void am_open(const struct am_packet *p, const struct am_role *role, struct am_flow_key *key, struct am_verdict *verdict)
{
	u32 flags;

	if (p->is_error) { /* about no flow of ours: a message like any other, but never the start of a flow */
		key->local = role->side == AM_SIDE_EGRESS ? p->source : p->destination;
		key->remote = role->side == AM_SIDE_EGRESS ? p->destination : p->source;
		key->protocol = p->protocol;
	}
	if (role->is_outer)
		verdict->where = am_at(&key->remote);
	if (am_is_forged(role, verdict))
		return;
	verdict->rule = AM_NO_RULE;
	verdict->peer = AM_IDENTITY_HOST;
	verdict->reason = AM_REASON_FORWARDED;
	if (!role->from_host) {
		verdict->peer = am_identity_of(&key->remote, &flags);
		am_judge(role->subject, key, role->side, verdict);
	}
	if (verdict->reason || p->is_error)
		return;
	verdict->reason = am_track(key, p, role, verdict);
	verdict->is_new = 1;
}

/* Sets verdict->reason: FORWARDED or REPLY to let the packet through, else why not. */
AM_INLINE void am_admit(const struct am_packet *p, const struct am_role *role, struct am_verdict *verdict)
{
	struct am_flow_key key = {};
	struct am_flow *flow;

	/* Read before the maps are asked: a change in between leaves an entry that is judged again. */
	verdict->generation = am_generation_now();
	am_key_of_pod(&p->flow, role->side, &key);
	/* An error is read, and no more: it may find a flow, but begins, keeps and ends none. */
	flow = p->is_error && !p->inner_l4 ? 0 : am_ct.lookup(&key);
	if (flow && flow->endpoint == role->endpoint) {
		am_continue(p, role, &key, flow, verdict);
		return;
	}
	if (flow && !p->is_error) /* an address that had another owner */
		am_forget(&key, flow->endpoint);
	am_open(p, role, &key, verdict);
}

#endif
