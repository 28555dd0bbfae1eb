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

AM_INLINE struct am_endpoint *am_local(const struct am_addr *address)
{
	struct am_address_key key = { .address = *address };

	return am_endpoints.lookup(&key);
}

/* Where who has an address is, as an AM_AT_*. */
AM_INLINE u8 am_at(const struct am_addr *address)
{
	u32 flags;

	if (am_local(address) || am_identity_of(address, &flags) == AM_IDENTITY_HOST)
		return AM_AT_HERE;
	return flags & AM_IPCACHE_POD ? AM_AT_POD_AWAY : AM_AT_AWAY;
}

AM_INLINE u64 am_cidr_set_of(const struct am_subject *subject, const struct am_addr *address)
{
	struct am_cidr_key key = { .prefixlen = AM_CIDR_BITS, .address = *address };
	struct am_cidr_number *set;

	__builtin_memcpy(key.namespace, subject->namespace, sizeof(key.namespace));
	set = am_cidrs.lookup(&key);
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

/* A flow of `subject` with verdict->peer, begun by the peer (INGRESS) or by the subject. Fills ->reason and ->rule. */
AM_INLINE void am_judge(u64 subject, const struct am_flow_key *flow, u8 side, struct am_verdict *verdict)
{
	struct am_subject_key subject_key = { .identity = subject };
	struct am_subject *isolation = am_subjects.lookup(&subject_key);
	struct am_best best = { .rule = AM_NO_RULE };
	struct am_policy_key key = {};
	u64 set;

	verdict->rule = AM_NO_RULE;
	if (!isolation) {
		verdict->reason = AM_REASON_POLICY_UNKNOWN;
		return;
	}
	key.prefixlen = AM_POLICY_BITS;
	key.direction = side;
	key.subject = subject;
	key.protocol = flow->protocol;
	if (am_has_ports(flow->protocol))
		key.port = side == AM_SIDE_INGRESS ? flow->local_port : flow->remote_port;
	am_ask(&key, AM_PEER_IDENTITY, verdict->peer, &best);
	set = am_cidr_set_of(isolation, &flow->remote);
	if (set)
		am_ask(&key, AM_PEER_CIDR_SET, set, &best);
	am_ask(&key, AM_PEER_ANY, 0, &best);
	verdict->rule = best.rule;
	if (best.found)
		verdict->reason = best.verdict == AM_VERDICT_ALLOW ? AM_REASON_FORWARDED : AM_REASON_POLICY_DENIED;
	else if (side == AM_SIDE_INGRESS ? isolation->ingress_isolated : isolation->egress_isolated)
		verdict->reason = AM_REASON_POLICY_DENIED;
	else
		verdict->reason = AM_REASON_FORWARDED;
}

#endif
