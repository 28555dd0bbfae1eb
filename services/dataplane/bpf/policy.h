/*
 * The policy of a subject: may it have this flow; included by verdict.h.
 *
 * Asked when a flow begins, and again when the policy's generation has moved on.
 *
 * A direction's policy is a scope of at most 256 rules, bit j of a vector being the j-th in precedence. What names the
 * peer (anybody, the selectors that match it, the CIDRs that hold its address) and what names the port are two vectors;
 * the lowest bit that both have is the rule. A constant number of look-ups, however many rules and selectors. No rule:
 * allowed unless the subject is isolated in that direction. A subject without an entry is denied, and so is a flow
 * whose rule is missing: absence never allows.
 */
#ifndef AM_POLICY_H
#define AM_POLICY_H

#include "types.h"
#include "packet.h"

AM_INLINE u32 am_generation_now(void)
{
	int zero = 0;
	struct am_generation *generation = am_generation.lookup(&zero);

	return generation ? generation->number : 0;
}

AM_INLINE u64 am_cidr_set_of(const struct am_subject *subject, const struct am_addr *address)
{
	struct am_cidr_key key = { .prefixlen = AM_CIDR_BITS, .address = *address };
	struct am_cidr_number *set;

	__builtin_memcpy(key.namespace, subject->namespace, sizeof(key.namespace));
	set = am_cidrs.lookup(&key);
	return set ? set->number : 0;
}

struct am_vector {
	u64 word[4];
};

/* Adds the rules of a scope that name this peer. */
AM_INLINE void am_add_rules_of(struct am_scope_peer_key *key, u32 kind, u64 peer, struct am_vector *rules)
{
	struct am_scope_bits *found;

	key->kind = kind;
	key->peer = peer;
	found = am_scope_peer.lookup(key);
	if (!found)
		return;
	rules->word[0] |= found->bits[0];
	rules->word[1] |= found->bits[1];
	rules->word[2] |= found->bits[2];
	rules->word[3] |= found->bits[3];
}

/* Position of the lowest bit of a word that has one: without a branch, since each would double the verifier's work. */
AM_INLINE u32 am_lowest_bit(u64 word)
{
	word = (word & -word) - 1; /* as many ones as there are zeros below it */
	word -= word >> 1 & 0x5555555555555555ULL;
	word = (word & 0x3333333333333333ULL) + (word >> 2 & 0x3333333333333333ULL);
	word = word + (word >> 4) & 0x0f0f0f0f0f0f0f0fULL;
	return word * 0x0101010101010101ULL >> 56;
}

/* The first rule in precedence of a vector; 0 when it has none. */
AM_INLINE int am_first_rule(const struct am_vector *rules, u32 *index)
{
	if (rules->word[0])
		*index = am_lowest_bit(rules->word[0]);
	else if (rules->word[1])
		*index = 64 + am_lowest_bit(rules->word[1]);
	else if (rules->word[2])
		*index = 128 + am_lowest_bit(rules->word[2]);
	else if (rules->word[3])
		*index = 192 + am_lowest_bit(rules->word[3]);
	else
		return 0;
	return 1;
}

AM_INLINE u64 am_selectors_of(u64 identity)
{
	struct am_identity_key key = { .identity = identity };
	struct am_selector_set *set = am_selected.lookup(&key);

	return set ? set->number : 0;
}

AM_INLINE int am_has_ports(u8 protocol)
{
	return protocol == AM_TCP || protocol == AM_UDP || protocol == AM_SCTP;
}

/* The rule of a scope that decides on a flow with verdict->peer. 0: there is none. */
AM_INLINE struct am_scope_rule *am_rule_of(const struct am_subject *subject, u64 scope, const struct am_flow_key *flow, u8 side, const struct am_verdict *verdict, int *none)
{
	struct am_scope_port_key port = { .prefixlen = AM_SCOPE_BITS, .scope = scope, .protocol = flow->protocol };
	struct am_scope_peer_key peer = { .scope = scope };
	struct am_scope_rule_key rule = { .scope = scope };
	struct am_vector rules = {};
	struct am_scope_bits *ports;
	u64 set;

	*none = 1;
	if (am_has_ports(flow->protocol))
		port.port = side == AM_SIDE_INGRESS ? flow->local_port : flow->remote_port;
	ports = am_scope_port.lookup(&port);
	if (!ports)
		return 0;
	am_add_rules_of(&peer, verdict->peer >= AM_FIRST_COMPUTED ? AM_PEER_ANY_POD : AM_PEER_ANYBODY, 0, &rules);
	set = am_selectors_of(verdict->peer);
	if (set)
		am_add_rules_of(&peer, AM_PEER_SELECTOR_SET, set, &rules);
	set = am_cidr_set_of(subject, &flow->remote);
	if (set)
		am_add_rules_of(&peer, AM_PEER_CIDR_SET, set, &rules);
	rules.word[0] &= ports->bits[0];
	rules.word[1] &= ports->bits[1];
	rules.word[2] &= ports->bits[2];
	rules.word[3] &= ports->bits[3];
	if (!am_first_rule(&rules, &rule.index))
		return 0;
	*none = 0;
	return am_scope_rule.lookup(&rule);
}

/* The number of the subject's policy, 0 where it has none. */
AM_INLINE u32 am_policy_of(u64 subject)
{
	struct am_subject_key key = { .identity = subject };
	struct am_subject *policy = am_subjects.lookup(&key);

	return policy ? policy->policy : 0;
}

/* A flow of `subject` with verdict->peer, begun by the peer (INGRESS) or by the subject. Fills ->reason and ->rule. */
AM_INLINE void am_evaluate_policy(u64 subject, const struct am_flow_key *flow, u8 side, struct am_verdict *verdict)
{
	struct am_subject_key subject_key = { .identity = subject };
	struct am_subject *policy = am_subjects.lookup(&subject_key);
	struct am_scope_rule *rule;
	u8 isolated;
	int none;
	u64 scope;

	verdict->rule = AM_NO_RULE;
	if (!policy) {
		verdict->reason = AM_REASON_POLICY_UNKNOWN;
		return;
	}
	verdict->policy = policy->policy;
	scope = side == AM_SIDE_INGRESS ? policy->ingress : policy->egress;
	isolated = side == AM_SIDE_INGRESS ? policy->ingress_isolated : policy->egress_isolated;
	verdict->reason = isolated ? AM_REASON_POLICY_DENIED : AM_REASON_FORWARDED;
	if (!scope)
		return;
	rule = am_rule_of(policy, scope, flow, side, verdict, &none);
	if (none)
		return;
	verdict->reason = AM_REASON_POLICY_DENIED;
	if (!rule)
		return;
	verdict->rule = rule->rule;
	if (rule->verdict == AM_VERDICT_ALLOW)
		verdict->reason = AM_REASON_FORWARDED;
}

#endif
