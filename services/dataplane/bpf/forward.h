/*
 * The fast path out of the node: by the kernel's routing table straight to the uplink, into a tunnel, or up to the node's
 * stack; included by arrival.h and pod.c.
 *
 * That table is the one truth of where packets go: a route by a tunnel's device (am_tunnels) means that tunnel. Whatever it
 * does not answer with a plain success (no neighbour yet, too big, unreachable, expired) is the stack's to deal with, ICMP
 * errors included. A translated packet never goes there: its source may be this node's own address, which the stack
 * would take for a forgery. Its neighbour is asked for by the kernel, its sender gets an error from here.
 */
#ifndef AM_FORWARD_H
#define AM_FORWARD_H

#include "types.h"
#include "packet.h"
#include "endpoint.h"
#include "ipcache.h"
#include "drop.h"
#include "fib.h"
#include "rewrite.h"
#include "answer.h"
#include "encap.h"

#define AM_WAY_POD 0 /* to a pod of another node */
#define AM_WAY_NODE 1 /* to another node's own address: the way that its pods' packets go, if that is a tunnel */
#define AM_WAY_TRANSLATED 2 /* to where struct am_work says, as what it says */

/*
 * Asks where the packet goes: w->fib is the answer. What is longer than the pair of nodes takes is the stack's: it
 * fragments, or tells the pod how long a packet may be.
 */
AM_INLINE long am_find_way(struct __sk_buff *skb, const struct am_packet *p, u64 way)
{
	struct am_work *w = am_work_of(p);
	struct bpf_fib_lookup *fib = &w->fib;
	struct am_tunnel_peer *peer;
	u32 mtu = 0;

	w->longest = am_longest_on_wire(skb, p);
	if (way != AM_WAY_NODE) {
		am_ask_route(fib, way == AM_WAY_POD ? &p->source : &w->entry.source,
			     way == AM_WAY_POD ? &p->flow.source_port : &w->entry.source_port, p->family, w->longest);
		return am_find_next_hop(skb, fib, p->protocol);
	}
	w->address.address = p->destination;
	peer = am_tunnel_peers.lookup(&w->address);
	if (!peer)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	fib->ifindex = peer->ifindex;
	w->remote = peer->outer;
	if (!bpf_check_mtu(skb, peer->ifindex, &mtu, 0, BPF_MTU_CHK_SEGS))
		return BPF_FIB_LKUP_RET_NO_NEIGH;
	fib->mtu_result = mtu;
	return BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

/* Must it be encrypted on its way to another node? An API server's machine need not be one (am_leaks). */
AM_INLINE int am_must_encrypt(const struct am_packet *p, u64 way, u32 switches)
{
	const struct am_addr *translated = &am_work_of(p)->entry.destination;
	u32 flags;

	if (!(switches & (p->family == 4 ? AM_CONFIG_ENCRYPT4 : AM_CONFIG_ENCRYPT6)))
		return 0;
	switch (way) {
	case AM_WAY_POD:
		return 1;
	case AM_WAY_NODE:
		return am_identity_of(&p->destination, &flags) == AM_IDENTITY_REMOTE_NODE;
	}
	am_identity_of(translated, &flags);
	return flags & AM_IPCACHE_POD && !am_local_endpoint(translated);
}

/* The way of the outer packet, into w->fib. */
AM_INLINE long am_find_outer(struct __sk_buff *skb, struct am_work *w, const struct am_tunnel *tunnel, u64 way, u64 has_neighbour)
{
	if (way != AM_WAY_NODE && !am_outer_destination(w, tunnel))
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	if (tunnel->kind == AM_TUNNEL_VXLAN && !am_inner_macs(w, tunnel, has_neighbour))
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	return am_route_outer(skb, w, tunnel, w->longest);
}

/* Sends a packet into a tunnel. Everything is looked up before the packet is changed. */
AM_INLINE int am_forward_tunnel(struct __sk_buff *skb, struct am_packet *p, const struct am_role *role, const struct am_tunnel *tunnel, u64 way, u64 has_neighbour)
{
	struct am_work *w = am_work_of(p);
	u64 found = BPF_FIB_LKUP_RET_SUCCESS;
	u32 ifindex = w->fib.ifindex;

	if (tunnel->kind != AM_TUNNEL_WIREGUARD) {
		found = am_opaque(p, am_find_outer(skb, w, tunnel, way, has_neighbour));
		if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
			return am_answer_too_big(skb, p, role, w->fib.mtu_result - am_overhead(tunnel));
		if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
			return way == AM_WAY_POD ? TC_ACT_OK : am_refuse(skb, p, role, AM_REASON_NO_ROUTE);
	}
	found = am_opaque(p, found);
	if (way == AM_WAY_TRANSLATED && am_rewrite(skb, p, w))
		return TC_ACT_SHOT;
	if (am_decrement_ttl(skb, p, 0))
		return TC_ACT_SHOT;
	if (tunnel->kind == AM_TUNNEL_WIREGUARD)
		return bpf_redirect(ifindex, 0);
	return am_send_outer(skb, w, tunnel, found == BPF_FIB_LKUP_RET_SUCCESS);
}

/* Sends a packet as it is, or as its translation has it. */
AM_INLINE int am_forward_plain(struct __sk_buff *skb, struct am_packet *p, u64 way, u64 has_neighbour)
{
	struct am_work *w = am_work_of(p);

	if (way == AM_WAY_TRANSLATED && am_rewrite(skb, p, w))
		return TC_ACT_SHOT;
	if (am_decrement_ttl(skb, p, &w->fib))
		return TC_ACT_SHOT;
	return am_redirect(skb, w, has_neighbour);
}

/* Sends a packet on its way out of the node. A translated one is not yet rewritten. */
AM_INLINE int am_forward(struct __sk_buff *skb, struct am_packet *p, const struct am_role *role, u64 way)
{
	struct am_work *w = am_work_of(p);
	struct am_tunnel *tunnel = 0;
	u32 switches = am_opaque(p, am_switches());
	u64 found, has_neighbour;

	way = am_opaque(p, way);
	if (p->ttl <= 1)
		return way == AM_WAY_TRANSLATED ? am_refuse(skb, p, role, AM_REASON_TTL_EXCEEDED) : TC_ACT_OK;
	found = am_opaque(p, am_find_way(skb, p, way));
	has_neighbour = am_opaque(p, found == BPF_FIB_LKUP_RET_SUCCESS);
	switch (found) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return way == AM_WAY_POD ? TC_ACT_OK : am_answer_too_big(skb, p, role, w->fib.mtu_result);
	case BPF_FIB_LKUP_RET_PROHIBIT: /* what `routing` puts where only encrypted packets may go */
		return am_refuse(skb, p, role, AM_REASON_UNENCRYPTED);
	default:
		return way == AM_WAY_TRANSLATED ? am_refuse(skb, p, role, AM_REASON_NO_ROUTE) : TC_ACT_OK;
	}
	if (switches & AM_CONFIG_TUNNELS) {
		w->device.ifindex = w->fib.ifindex;
		tunnel = am_tunnels.lookup(&w->device);
	}
	if (am_must_encrypt(p, way, switches) && !(tunnel && tunnel->kind == AM_TUNNEL_WIREGUARD))
		return am_refuse(skb, p, role, AM_REASON_UNENCRYPTED);
	if (tunnel)
		return am_forward_tunnel(skb, p, role, tunnel, way, has_neighbour);
	if (!has_neighbour && way != AM_WAY_TRANSLATED)
		return TC_ACT_OK;
	return am_forward_plain(skb, p, way, has_neighbour);
}

#endif
