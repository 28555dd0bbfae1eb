/*
 * The memory of translated flows: two entries each (core/nat_layout.py), found by the packet as it is met.
 *
 * Each entry can be made again from the other, and each packet looks at both: so neither is evicted while the flow
 * lives, and whoever finds that the two disagree knows that its own is a leftover. A flow that is over (closed, or idle
 * for as long as conntrack would keep it) gives its place to a new one that wants the same ports.
 */
#ifndef AM_NAT_H
#define AM_NAT_H

AM_INLINE void am_key_of(struct am_work *w, u8 place)
{
	const struct am_packet *p = &w->packet;

	w->key.source = p->flow.source;
	w->key.destination = p->flow.destination;
	w->key.source_port = p->flow.source_port;
	w->key.destination_port = p->flow.destination_port;
	w->key.protocol = p->flow.protocol;
	w->key.place = place;
	w->key.hole = 0;
}

/* From key and entry, the other direction's. */
AM_INLINE void am_partner_of(struct am_work *w)
{
	w->partner_key.source = w->entry.destination;
	w->partner_key.destination = w->entry.source;
	w->partner_key.source_port = w->entry.destination_port;
	w->partner_key.destination_port = w->entry.source_port;
	w->partner_key.protocol = w->key.protocol;
	w->partner_key.place = w->entry.partner;
	w->partner_key.hole = 0;
	w->partner = w->entry;
	w->partner.source = w->key.destination;
	w->partner.destination = w->key.source;
	w->partner.source_port = w->key.destination_port;
	w->partner.destination_port = w->key.source_port;
	w->partner.partner = w->key.place;
	w->partner.is_back = !w->entry.is_back;
}

AM_INLINE int am_agrees(const struct am_nat *a, const struct am_nat *b)
{
	return am_same_addr(&a->source, &b->source) && am_same_addr(&a->destination, &b->destination) &&
	       a->source_port == b->source_port && a->destination_port == b->destination_port;
}

AM_INLINE u64 am_idle_seconds(u8 protocol, u8 seen)
{
	u8 closed = seen & (AM_SEEN_FIN_ORIGINAL | AM_SEEN_FIN_REPLY);

	if (protocol != AM_TCP)
		return seen & AM_SEEN_REPLY ? AM_UDP_ANSWERED_SECONDS : AM_UDP_SINGLE_SECONDS;
	if ((seen & AM_SEEN_RESET) || closed == (AM_SEEN_FIN_ORIGINAL | AM_SEEN_FIN_REPLY))
		return AM_TCP_CLOSING_SECONDS;
	if (closed)
		return AM_TCP_HALF_CLOSED_SECONDS;
	return seen & AM_SEEN_REPLY ? AM_TCP_ESTABLISHED_SECONDS : AM_TCP_SYN_SECONDS;
}

/* Signed: another processor may have written a moment that is later than our look at the clock. */
AM_INLINE int am_is_over(const struct am_nat *entry, u8 protocol)
{
	s64 idle = bpf_ktime_get_coarse_ns() - entry->last_seen;

	return idle > (s64)(am_idle_seconds(protocol, entry->seen) * 1000000000ULL);
}

AM_INLINE void am_see(struct am_work *w, struct am_nat *own, struct am_nat *other)
{
	const struct am_packet *p = &w->packet;
	u64 now = bpf_ktime_get_coarse_ns();
	u8 seen = own->seen, back = w->entry.is_back;

	if (back)
		seen |= AM_SEEN_REPLY;
	if (p->protocol == AM_TCP && (p->tcp_flags & AM_TCP_FIN))
		seen |= back ? AM_SEEN_FIN_REPLY : AM_SEEN_FIN_ORIGINAL;
	if (p->protocol == AM_TCP && (p->tcp_flags & AM_TCP_RST))
		seen |= AM_SEEN_RESET;
	if (seen == own->seen && now - own->last_seen <= AM_REFRESH_NS)
		return;
	own->seen = seen;
	own->last_seen = now;
	if (other) {
		other->seen = seen;
		other->last_seen = now;
	}
}

/*
 * Finds the packet's flow as it is met at `place`, fills w->entry and the partner's, marks it as seen (but by an ICMP
 * error). Returns 0 when there is none.
 */
AM_INLINE int am_recall(struct am_work *w, u8 place)
{
	struct am_nat *own, *other;

	am_key_of(w, place);
	own = am_nat.lookup(&w->key);
	if (!own)
		return 0;
	/* Copied before it is believed: an entry of an LRU may become another's while it is read. */
	w->entry = *own;
	am_partner_of(w);
	other = am_nat.lookup(&w->partner_key);
	if (other && !am_agrees(other, &w->partner))
		return 0;
	if (w->packet.is_error) /* read, and no more */
		return 1;
	if (!other) {
		am_nat.insert(&w->partner_key, &w->partner);
		other = am_nat.lookup(&w->partner_key);
	}
	am_see(w, own, other);
	return 1;
}

AM_INLINE void am_drop_flow(struct am_work *w)
{
	am_nat.delete(&w->partner_key);
	am_nat.delete(&w->key);
}

/* May the partner's key be ours? It is free, or was left by a flow that is over, or is this very flow's. */
AM_INLINE int am_take(struct am_work *w)
{
	struct am_nat *had;

	if (!am_nat.insert(&w->partner_key, &w->partner)) /* BPF_NOEXIST */
		return 1;
	had = am_nat.lookup(&w->partner_key);
	if (!had || (!am_agrees(had, &w->partner) && !am_is_over(had, w->key.protocol)))
		return 0;
	return !am_nat.update(&w->partner_key, &w->partner);
}

/*
 * Remembers the flow that key and entry describe. The client's port is kept where its address is, unless that would mix
 * two flows up; else one of the node's reserve. Returns an AM_REASON_*, 0 when done.
 */
AM_INLINE u32 am_remember(struct am_work *w, u8 is_ours)
{
	u32 i;

	for (i = 0; i < AM_PORT_TRIES; i++) {
		if (i || is_ours)
			w->entry.source_port = bpf_htons(AM_FIRST_PORT + bpf_get_prandom_u32() % (AM_LAST_PORT - AM_FIRST_PORT + 1));
		am_partner_of(w);
		if (am_take(w))
			return am_nat.update(&w->key, &w->entry) ? AM_REASON_SERVICE_NO_SOURCE : 0;
	}
	return AM_REASON_SERVICE_NO_SOURCE;
}

#endif
