/*
 * May this subject have this flow? Asked when a flow begins, and again when the policy's generation has moved on.
 *
 * Up to three longest-prefix lookups (the peer's identity, its CIDR set, anyone); the lowest rank wins. No line: allowed
 * unless the subject is isolated in that direction. A subject without an entry is denied: absence never allows.
 */
#ifndef AM_POLICY_H
#define AM_POLICY_H

/* Whose an address is; a stranger is the world. */
AM_INLINE u64 am_identity_of(const struct am_addr *address, u32 *flags)
{
	struct am_prefix_key key = { .prefixlen = AM_ADDRESS_BITS, .address = *address };
	struct am_peer *peer = am_ipcache.lookup(&key);

	*flags = peer ? peer->flags : 0;
	return peer ? peer->identity : AM_IDENTITY_WORLD;
}

AM_INLINE u64 am_cidr_set_of(const struct am_addr *address)
{
	struct am_prefix_key key = { .prefixlen = AM_ADDRESS_BITS, .address = *address };
	struct am_cidr_number *set = am_cidrs.lookup(&key);

	return set ? set->number : 0;
}

struct am_best {
	u32 rank;
	u32 rule;
	u8 verdict;
	u8 found;
};

AM_INLINE void am_ask(struct am_policy_key *key, u8 kind, u64 peer, struct am_best *best)
{
	struct am_policy_line *line;

	key->peer_kind = kind;
	key->peer = peer;
	line = am_policy.lookup(key);
	if (!line || (best->found && best->rank <= line->rank))
		return;
	best->found = 1;
	best->rank = line->rank;
	best->rule = line->rule;
	best->verdict = line->verdict;
}

AM_INLINE int am_has_ports(u8 protocol)
{
	return protocol == AM_TCP || protocol == AM_UDP || protocol == AM_SCTP;
}

/* Fills verdict->reason, ->rule and ->peer. */
AM_INLINE void am_judge(u64 subject, const struct am_flow_key *flow, struct am_verdict *verdict)
{
	const struct am_addr *peer = flow->side == AM_SIDE_INGRESS ? &flow->source : &flow->destination;
	struct am_subject_key subject_key = { .identity = subject };
	struct am_subject *isolation = am_subjects.lookup(&subject_key);
	struct am_best best = { .rule = AM_NO_RULE };
	struct am_policy_key key = {};
	u32 flags;
	u64 set;

	verdict->peer = am_identity_of(peer, &flags);
	verdict->rule = AM_NO_RULE;
	if (!isolation) {
		verdict->reason = AM_REASON_POLICY_UNKNOWN;
		return;
	}
	key.prefixlen = AM_POLICY_BITS;
	key.direction = flow->side;
	key.subject = subject;
	key.protocol = flow->protocol;
	key.port = am_has_ports(flow->protocol) ? flow->destination_port : 0;
	am_ask(&key, AM_PEER_IDENTITY, verdict->peer, &best);
	set = am_cidr_set_of(peer);
	if (set)
		am_ask(&key, AM_PEER_CIDR_SET, set, &best);
	am_ask(&key, AM_PEER_ANY, 0, &best);
	verdict->rule = best.rule;
	if (best.found)
		verdict->reason = best.verdict == AM_VERDICT_ALLOW ? AM_REASON_FORWARDED : AM_REASON_POLICY_DENIED;
	else if (flow->side == AM_SIDE_INGRESS ? isolation->ingress_isolated : isolation->egress_isolated)
		verdict->reason = AM_REASON_POLICY_DENIED;
	else
		verdict->reason = AM_REASON_FORWARDED;
}

#endif
