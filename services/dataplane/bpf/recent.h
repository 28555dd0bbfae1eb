/*
 * The tables of flows that are not established (am_ct_recent, am_nat_recent): where each stands, and which must go for
 * a newcomer; included by budget.h, conntrack.h and nat.h.
 *
 * A set has AM_WAYS places, and a newcomer looks at one set by chance, and where that is full at another (so that none
 * must go while half of the places are free). It takes a free place, else that of a flow of whoever holds most of the
 * set: first by group (an endpoint and a side; a service), within it what is answered for good or older than a minute,
 * then by peer; the oldest of those. So who floods loses its own flows, and a peer that floods loses its own before
 * another peer's. No locks: two processors in one place may leave a name there that fits no flow, which ages as any
 * other.
 *
 * Scoring is one line of arithmetic without a branch: the verifier walks it once. Where the first set has a free place,
 * nobody is ranked.
 */
#ifndef AM_RECENT_H
#define AM_RECENT_H

#include "types.h"
#include "address.h"

struct am_recent_set {
	u32 group[AM_WAYS]; /* 0: free */
	u32 peer[AM_WAYS];
	u32 born[AM_WAYS]; /* am_coarse_ms(); 0: answered for good */
	u32 key[AM_WAYS][10]; /* struct am_flow_key or struct am_nat_key */
};
_Static_assert(sizeof(struct am_recent_set) == sizeof(struct am_recent), "core/layout.py says how large");
_Static_assert(sizeof(struct am_flow_key) == 40 && sizeof(struct am_nat_key) == 40, "one kind of place for both");

/* About a millisecond, never 0. */
AM_INLINE u32 am_coarse_ms(void)
{
	return (u32)(bpf_ktime_get_coarse_ns() >> 20) | 1;
}

/* Keeps the compiler from making a branch of it. */
#define AM_BARRIER_VAR(x) asm volatile("" : "+r"(x))

/* 1 or 0 */
AM_INLINE u64 am_equal(u32 a, u32 b)
{
	u64 difference = a ^ b;

	AM_BARRIER_VAR(difference);
	return (difference - 1) >> 63;
}

/* Whose flow it is: never 0, since no endpoint is. */
AM_INLINE u32 am_group_of(u32 endpoint, u8 side)
{
	return endpoint << 1 | (side & 1);
}

/* Who is counted as one: an IPv4 address, an IPv6 /64; with its group. */
AM_INLINE u32 am_peer_of(const struct am_addr *address, u32 group)
{
	u32 last = am_is_mapped(address) ? address->word[3] : 0;
	u64 mixed = ((u64)address->word[0] << 32 | address->word[1]) * 0x9e3779b97f4a7c15ULL;

	mixed = (mixed ^ (mixed >> 29) ^ ((u64)group << 32 | last)) * 0xbf58476d1ce4e5b9ULL;
	return mixed >> 32;
}

/* A free place of `set`, AM_WAYS where there is none. */
AM_INLINE u32 am_free_way(const struct am_recent_set *set)
{
	u64 way = AM_WAYS, is_free;
	u32 i;

#pragma unroll
	for (i = 0; i < AM_WAYS; i++) {
		is_free = am_equal(set->group[i], 0);
		AM_BARRIER_VAR(is_free);
		way ^= (way ^ i) & -is_free;
	}
	return way;
}

/* Two numbers by chance lie in `chance`, the first below: that one again where `set`, found by it, has a free place. */
AM_INLINE u32 am_second_choice(const struct am_recent_set *set, u32 chance)
{
	u64 full = 1;
	u32 i;

#pragma unroll
	for (i = 0; i < AM_WAYS; i++)
		full &= ~am_equal(set->group[i], 0);
	return chance >> (full << 4);
}

/* The place of `set` to take. `own` 1: one of the group's own, where there is any. */
AM_INLINE u32 am_victim_way(const struct am_recent_set *set, u32 group, u64 own)
{
	u64 best = 0, score, same, like, less, age, spare;
	u32 now = am_coarse_ms(), i, j;

#pragma unroll
	for (i = 0; i < AM_WAYS; i++) {
		same = like = 0;
#pragma unroll
		for (j = 0; j < AM_WAYS; j++) {
			same += am_equal(set->group[i], set->group[j]);
			like += am_equal(set->peer[i], set->peer[j]);
		}
		age = (u32)(now - set->born[i]);
		spare = am_equal(set->born[i], 0) | (1 ^ am_equal(age >> 16, 0));
		score = (own & am_equal(set->group[i], group)) << 62 | am_equal(set->group[i], 0) << 61;
		score |= same << 50 | spare << 49 | like << 40 | age << 3 | i;
		AM_BARRIER_VAR(score);
		less = (best - score) >> 63;
		AM_BARRIER_VAR(less);
		best ^= (best ^ score) & -less;
	}
	return best & (AM_WAYS - 1);
}

AM_INLINE void am_recent_insert(struct am_recent_set *set, u32 way, u32 group, u32 peer, const void *key)
{
	way &= AM_WAYS - 1;
	__builtin_memcpy(set->key[way], key, sizeof(set->key[way]));
	set->peer[way] = peer;
	set->born[way] = am_coarse_ms();
	set->group[way] = group;
}

#endif
