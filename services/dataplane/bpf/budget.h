/*
 * The limits of conntrack: how many flows each endpoint has (am_ct_budget), and how many established ones each peer
 * holds of it (am_ct_peers); included by conntrack.h and gc.c.
 *
 * An endpoint's flows are counted apart by who began them.
 */
#ifndef AM_BUDGET_H
#define AM_BUDGET_H

#include "types.h"
#include "recent.h"

/* The count of a side; each has its own limit. */
AM_INLINE u64 *am_count_of(struct am_budget *budget, u8 side)
{
	return &budget->ingress + (side & 1);
}

/* Never below zero, whoever else counts at this moment. */
AM_INLINE void am_decrement(u64 *count)
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
AM_INLINE void am_budget_release(const struct am_flow_key *key, u32 endpoint, u8 side, u8 is_held)
{
	struct am_budget *budget = am_budget_of(endpoint), *node = am_budget_of(AM_NODE_ENDPOINT);
	struct am_held *held;

	if (budget)
		am_decrement(am_count_of(budget, side));
	if (node)
		am_decrement(&node->ingress);
	if (!is_held)
		return;
	held = am_held_by(key, endpoint);
	if (held)
		am_decrement(&held->count);
}

/* May the endpoint not have one flow more? Where the node's table is nearly full, less is enough. */
AM_INLINE u64 am_budget_spent(struct am_budget *budget, const struct am_budget *node, u64 has_node, u8 side, u64 has_one)
{
	u64 limit = *(&budget->ingress_limit + (side & 1));
	s64 count = *am_count_of(budget, side) - has_one;

	if (has_node && (s64)(node->ingress - has_one) >= (s64)node->ingress_limit)
		limit /= AM_PRESSURE;
	return count >= (s64)limit;
}

#endif
