/*
 * Connection tracking (am_ct): an entry per flow and per local endpoint that takes part; included by verdict.h and
 * gc.c.
 *
 * Both ends of a same-node flow have their own policy, so each has its own entry. An entry remembers the policy
 * generation that it was judged under. A full table or a spent budget drops. Time is the coarse clock, written at most
 * about once a second.
 *
 * An endpoint's flows are counted apart by who began them (budget.h). Those that are not established have a place each
 * in am_ct_recent (recent.h), so there are never more than it has places, and newcomers need no free ones.
 *
 * A connection on the ports of one that is over, between two SYNs of which policy has not changed, takes that one's
 * entry as it lies (am_ct_reuse): neither judged, inserted nor counted again, and half-open as any other.
 */
#ifndef AM_CONNTRACK_H
#define AM_CONNTRACK_H

#include "types.h"
#include "packet.h"
#include "flow_state.h"
#include "recent.h"
#include "budget.h"

#define AM_EEXIST 17

AM_INLINE u64 am_locality_word(u32 generation, u8 where)
{
	return (u64)generation << 8 | where;
}

AM_INLINE void am_ct_key_of(const struct am_tuple *tuple, u8 side, struct am_flow_key *key)
{
	u8 sends = side == AM_SIDE_EGRESS;

	key->local = sends ? tuple->source : tuple->destination;
	key->remote = sends ? tuple->destination : tuple->source;
	key->local_port = sends ? tuple->source_port : tuple->destination_port;
	key->remote_port = sends ? tuple->destination_port : tuple->source_port;
	key->protocol = tuple->protocol;
}

/* The place in am_ct_recent of a flow that is established, or gone, is free. */
AM_INLINE void am_ct_recent_delete(u32 cell)
{
	u32 index = (cell - 1) / AM_WAYS;
	struct am_recent_set *set;

	if (!cell)
		return;
	set = (struct am_recent_set *)am_ct_recent.lookup(&index);
	if (set)
		set->group[(cell - 1) & (AM_WAYS - 1)] = 0;
}

AM_INLINE void am_ct_delete(struct am_flow_key *key, const struct am_flow *flow)
{
	u32 endpoint = flow->endpoint, cell = flow->cell;
	u8 side = flow->side, seen = flow->seen, is_held;

	is_held = (seen & AM_SEEN_ESTABLISHED) && side == AM_SIDE_INGRESS && !(flow->flags & AM_FLOW_HOST);
	if (am_ct.delete(key))
		return;
	am_budget_release(key, endpoint, side, is_held);
	if (!(seen & AM_SEEN_ESTABLISHED))
		am_ct_recent_delete(cell);
}

/* A flow becomes established: its peer must have room for it. Returns an AM_REASON_*, 0 when it has. */
AM_INLINE u32 am_ct_establish(const struct am_flow_key *key, struct am_flow *flow)
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
	am_ct_recent_delete(flow->cell);
	return 0;
}

/* An answered query: the first to go where its group needs a place. */
AM_INLINE void am_ct_mark_answered(const struct am_flow *flow)
{
	u32 index = (flow->cell - 1) / AM_WAYS;
	struct am_recent_set *set = flow->cell ? (struct am_recent_set *)am_ct_recent.lookup(&index) : 0;

	if (set)
		set->born[(flow->cell - 1) & (AM_WAYS - 1)] = 0;
}

/* Marks what a packet shows of its flow. Returns an AM_REASON_*, 0 to let it through. */
AM_INLINE u32 am_ct_update(const struct am_flow_key *key, struct am_flow *flow, const struct am_packet *p, u8 is_reply, u8 is_own)
{
	u64 now = bpf_ktime_get_coarse_ns();
	u8 had = flow->seen, is_due = am_opaque(p, now - flow->last_seen > AM_REFRESH_NS);
	u8 seen = am_see_after(p, is_reply, is_own, had, is_due, (struct am_reach *)&flow->sent), changed;

	seen = am_opaque(p, seen);
	changed = seen ^ had;

	if (!changed && !is_due)
		return 0;
	if (changed & seen & AM_SEEN_ESTABLISHED) {
		if (am_ct_establish(key, flow))
			return AM_REASON_CONNTRACK_BUDGET;
	} else if ((changed & AM_SEEN_REPLY) && (seen & AM_SEEN_ONE_SHOT)) {
		am_ct_mark_answered(flow);
	}
	flow->seen = seen;
	flow->last_seen = now;
	return 0;
}

