/*
 * The table of translated flows (am_nat), two entries each (core/datapath/nat_layout.py), found by the packet as it is
 * met; included by nodeport.h, pod.c, uplink.c and tunnel.c.
 *
 * Each entry can be made again from the other, and each packet looks at both: so neither is evicted while the flow
 * lives, and whoever finds that the two disagree knows that its own is a leftover. A flow that is over (closed, or idle
 * for as long as conntrack would keep it) gives its place to a new one that wants the same ports.
 */
#ifndef AM_NAT_H
#define AM_NAT_H

#include "types.h"
#include "address.h"
#include "packet.h"
#include "flow_state.h"
#include "recent.h"

AM_INLINE void am_nat_key_of(struct am_work *w, u8 hook)
{
	const struct am_packet *p = &w->packet;

	w->key.source = p->flow.source;
	w->key.destination = p->flow.destination;
	w->key.source_port = p->flow.source_port;
	w->key.destination_port = p->flow.destination_port;
	w->key.protocol = p->flow.protocol;
	w->key.hook = hook;
	w->key.hole = 0;
}

/* From key and entry, the other direction's. */
AM_INLINE void am_nat_partner_of(struct am_work *w)
{
	w->partner_key.source = w->entry.destination;
	w->partner_key.destination = w->entry.source;
	w->partner_key.source_port = w->entry.destination_port;
	w->partner_key.destination_port = w->entry.source_port;
	w->partner_key.protocol = w->key.protocol;
	w->partner_key.hook = w->entry.partner;
	w->partner_key.hole = 0;
	w->partner = w->entry;
	w->partner.source = w->key.destination;
	w->partner.destination = w->key.source;
	w->partner.source_port = w->key.destination_port;
	w->partner.destination_port = w->key.source_port;
	w->partner.partner = w->key.hook;
	w->partner.is_back = !w->entry.is_back;
}

AM_INLINE int am_nat_matches(const struct am_nat *a, const struct am_nat *b)
{
	return am_same_addr(&a->source, &b->source) & am_same_addr(&a->destination, &b->destination) &
	       !((a->source_port ^ b->source_port) | (a->destination_port ^ b->destination_port));
}

/* Signed: another processor may have written a moment that is later than our look at the clock. */
AM_INLINE int am_nat_expired(const struct am_nat *entry)
{
	s64 idle = bpf_ktime_get_coarse_ns() - entry->last_seen;

	return idle > (s64)(entry->period * 1000000000ULL);
}

/* The place in am_nat_recent of a flow that is established, or gone, is free. */
AM_INLINE void am_nat_recent_delete(u32 cell)
{
	u32 index = (cell - 1) / AM_WAYS;
	struct am_recent_set *set;

	if (!cell)
		return;
	set = (struct am_recent_set *)am_nat_recent.lookup(&index);
	if (set)
		set->group[(cell - 1) & (AM_WAYS - 1)] = 0;
}

/* Marks what a packet shows of its flow. Returns 1 when the other entry is to say so too. */
AM_INLINE u64 am_nat_see(struct am_work *w, struct am_nat *own)
{
	const struct am_packet *p = &w->packet;
	u64 now = bpf_ktime_get_coarse_ns();
	u8 back = w->entry.is_back, had = own->seen, is_due = am_opaque(p, now - own->last_seen > AM_REFRESH_NS), seen;
	u32 expected = own->expected;

	seen = am_opaque(p, am_see_after(p, back, back, had, is_due, (struct am_reach *)&own->sent));
	if (seen == had && !is_due && own->expected == expected)
		return 0;
	if ((seen ^ had) & seen & AM_SEEN_ESTABLISHED)
		am_nat_recent_delete(own->cell);
	own->seen = seen;
	own->last_seen = now;
	own->period = am_idle_seconds(p->protocol, seen);
	return 1;
}

/*
 * Finds the packet's flow as it is met at `hook`, fills w->entry and the partner's, marks it as seen (but by an ICMP
 * error). Returns 0 when there is none.
 */
AM_INLINE int am_nat_lookup(struct am_work *w, u8 hook)
{
	struct am_nat *own, *other;
	u64 is_missing;

	am_nat_key_of(w, hook);
	own = am_nat.lookup(&w->key);
	if (!own)
		return 0;
	/* Copied before it is believed: an entry of an LRU may become another's while it is read. */
	w->entry = *own;
	am_nat_partner_of(w);
	other = am_nat.lookup(&w->partner_key);
	if (other && !am_nat_matches(other, &w->partner))
		return 0;
	is_missing = am_opaque(&w->packet, !other);
	if (w->packet.is_error) /* read, and no more */
		return 1;
	if (!(am_nat_see(w, own) | is_missing))
		return 1;
	/* Both entries say the same of the flow. */
	w->partner.seen = own->seen;
	w->partner.last_seen = own->last_seen;
	w->partner.period = own->period;
	w->partner.sent = own->sent;
	w->partner.expected = own->expected;
	am_nat.update(&w->partner_key, &w->partner);
	return 1;
}

