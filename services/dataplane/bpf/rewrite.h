/*
 * Network address translation of a packet in place: addresses, ports and checksums; included by forward.h, arrival.h,
 * uplink.c and tunnel.c.
 *
 * struct am_work says from what (key) to what (entry), struct am_packet follows. Right for packets whose transport
 * checksum is still to be computed (CHECKSUM_PARTIAL, every GSO packet), for UDP without one, for fragments (only the
 * first has ports), and for ICMP errors, where the packet inside is turned back as well (RFC 5508): whoever sent that
 * one sees what it sent. Each function returns nonzero when the packet could not be written; it is then half-done and
 * must go no further.
 */
#ifndef AM_REWRITE_H
#define AM_REWRITE_H

#include "types.h"
#include "address.h"
#include "packet.h"
#include "csum.h"

/* Writes two addresses, source and destination, into the IP header at `head`. */
AM_INLINE long am_write_pair(struct __sk_buff *skb, u32 head, u8 family, const struct am_addr *pair, u32 diff, u64 flags)
{
	u32 four[2];

	if (family == 6)
		return bpf_skb_store_bytes(skb, head + 8, pair, 32, flags);
	four[0] = pair[0].word[3];
	four[1] = pair[1].word[3];
	if (bpf_l3_csum_replace(skb, head + 10, 0, diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, head + 12, four, 8, 0);
}

AM_INLINE u32 am_ports_of(const void *ports)
{
	u32 both;

	__builtin_memcpy(&both, ports, 4);
	return both;
}

AM_INLINE long am_rewrite_transport(struct __sk_buff *skb, struct am_packet *p, struct am_work *w, u32 diff)
{
	u32 at = p->l4 + am_csum_offset(p->protocol);
	u64 flags = p->protocol == AM_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u32 was = am_ports_of(&w->key.source_port), becomes = am_ports_of(&w->entry.source_port);

	if (am_csum_replace_pseudo(skb, at, diff, flags, p->family))
		return -1;
	if (was == becomes)
		return 0;
	if (bpf_l4_csum_replace(skb, at, was, becomes, flags | 4))
		return -1;
	return bpf_skb_store_bytes(skb, p->l4, &becomes, 4, 0);
}

/* The packet inside an ICMP error went the other way: it becomes what the partner's key says. */
AM_INLINE long am_rewrite_inner(struct __sk_buff *skb, struct am_packet *p, struct am_work *w, u32 *change)
{
	u32 head = p->l4 + 8, l4 = p->inner_l4, at;
	u32 was = am_ports_of(&w->partner.source_port), becomes = am_ports_of(&w->partner_key.source_port);
	u32 diff = am_csum_diff(&w->partner.source, &w->partner_key.source), ports;
	u16 sum = 0;

	ports = bpf_csum_diff(&was, 4, &becomes, 4, 0);
	*change = p->family == 4 ? ports : am_csum_add(diff, ports); /* an IPv4 header's sum never changes */
	at = l4 + am_csum_offset(w->key.protocol);
	/* The inner transport checksum, where the error carries it. */
	if (at + 2 <= p->l4 + p->l4_len && !bpf_skb_load_bytes(skb, at, &sum, 2) && sum) {
		if (bpf_l3_csum_replace(skb, at, 0, am_csum_add(diff, ports), 0))
			return -1;
		*change = p->family == 4 ? ~diff : 0;
	}
	if (am_write_pair(skb, head, p->family, &w->partner_key.source, diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, l4, &becomes, 4, 0);
}

AM_INLINE long am_rewrite_error(struct __sk_buff *skb, struct am_packet *p, struct am_work *w)
{
	u32 change = 0, diff;

	/*
	 * A router on the way keeps its name only where the flow's own end keeps its own: the answer may go back by that very
	 * router, which would take its own address for a forgery.
	 */
	w->outer[0] = am_same_addr(&w->entry.source, &w->key.source) ? p->source : w->entry.source;
	w->outer[1] = w->entry.destination;
	if (am_rewrite_inner(skb, p, w, &change))
		return -1;
	diff = am_csum_diff(&p->source, w->outer);
	if (change && bpf_l4_csum_replace(skb, p->l4 + 2, 0, change, 0))
		return -1;
	if (p->family == 6 && am_csum_replace_pseudo(skb, p->l4 + 2, diff, 0, 6))
		return -1;
	if (am_write_pair(skb, AM_ETH_LEN, p->family, w->outer, diff, 0))
		return -1;
	p->source = w->outer[0];
	p->destination = w->outer[1];
	return 0;
}

AM_INLINE long am_rewrite_packet(struct __sk_buff *skb, struct am_packet *p, struct am_work *w)
{
	u32 diff = am_csum_diff(&p->source, &w->entry.source);

	if (p->is_first && am_rewrite_transport(skb, p, w, diff))
		return -1;
	/* Nothing in a later IPv6 fragment makes up for the change: the kernel's own sum must follow. */
	if (am_write_pair(skb, AM_ETH_LEN, p->family, &w->entry.source, diff, p->is_first ? 0 : BPF_F_RECOMPUTE_CSUM))
		return -1;
	p->source = w->entry.source;
	p->destination = w->entry.destination;
	return 0;
}

AM_INLINE long am_rewrite(struct __sk_buff *skb, struct am_packet *p, struct am_work *w)
{
	if (p->is_error ? am_rewrite_error(skb, p, w) : am_rewrite_packet(skb, p, w))
		return -1;
	p->flow.source = w->entry.source;
	p->flow.destination = w->entry.destination;
	p->flow.source_port = w->entry.source_port;
	p->flow.destination_port = w->entry.destination_port;
	p->is_translated = !w->entry.is_back;
	return 0;
}

#endif
