/*
 * The headers that a tunnel puts before a packet: VXLAN (RFC 7348) over IPv4 or IPv6, IPv4 in IPv4 (RFC 2003); included
 * by forward.h, decap.h and tunnel.c.
 *
 * The outer packet is never fragmented. Its TOS or traffic class is the inner one's, ECN included (RFC 6040, normal mode;
 * RFC 2983), so routers on the way see what they would see without a tunnel. Source port and IPv6 flow label are the
 * flow's (RFC 7348 5, RFC 6438). UDP has no checksum, over IPv6 neither (RFC 6935): the inner packet has its own.
 */
#ifndef AM_ENCAP_H
#define AM_ENCAP_H

#include "types.h"
#include "address.h"
#include "packet.h"
#include "parse.h"
#include "csum.h"
#include "fib.h"

#define AM_VXLAN_LEN 30
#define AM_EALREADY 114
#define AM_TUNNEL_PORTS (AM_LAST_TUNNEL_PORT - AM_FIRST_TUNNEL_PORT + 1)

/* UDP, VXLAN, inner Ethernet. */
struct am_vxlan {
	__be16 source_port;
	__be16 port;
	__be16 length;
	u16 check;
	__be32 flags;
	__be32 vni;
	u8 macs[12];
	__be16 type;
};

AM_INLINE u32 am_overhead(const struct am_tunnel *tunnel)
{
	return (tunnel->family == 4 ? 20 : 40) + (tunnel->kind == AM_TUNNEL_VXLAN ? AM_VXLAN_LEN : 0);
}

/* The same for all packets of a flow in one direction, fragments too. */
AM_INLINE u32 am_flow_hash(const struct am_tuple *flow)
{
	const u32 *from = flow->source.word, *to = flow->destination.word;
	u32 hash = (from[0] ^ from[1] ^ from[2] ^ from[3]) * AM_GOLDEN_RATIO;

	hash = (hash ^ hash >> 15 ^ to[0] ^ to[1] ^ to[2] ^ to[3]) * AM_GOLDEN_RATIO;
	hash = (hash ^ hash >> 15 ^ flow->source_port << 16 ^ flow->destination_port) * AM_GOLDEN_RATIO;
	return (hash ^ hash >> 15 ^ flow->protocol) * AM_GOLDEN_RATIO;
}

/*
 * Where the tunnel sends what its route has for next hop (w->fib): IPv4 addresses stand in it, also in IPv6 ones (RFC 5214);
 * of an IPv6 address am_tunnel_peers says. Returns 0 when nobody knows.
 */
AM_INLINE int am_outer_destination(struct am_work *w, const struct am_tunnel *tunnel)
{
	struct bpf_fib_lookup *fib = &w->fib;
	struct am_tunnel_peer *peer;

	if (tunnel->family == 4) {
		am_map4(&w->remote, fib->family == AM_AF_INET ? fib->ipv4_dst : fib->ipv6_dst[3]);
		return 1;
	}
	if (fib->family != AM_AF_INET6)
		return 0;
	__builtin_memcpy(&w->remote, fib->ipv6_dst, 16);
	w->address.address = w->remote;
	peer = am_tunnel_peers.lookup(&w->address);
	if (peer && !am_is_unspecified(&peer->outer) && !am_is_mapped(&peer->outer))
		w->remote = peer->outer;
	return !am_is_link_local(&w->remote);
}

/* MACs of the inner Ethernet header: those of the route's neighbour, else those that are known of the other end. */
AM_INLINE int am_inner_macs(struct am_work *w, const struct am_tunnel *tunnel, u64 has_neighbour)
{
	struct am_tunnel_peer *peer;

	if (has_neighbour) {
		__builtin_memcpy(w->inner_macs, w->fib.dmac, 6);
		__builtin_memcpy(w->inner_macs + 6, w->fib.smac, 6);
		return 1;
	}
	w->address.address = w->remote;
	peer = am_tunnel_peers.lookup(&w->address);
	if (!peer)
		return 0;
	__builtin_memcpy(w->inner_macs, peer->mac, 6);
	__builtin_memcpy(w->inner_macs + 6, tunnel->mac, 6);
	return 1;
}

/* TOS or traffic class. Returns -1 when it cannot be read. */
AM_INLINE int am_read_tos(struct __sk_buff *skb, u8 family)
{
	u8 head[2];

	if (am_read(skb, AM_ETH_LEN, head, 2))
		return -1;
	return family == 4 ? head[1] : (head[0] & 15) << 4 | head[1] >> 4;
}

AM_INLINE __be16 am_outer_source_port(u32 hash)
{
	return bpf_htons(AM_FIRST_TUNNEL_PORT + ((u64)hash * AM_TUNNEL_PORTS >> 32));
}

AM_INLINE void am_put_vxlan(struct am_work *w, struct am_vxlan *vxlan, const struct am_tunnel *tunnel, u32 hash, u32 length)
{
	length += sizeof(*vxlan) - 2;
	vxlan->source_port = am_outer_source_port(hash);
	vxlan->port = bpf_htons(tunnel->port);
	vxlan->length = length > 0xffff ? 0 : bpf_htons(length);
	vxlan->check = 0;
	vxlan->flags = bpf_htonl(0x08000000);
	vxlan->vni = bpf_htonl(tunnel->vni << 8);
	__builtin_memcpy(vxlan->macs, w->inner_macs, 12);
	vxlan->type = w->packet.family == 4 ? AM_ETH_IP : AM_ETH_IP6;
}

