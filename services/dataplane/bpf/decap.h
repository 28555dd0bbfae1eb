/*
 * What arrives in a tunnel: whose packet it is, whether its sender may send what is in it, and the packet without its outer
 * headers; included by uplink.c.
 *
 * By am_tunnel_ends a packet is a tunnel's; by am_tunnel_peers a node's; by am_tunnel_srcs its inner source is that node's.
 * All else is dropped: the other end fragments nothing (DF), has our VNI, and puts no tunnel into a tunnel. ECN is joined as
 * RFC 6040 4.2 has it.
 */
#ifndef AM_DECAP_H
#define AM_DECAP_H

#include "types.h"
#include "packet.h"
#include "parse.h"
#include "encap.h"

#define AM_F_DECAP_IPV4 (1ULL << 7) /* BPF_F_ADJ_ROOM_DECAP_L3_IPV4 of kernel 6.6 */
#define AM_F_DECAP_IPV6 (1ULL << 8)
#define AM_ECN_ECT1 1
#define AM_ECN_ECT0 2
#define AM_ECN_CE 3

AM_INLINE int am_read_outer(struct __sk_buff *skb, struct am_work *w)
{
	struct am_outer *outer = &w->arrived;

	if (w->packet.family == 4) {
		struct am_ip4 *ip = (struct am_ip4 *)w->tunnel_head.room;

		if (am_read(skb, AM_ETH_LEN, ip, sizeof(*ip)))
			return -1;
		outer->l4 = AM_ETH_LEN + (ip->version_ihl & 15) * 4;
		outer->end = ip->total ? AM_ETH_LEN + bpf_ntohs(ip->total) : skb->len;
		outer->protocol = ip->protocol;
		outer->tos = ip->tos;
		outer->is_fragment = (ip->frag & bpf_htons(0x3fff)) != 0;
		return 0;
	}
	struct am_ip6 *ip = (struct am_ip6 *)w->tunnel_head.room;

	if (am_read(skb, AM_ETH_LEN, ip, sizeof(*ip)))
		return -1;
	outer->l4 = AM_ETH_LEN + sizeof(*ip);
	outer->end = ip->payload ? outer->l4 + bpf_ntohs(ip->payload) : skb->len;
	outer->protocol = ip->next;
	outer->tos = bpf_ntohl(ip->version_class) >> 20;
	outer->is_fragment = 0;
	return 0;
}

/* The tunnel that a packet is for, 0 for none. */
AM_INLINE struct am_tunnel_end *am_tunnel_end_of(struct __sk_buff *skb, struct am_work *w)
{
	struct am_tunnel_end_key *key = &w->end_key;
	__be16 *ports = (__be16 *)w->tunnel_head.room;

	__builtin_memset(key, 0, sizeof(*key));
	key->address = w->packet.destination;
	key->protocol = w->arrived.protocol;
	if (key->protocol == AM_UDP) {
		if (am_read(skb, w->arrived.l4, ports, 4))
			return 0;
		key->port = ports[1];
	} else if (key->protocol != AM_IPIP) {
		return 0;
	}
	return am_tunnel_ends.lookup(key);
}

/* The inner packet's Ethernet type, and how many bytes before it go. 0: there is none. */
AM_INLINE __be16 am_inner_type(struct __sk_buff *skb, struct am_work *w, u32 vni)
{
	struct am_vxlan *vxlan = (struct am_vxlan *)w->tunnel_head.room;
	u8 *version = (u8 *)vxlan;

	w->arrived.skip = w->arrived.l4 - AM_ETH_LEN;
	if (w->arrived.protocol == AM_IPIP)
		return am_read(skb, w->arrived.l4, version, 1) || *version >> 4 != 4 ? 0 : AM_ETH_IP;
	w->arrived.skip += AM_VXLAN_LEN;
	/* As the kernel's device: the flag that there is a VNI, and no other. */
	if (am_read(skb, w->arrived.l4, vxlan, AM_VXLAN_LEN) || vxlan->flags != bpf_htonl(0x08000000) ||
	    vxlan->vni != bpf_htonl(vni << 8))
		return 0;
	return vxlan->type == AM_ETH_IP || vxlan->type == AM_ETH_IP6 ? vxlan->type : 0;
}

/*
 * The inner packet's ECN field, given the outer one's (RFC 6040, figure 4), of which Not-ECT and ECT(0) change nothing.
 * Nonzero: it must be dropped.
 */
