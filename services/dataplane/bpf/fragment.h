/*
 * The ports of fragmented packets (am_frags): a first fragment leaves them for those after it; included by arrival.h,
 * pod.c, uplink.c and tunnel.c.
 */
#ifndef AM_FRAGMENT_H
#define AM_FRAGMENT_H

#include "types.h"
#include "address.h"
#include "packet.h"

/*
 * Where the ports of a fragmented packet are kept: a place among the few that its sender has on the link it comes by. So
 * whoever sends first fragments without end overwrites its own; on an uplink, a few places of who shares its hash.
 */
AM_INLINE u32 am_fragment_slot(const struct am_packet *p)
{
	const u32 *from = p->source.word, *to = p->destination.word;
	u32 sender = (from[0] ^ from[1] ^ from[2] ^ from[3]) * AM_GOLDEN_RATIO;
	u32 packet = (sender ^ p->fragment ^ to[0] ^ to[1] ^ to[2] ^ to[3]) * AM_GOLDEN_RATIO;

	/* By the upper bits: what differs in the upper byte alone, as addresses do, leaves the lower ones as they are. */
	return ((u64)sender * AM_FRAGMENT_SENDERS >> 32) * AM_FRAGMENTS_EACH + ((u64)packet * AM_FRAGMENTS_EACH >> 32);
}

/*
 * The first fragment leaves its ports for those after it; without it they are nobody's. `link` is where the packet came
 * from: an interface, 0 for this node itself.
 */
AM_INLINE u32 am_fragment_ports(struct am_packet *p, u32 link)
{
	struct am_fragment_key key = { .link = link };
	struct am_fragment *first;

	if (!p->is_fragment)
		return 0;
	key.slot = am_fragment_slot(p);
	if (p->is_first) {
		struct am_fragment own = {
			.source = p->source,
			.destination = p->destination,
			.identification = p->fragment,
			.source_port = p->flow.source_port,
			.destination_port = p->flow.destination_port,
			.protocol = p->protocol,
		};

		am_frags.update(&key, &own);
		return 0;
	}
	first = am_frags.lookup(&key);
	/* IPv6 knows a packet by its addresses and number alone: headers may stand between. */
	if (!first || first->identification != p->fragment || !am_same_addr(&first->source, &p->source) ||
	    !am_same_addr(&first->destination, &p->destination) || (p->family == 4 && first->protocol != p->protocol))
		return AM_REASON_FRAGMENT;
	p->flow.source_port = first->source_port;
	p->flow.destination_port = first->destination_port;
	p->protocol = first->protocol;
	p->flow.protocol = p->protocol;
	return 0;
}

#endif