/*
 * The outer route of w->remote, into w->fib: by one of several next hops as the flow's hash says it, of IPIP too, whose
 * outer packets have no ports.
 */
AM_INLINE long am_route_outer(struct __sk_buff *skb, struct am_work *w, const struct am_tunnel *tunnel, u32 longest)
{
	w->outer[0] = tunnel->local;
	w->outer[1] = w->remote;
	if (longest)
		longest += am_overhead(tunnel);
	w->flow_hash = am_flow_hash(&w->packet.flow);
	w->outer_ports[0] = am_outer_source_port(w->flow_hash);
	w->outer_ports[1] = bpf_htons(tunnel->port);
	am_ask_route(&w->fib, w->outer, w->outer_ports, tunnel->family, longest > 0xffff ? 0xffff : longest);
	return am_find_next_hop(skb, &w->fib, tunnel->kind == AM_TUNNEL_VXLAN ? AM_UDP : AM_IPIP);
}

/*
 * Makes room for `size` bytes behind the Ethernet header. What the kernel segments later stays as long as it is: the
 * tunnel's MTU was asked for. What was in a tunnel before has its marks still, and keeps them.
 */
AM_INLINE long am_make_room(struct __sk_buff *skb, u32 size, u64 flags)
{
	long error = bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_FIXED_GSO);

	return error == -AM_EALREADY ? bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) : error;
}

AM_INLINE long am_push_ip4(struct __sk_buff *skb, struct am_work *w, const struct am_tunnel *tunnel, u8 tos)
{
	struct am_ip4 *ip = (struct am_ip4 *)w->tunnel_head.room;
	u8 is_vxlan = tunnel->kind == AM_TUNNEL_VXLAN;
	u32 inner = skb->len - AM_ETH_LEN, length = inner + am_overhead(tunnel);
	u64 flags = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

	ip->version_ihl = 0x45;
	ip->tos = tos;
	ip->total = length > 0xffff ? 0 : bpf_htons(length);
	ip->id = 0; /* never a fragment: RFC 6864 */
	ip->frag = bpf_htons(0x4000);
	ip->ttl = AM_TUNNEL_TTL;
	ip->protocol = is_vxlan ? AM_UDP : AM_IPIP;
	ip->check = 0;
	ip->source = tunnel->local.word[3];
	ip->destination = w->remote.word[3];
	ip->check = ~am_csum_fold(am_csum_ip4(ip));
	w->tunnel_head.type = AM_ETH_IP;
	if (!is_vxlan) {
		if (am_make_room(skb, sizeof(*ip), flags))
			return -1;
		return bpf_skb_store_bytes(skb, 0, w->tunnel_head.macs, AM_ETH_LEN + sizeof(*ip), 0);
	}
	am_put_vxlan(w, (struct am_vxlan *)(ip + 1), tunnel, w->flow_hash, inner);
	flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(AM_ETH_LEN);
	if (am_make_room(skb, sizeof(*ip) + AM_VXLAN_LEN, flags))
		return -1;
	return bpf_skb_store_bytes(skb, 0, w->tunnel_head.macs, AM_ETH_LEN + sizeof(*ip) + AM_VXLAN_LEN, 0);
}

AM_INLINE long am_push_ip6(struct __sk_buff *skb, struct am_work *w, const struct am_tunnel *tunnel, u8 tos)
{
	struct am_ip6 *ip = (struct am_ip6 *)w->tunnel_head.room;
	u32 inner = skb->len - AM_ETH_LEN, length = inner + AM_VXLAN_LEN, hash = w->flow_hash;
	u64 flags = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
		    BPF_F_ADJ_ROOM_ENCAP_L2(AM_ETH_LEN);

	ip->version_class = bpf_htonl(0x60000000 | tos << 20 | hash >> 12);
	ip->payload = length > 0xffff ? 0 : bpf_htons(length);
	ip->next = AM_UDP;
	ip->hops = AM_TUNNEL_TTL;
	ip->source = tunnel->local;
	ip->destination = w->remote;
	w->tunnel_head.type = AM_ETH_IP6;
	am_put_vxlan(w, (struct am_vxlan *)(ip + 1), tunnel, hash, inner);
	if (am_make_room(skb, sizeof(*ip) + AM_VXLAN_LEN, flags))
		return -1;
	return bpf_skb_store_bytes(skb, 0, w->tunnel_head.macs, AM_ETH_LEN + sizeof(*ip) + AM_VXLAN_LEN, 0);
}

/*
 * Puts the tunnel's headers before the packet and sends it by the outer route, which stands in w->fib. Whoever calls this
 * has seen that the route is there, with a neighbour or without: that one the kernel asks for, and keeps the packet meanwhile.
 */
AM_INLINE int am_send_outer(struct __sk_buff *skb, struct am_work *w, const struct am_tunnel *tunnel, u64 has_neighbour)
{
	struct bpf_fib_lookup *fib = &w->fib;
	int tos = am_read_tos(skb, w->packet.family);

	if (tos < 0)
		return TC_ACT_SHOT;
	__builtin_memcpy(w->tunnel_head.macs, fib->dmac, 6);
	__builtin_memcpy(w->tunnel_head.macs + 6, fib->smac, 6);
	if (tunnel->family == 4 ? am_push_ip4(skb, w, tunnel, tos) : am_push_ip6(skb, w, tunnel, tos))
		return TC_ACT_SHOT;
	return am_redirect(skb, w, has_neighbour);
}

#endif
