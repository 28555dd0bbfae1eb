/*
 * Source address validation (RFC 2827) by the interface that a packet comes by; included by arrival.h, pod.c, uplink.c
 * and tunnel.c.
 *
 * A pod speaks in its own name only. And nobody else speaks in a name of the cluster but where it can come from: a pod
 * of this node by its link, the node itself by none, pods and nodes elsewhere by what am_uplinks names. Any other
 * interface brings the world alone. What rp_filter says or does is of no account.
 */
#ifndef AM_SPOOF_H
#define AM_SPOOF_H

#include "types.h"
#include "address.h"
#include "packet.h"
#include "endpoint.h"
#include "ipcache.h"

/* What a pod may say: in its own name, and of errors only those about what was sent to it. */
AM_INLINE u32 am_check_source(const struct am_packet *p, const struct am_link *link)
{
	if (!am_has_address(link, &p->source))
		return AM_REASON_SPOOFED_ADDRESS;
	if (!p->is_error)
		return 0;
	return p->inner_l4 && am_same_addr(&p->flow.source, &p->source) ? 0 : AM_REASON_SPOOFED_ERROR;
}

/* What only a neighbour or a router on the same link may say: nobody else on a pod's link but the node itself. */
AM_INLINE u32 am_check_scope(const struct am_packet *p)
{
	if (p->family == 4)
		return p->protocol == AM_ICMP && p->icmp_type == 5 ? AM_REASON_SPOOFED_NEIGHBOUR : 0;
	if (am_is_link_local(&p->source))
		return AM_REASON_SPOOFED_ADDRESS;
	return p->protocol == AM_ICMP6 && p->icmp_type >= 133 && p->icmp_type <= 137 ? AM_REASON_SPOOFED_NEIGHBOUR : 0;
}

/*
 * May what the stack hands to a pod have its source, coming by the interface that it came by? Sets role->is_outer where
 * that may be anybody who is not here (am_is_spoofed).
 */
AM_INLINE u32 am_check_interface(const struct am_packet *p, u32 from, struct am_role *role)
{
	struct am_link_key key = { .ifindex = from };
	struct am_uplink *uplink = am_uplinks.lookup(&key);
	struct am_link *link;

	if (uplink) {
		role->is_outer = !(uplink->flags & AM_UPLINK_LOCAL);
		return 0;
	}
	link = am_links.lookup(&key);
	if (link ? am_has_address(link, &p->source) : !am_is_in_cluster(&p->source))
		return 0;
	return AM_REASON_SPOOFED_ADDRESS;
}

/*
 * An orphan fragment (am_is_orphan_fragment) may be anybody's: those of the cluster reach no pod by it. Their own way to
 * one is the fast path.
 */
AM_INLINE u32 am_check_orphan_fragment(const struct am_packet *p)
{
	u32 flags;

	am_identity_of(&p->destination, &flags);
	return flags & AM_IPCACHE_POD && am_is_in_cluster(&p->source) ? AM_REASON_SPOOFED_ADDRESS : 0;
}

/*
 * May what the stack forwards leave by an uplink, where the other end believes its source? Of a pod here and of another
 * uplink it was judged as it came. The node's own address is what the stack's translation gives to anybody (containers
 * that are no pods), so that is kept from pods only.
 */
AM_INLINE u32 am_check_forwarded(const struct am_packet *p)
{
	u64 whose;
	u32 flags;

	if (am_local_endpoint(&p->source))
		return AM_REASON_SPOOFED_ADDRESS;
	whose = am_identity_of(&p->source, &flags);
	if (whose == AM_IDENTITY_WORLD)
		return 0;
	if (whose == AM_IDENTITY_HOST) {
		am_identity_of(&p->destination, &flags);
		if (!(flags & AM_IPCACHE_POD))
			return 0;
	}
	return AM_REASON_SPOOFED_ADDRESS;
}

/* An interface whose packets were judged as they came. */
AM_INLINE int am_is_known_way(struct am_link_key *from)
{
	return am_links.lookup(from) || am_uplinks.lookup(from) || am_tunnels.lookup(from);
}

/*
 * Would it leave in the clear what must be encrypted: a packet for another node's pod, or of a pod here for another node?
 * The outer packets of tunnels go from node to node. API servers are none of these: they need not have any tunnel.
 */
AM_INLINE int am_leaks(const struct am_packet *p, u32 switches)
{
	u64 whose;
	u32 flags;

	if (!(switches & (p->family == 4 ? AM_CONFIG_ENCRYPT4 : AM_CONFIG_ENCRYPT6)))
		return 0;
	whose = am_identity_of(&p->destination, &flags);
	if (flags & AM_IPCACHE_POD)
		return !am_local_endpoint(&p->destination);
	return whose == AM_IDENTITY_REMOTE_NODE && am_local_endpoint(&p->source);
}

/*
 * A fragment that no interface brought and no socket sent. IPv6's stack fragments again what it forwards when conntrack
 * has put it together, and the pieces forget where they came from (ip6_copy_metadata); of what a node sends itself each has its
 * socket.
 */
AM_INLINE int am_is_orphan_fragment(const struct __sk_buff *skb, const struct am_packet *p)
{
	return !skb->ingress_ifindex && p->is_fragment && !skb->sk;
}

#endif