/* Whoever stands in the place goes, unless it is established. Returns 1 when that was a flow of the same group. */
AM_INLINE int am_ct_recent_evict(const struct am_packet *p, struct am_recent_set *set, u32 way, u32 cell, u32 group)
{
	struct am_flow_key *key = &am_work_of(p)->evicted;
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
	am_ct_delete(key, flow);
	return whose == group;
}

/* The part of an entry that says where its flow stands, as one word. */
union am_flow_state {
	struct {
		u8 seen;
		u8 flags;
		u8 side;
		u8 hole[5];
	};
	u64 word;
};
_Static_assert(__builtin_offsetof(struct am_flow, seen) == sizeof(struct am_flow) - sizeof(union am_flow_state), "lies over an entry");

/*
 * A connection that is over leaves its entry to the next one on its ports. It is counted already, but holds nothing of
 * its peer's until it is established. Returns 0 where another processor was first.
 */
AM_INLINE int am_ct_reuse(const struct am_flow_key *key, struct am_flow *flow, const struct am_packet *p, u8 is_own, u32 cell)
{
	u64 *word = (u64 *)&flow->seen;
	union am_flow_state had = { .word = *(volatile u64 *)word }, begun = had;
	struct am_reach reach = {};
	struct am_held *held;

	if (!(had.seen & AM_SEEN_ESTABLISHED))
		return 0;
	begun.seen = am_see_first(p, is_own, &reach);
	begun.flags = (had.flags & ~AM_FLOW_TRANSLATED) | (p->is_translated ? AM_FLOW_TRANSLATED : 0);
	if (__sync_val_compare_and_swap(word, had.word, begun.word) != had.word)
		return 0;
	flow->sent = reach.sent;
	flow->expected = reach.expected;
	flow->cell = cell;
	flow->last_seen = bpf_ktime_get_coarse_ns();
	if (had.side == AM_SIDE_INGRESS && !(had.flags & AM_FLOW_HOST)) {
		held = am_held_by(key, flow->endpoint);
		if (held)
			am_decrement(&held->count);
	}
	return 1;
}

/* A flow begins. `over` is the entry of one before it that is over, or 0. */
AM_INLINE u32 am_ct_create(struct am_flow_key *key, struct am_flow *over, const struct am_packet *p, const struct am_role *role, struct am_verdict *v)
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
	has_node = am_opaque(p, node != 0);
	if (!node) /* one path for the verifier */
		node = budget;
	/* A node always reaches its pods. */
	is_spent = role->from_host ? 0 : am_opaque(p, am_budget_spent(budget, node, has_node, role->side, over != 0));
	chance = bpf_get_prandom_u32();
	*index = budget->first + (chance & budget->mask);
	set = (struct am_recent_set *)am_ct_recent.lookup(index);
	if (!set)
		return AM_REASON_CONNTRACK_FULL;
	way = am_opaque(p, am_free_way(set));
	if (is_spent | (way == AM_WAYS)) {
		/* The other one, or this one again: one path for the verifier. */
		*index = budget->first + (am_second_choice(set, chance) & budget->mask);
		set = (struct am_recent_set *)am_ct_recent.lookup(index);
		if (!set)
			return AM_REASON_CONNTRACK_FULL;
		way = am_victim_way(set, group, is_spent);
		went = am_ct_recent_evict(p, set, way, *index * AM_WAYS + way + 1, group);
		if (is_spent & !went)
			return AM_REASON_CONNTRACK_BUDGET;
	}
	way = am_opaque(p, way);
	cell = *index * AM_WAYS + way + 1;
	if (over) {
		if (!am_ct_reuse(key, over, p, role->side == AM_SIDE_EGRESS, cell))
			return AM_REASON_FORWARDED;
	} else {
		__builtin_memset(flow, 0, sizeof(*flow));
		flow->cell = cell;
		flow->last_seen = bpf_ktime_get_coarse_ns();
		flow->locality = am_locality_word(v->generation, v->locality);
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
	am_recent_insert(set, way, group, am_peer_of(&key->remote, group), key);
	return AM_REASON_FORWARDED;
}

/*
 * May a connection take over the entry of the one before it, which is over? Where policy and its owner are what they
 * were, and it has given back its place (am_ct_establish).
 */
AM_INLINE int am_ct_may_reuse(const struct am_flow *flow, const struct am_role *role, u32 generation)
{
	return flow->endpoint == role->endpoint && flow->side == role->side && flow->generation == generation &&
	       (flow->seen & AM_SEEN_ESTABLISHED) && !(flow->flags & AM_FLOW_HOST) == !role->from_host;
}

#endif