AM_INLINE void am_nat_delete(struct am_work *w)
{
	am_nat.delete(&w->partner_key);
	am_nat.delete(&w->key);
}

/* Whoever stands in the place goes, both entries, unless it is established. */
AM_INLINE void am_nat_recent_evict(struct am_work *w, struct am_recent_set *set, u32 way, u32 cell)
{
	struct am_nat_key *key = &w->evicted_nat, *partner = &w->evicted_partner;
	struct am_nat *had;

	way &= AM_WAYS - 1;
	if (!set->group[way])
		return;
	set->group[way] = 0;
	__builtin_memcpy(key, set->key[way], sizeof(*key));
	had = am_nat.lookup(key);
	if (!had || had->cell != cell || (had->seen & AM_SEEN_ESTABLISHED))
		return;
	partner->source = had->destination;
	partner->destination = had->source;
	partner->source_port = had->destination_port;
	partner->destination_port = had->source_port;
	partner->protocol = key->protocol;
	partner->hook = had->partner;
	partner->hole = 0;
	am_nat.delete(key);
	had = am_nat.lookup(partner);
	if (had && had->cell == cell) /* its port may be another's meanwhile */
		am_nat.delete(partner);
}

/* A place in am_nat_recent for the flow in w->key: who floods a service loses its own flows. */
AM_INLINE void am_nat_recent_insert(struct am_work *w)
{
	u32 chance = bpf_get_prandom_u32(), index = chance & (AM_NAT_RECENT_SETS - 1), group = w->entry.service + 1, way;
	struct am_recent_set *set = (struct am_recent_set *)am_nat_recent.lookup(&index);

	if (!set)
		return;
	index = am_second_choice(set, chance) & (AM_NAT_RECENT_SETS - 1);
	set = (struct am_recent_set *)am_nat_recent.lookup(&index);
	if (!set)
		return;
	way = am_victim_way(set, group, 0);
	w->entry.cell = index * AM_WAYS + way + 1;
	am_nat_recent_evict(w, set, way, w->entry.cell);
	am_recent_insert(set, way, group, am_peer_of(&w->key.source, group), &w->key);
}

/*
 * May the partner's key be ours? It is free, or was left by a flow that is over, or is this very flow's; at last also
 * where its flow is not established.
 */
AM_INLINE int am_nat_claim(struct am_work *w)
{
	struct am_nat *had;
	u64 may = 0, differs;

	if (!am_nat.insert(&w->partner_key, &w->partner)) /* BPF_NOEXIST */
		return 1;
	had = am_nat.lookup(&w->partner_key);
	if (had) { /* without a branch: it is walked for each try */
		differs = !am_nat_matches(had, &w->partner);
		AM_BARRIER_VAR(differs);
		may = (had->period * 1000000000ULL - (bpf_ktime_get_coarse_ns() - had->last_seen)) >> 63;
		may |= w->is_late & ~(u64)(had->seen / AM_SEEN_ESTABLISHED) & 1;
		may |= ~differs & 1;
	}
	if (!am_opaque(&w->packet, may))
		return 0;
	return !am_nat.update(&w->partner_key, &w->partner);
}

/*
 * Remembers the flow that key and entry describe. The client's port is kept where its address is, unless that would mix
 * two flows up; else one of the node's reserve. Returns an AM_REASON_*, 0 when done.
 */
AM_INLINE u32 am_nat_create(struct am_work *w)
{
	u32 i;

	w->is_ours = w->entry.partner == AM_HOOK_WIRE;
	am_nat_recent_insert(w);
	for (i = 0; i < AM_PORT_TRIES; i++) {
		if (i | w->is_ours)
			w->entry.source_port = bpf_htons(AM_FIRST_PORT + bpf_get_prandom_u32() % (AM_LAST_PORT - AM_FIRST_PORT + 1));
		am_nat_partner_of(w);
		w->is_late = i / (AM_PORT_TRIES / 2) & w->is_ours;
		if (am_nat_claim(w))
			return am_nat.update(&w->key, &w->entry) ? AM_REASON_SERVICE_NO_SOURCE : 0;
	}
	return AM_REASON_SERVICE_NO_SOURCE;
}

#endif