AM_INLINE int am_join_ecn(struct __sk_buff *skb, u8 family, u8 outer)
{
	u8 inner, becomes, octet;
	int tos;

	if (!(outer & AM_ECN_ECT1)) /* CE has this bit, too */
		return 0;
	tos = am_read_tos(skb, family);
	if (tos < 0)
		return -1;
	becomes = inner = tos & 3;
	if (outer == AM_ECN_CE) {
		if (!inner)
			return -1;
		becomes = AM_ECN_CE;
	} else if (inner == AM_ECN_ECT0) {
		becomes = AM_ECN_ECT1;
	}
	if (becomes == inner)
		return 0;
	octet = tos ^ inner ^ becomes;
	if (family == 4) {
		if (bpf_l3_csum_replace(skb, AM_ETH_LEN + 10, bpf_htons(tos), bpf_htons(octet), 2))
			return -1;
		return bpf_skb_store_bytes(skb, AM_ETH_LEN + 1, &octet, 1, 0);
	}
	if (am_read(skb, AM_ETH_LEN + 1, &octet, 1))
		return -1;
	octet = (octet & 0xcf) | becomes << 4;
	return bpf_skb_store_bytes(skb, AM_ETH_LEN + 1, &octet, 1, BPF_F_RECOMPUTE_CSUM);
}

/* Is the source of the packet inside that of the node which sent it? */
AM_INLINE int am_may_send(struct am_work *w)
{
	struct am_tunnel_source *source;

	w->prefix.prefixlen = AM_ADDRESS_BITS;
	w->prefix.address = w->packet.source;
	source = am_tunnel_srcs.lookup(&w->prefix);
	return source && source->node == w->arrived.node;
}

/* Finds out whose packet of a tunnel it is, and what is in it. Returns an AM_REASON_*, 0: w->arrived says it. */
AM_INLINE u32 am_check_outer(struct __sk_buff *skb, struct am_work *w, const struct am_tunnel_end *end)
{
	struct am_tunnel_peer *peer;

	if (w->arrived.is_fragment)
		return AM_REASON_TUNNEL_MALFORMED;
	w->address.address = w->packet.source;
	peer = am_tunnel_peers.lookup(&w->address);
	if (!peer)
		return AM_REASON_TUNNEL_PEER;
	w->arrived.node = peer->node;
	w->arrived.ifindex = end->ifindex;
	w->arrived.type = am_inner_type(skb, w, end->vni);
	return !w->arrived.type || w->arrived.end > skb->len ? AM_REASON_TUNNEL_MALFORMED : 0;
}

/* Takes the outer headers away. Nonzero when there is too little behind them. */
AM_INLINE long am_pop_outer(struct __sk_buff *skb, struct am_work *w)
{
	u8 is6 = w->arrived.type == AM_ETH_IP6;
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (is6 == (w->packet.family == 6)) /* the Ethernet type is right as it is */
		return bpf_skb_adjust_room(skb, -(int)w->arrived.skip, BPF_ADJ_ROOM_MAC, flags);
	flags |= is6 ? AM_F_DECAP_IPV6 : AM_F_DECAP_IPV4; /* older kernels know nothing of these flags */
	if (bpf_skb_adjust_room(skb, -(int)w->arrived.skip, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	return bpf_skb_store_bytes(skb, 12, &w->arrived.type, 2, 0);
}

/*
 * Takes the packet of a tunnel out of it: p and skb are then the inner packet, and p->tunnel is the device. Others stay as
 * they are. Returns an AM_REASON_* to drop it for, 0 for none.
 */
AM_INLINE u32 am_decapsulate(struct __sk_buff *skb, struct am_packet *p)
{
	struct am_work *w = am_work_of(p);
	struct am_tunnel_end *end;
	u32 reason, last;

	if (skb->pkt_type || am_read_outer(skb, w))
		return 0;
	end = am_tunnel_end_of(skb, w);
	if (!end)
		return 0;
	reason = am_opaque(p, am_check_outer(skb, w, end));
	if (reason)
		return reason;
	if (am_pop_outer(skb, w))
		return AM_REASON_TUNNEL_MALFORMED;
	__builtin_memset(p, 0, sizeof(*p));
	p->tunnel = w->arrived.ifindex;
	if (am_opaque(p, am_parse_addresses(skb, p, w->arrived.type)))
		return AM_REASON_TUNNEL_MALFORMED;
	if (!am_may_send(w))
		return AM_REASON_TUNNEL_SOURCE;
	if (am_opaque(p, am_join_ecn(skb, p->family, w->arrived.tos & 3)))
		return AM_REASON_TUNNEL_MALFORMED;
	/* No tunnel in a tunnel, and no byte that the outer packet did not have. */
	last = w->arrived.end - w->arrived.skip;
	if (am_read_outer(skb, w) || w->arrived.end > last || am_tunnel_end_of(skb, w))
		return AM_REASON_TUNNEL_MALFORMED;
	return 0;
}

#endif
