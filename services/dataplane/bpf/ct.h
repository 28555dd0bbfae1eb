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
};

AM_INLINE u32 am_generation_now(void)
{
	int zero = 0;
	struct am_generation *generation = am_generation.lookup(&zero);

	return generation ? generation->number : 0;
}

AM_INLINE void am_reverse_key(const struct am_flow_key *key, struct am_flow_key *reverse)
{
	reverse->source = key->destination;
	reverse->destination = key->source;
	reverse->source_port = key->destination_port;
	reverse->destination_port = key->source_port;
	reverse->protocol = key->protocol;
	reverse->side = !key->side;
	reverse->hole = 0;
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
		.generation = v->generation,
		.endpoint = role->endpoint,
		.rule = v->rule,
		.flags = (role->from_host ? AM_FLOW_HOST : 0) | (p->is_translated ? AM_FLOW_TRANSLATED : 0),
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

/* Sets verdict->reason: FORWARDED or REPLY to let the packet through, else why not. */
AM_INLINE void am_admit(const struct am_packet *p, const struct am_role *role, struct am_verdict *verdict)
{
	struct am_flow_key key = p->flow, reverse = {};
	struct am_flow *flow;
	u8 is_reply = 0;

	/* Read before the maps are asked: a change in between leaves an entry that is judged again. */
	verdict->generation = am_generation_now();
	key.side = role->side;
	flow = am_ct.lookup(&key);
	if (!flow || flow->endpoint != role->endpoint) {
		if (flow) /* an address that had another owner */
			am_forget(&key, flow->endpoint);
		am_reverse_key(&key, &reverse);
		flow = am_ct.lookup(&reverse);
		is_reply = 1;
	}
	if (flow && flow->endpoint == role->endpoint) {
		if (is_reply)
			key = reverse;
		if (flow->generation != verdict->generation && !(flow->flags & AM_FLOW_HOST)) {
			am_judge(role->subject, &key, verdict);
			if (verdict->reason) {
				/* The entry stays, to be judged again: without it an answer that is on its way would begin
				 * a flow of its own, of which the next packet would be the reply. It ages as any other. */
				verdict->reason = AM_REASON_POLICY_REVOKED;
				return;
			}
			flow->generation = verdict->generation;
		}
		/* The same ports may be used by way of a Service and directly, one after the other. */
		if (!is_reply && !p->is_error && !(flow->flags & AM_FLOW_TRANSLATED) != !p->is_translated)
			flow->flags ^= AM_FLOW_TRANSLATED;
		verdict->is_back = is_reply && (flow->flags & AM_FLOW_TRANSLATED);
		am_touch(flow, p, is_reply);
		verdict->reason = is_reply ? AM_REASON_REPLY : AM_REASON_FORWARDED;
		return;
	}
	if (p->is_error) { /* about no flow of ours: a message like any other, but never the start of a flow */
		key.source = p->source;
		key.destination = p->destination;
		key.protocol = p->protocol;
	}
	verdict->rule = AM_NO_RULE;
	verdict->peer = AM_IDENTITY_HOST;
	verdict->reason = AM_REASON_FORWARDED;
	if (!role->from_host)
		am_judge(role->subject, &key, verdict);
	if (verdict->reason || p->is_error)
		return;
	verdict->reason = am_track(&key, p, role, verdict);
	verdict->is_new = 1;
}

#endif
