/*
 * Forwarding by the kernel's routing table (bpf_fib_lookup): out by the fast path, or up to the node's stack; included
 * by pod.c and uplink.c.
 *
 * That table is the one truth of where packets go; whatever it does not answer with a plain success (no neighbour yet,
 * too big, unreachable, expired) is the stack's to deal with, ICMP errors included.
 */
#ifndef AM_FIB_H
#define AM_FIB_H

#include "types.h"
#include "packet.h"
#include "parse.h"
#include "drop.h"

/* As the kernel has it: bcc 0.26 declares it without the length. */
static long (*am_redirect_neigh)(u32 ifindex, struct bpf_redir_neigh *hop, int length, u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* The Ethernet header, and the IP header as far as a hop changes it: to IPv6's limit, to IPv4's checksum. */
struct am_frame_head {
	u8 macs[12];
	__be16 type;
	u8 ip[7];
	u8 hops6;
	u8 hops4;
	u8 protocol4;
	__be16 check4;
};

/* One hop less to live (the checksum as in RFC 1624; IPv6 has none over it), and other MACs unless 0: one write. */
AM_INLINE int am_decrement_ttl(struct __sk_buff *skb, const struct am_packet *p, const struct bpf_fib_lookup *next)
{
	struct am_frame_head *head = (struct am_frame_head *)am_work_of(p)->frame_head;
	u32 check;

	if (am_read(skb, 0, head, sizeof(*head)))
		return -1;
	if (next) {
		__builtin_memcpy(head->macs, next->dmac, 6);
		__builtin_memcpy(head->macs + 6, next->smac, 6);
	}
	if (p->family == 6) {
		head->hops6--;
	} else {
		head->hops4--;
		check = head->check4 + bpf_htons(0x0100);
		head->check4 = check + (check >= 0xffff);
	}
	return bpf_skb_store_bytes(skb, 0, head, sizeof(*head), 0);
}

/* No route has a smaller MTU: `routing` writes none below 1280, less what a model adds. */
#define AM_FITS_ANY_ROUTE 1024

/*
 * The longest IP packet that it becomes on the wire; 0 where that fits any route: to look for the route's MTU takes the
 * kernel 30 ns of 500 (IPv4), 50 of 700 (IPv6). Of a GSO packet it is a segment: gso_size counts what follows the transport
 * header, of which all but TCP's has 8 bytes here (SCTP's says 65535 and is the stack's to measure). No more than the 16
 * bits that the look-up takes.
 */
AM_INLINE u32 am_longest_on_wire(const struct __sk_buff *skb, const struct am_packet *p)
{
	u32 length = skb->len - AM_ETH_LEN, segment = skb->gso_size;

	if (segment)
		length = p->l4 - AM_ETH_LEN + (p->protocol == AM_TCP ? p->l4_len - p->payload : 8) + segment;
	if (length <= AM_FITS_ANY_ROUTE)
		return 0;
	return length > 0xffff ? 0xffff : length;
}

/*
 * With a length in tot_len the helper compares it with the route's MTU (a locked one: what both nodes take, as `routing`
 * has written it) or else the interface's. Without one it compares with the interface's alone, and no GSO packet.
 */
AM_INLINE long am_fib_lookup(struct __sk_buff *skb, const struct am_packet *p, struct bpf_fib_lookup *fib)
{
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = p->protocol;
	if (p->family == 4) {
		fib->family = AM_AF_INET;
		fib->ipv4_src = p->source.word[3];
		fib->ipv4_dst = p->destination.word[3];
	} else {
		fib->family = AM_AF_INET6;
		__builtin_memcpy(fib->ipv6_src, &p->source, 16);
		__builtin_memcpy(fib->ipv6_dst, &p->destination, 16);
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

AM_INLINE int am_redirect_out(struct __sk_buff *skb, const struct am_packet *p, struct bpf_fib_lookup *fib)
{
	if (am_decrement_ttl(skb, p, fib))
		return TC_ACT_SHOT;
	return bpf_redirect(fib->ifindex, 0);
}

/*
 * To a pod of another node. What is longer than the pair of nodes takes is the stack's: it fragments, or tells the pod
 * how long a packet may be.
 */
AM_INLINE int am_forward_to_pod(struct __sk_buff *skb, const struct am_packet *p)
{
	struct bpf_fib_lookup *fib = &am_work_of(p)->fib;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->tot_len = am_longest_on_wire(skb, p);
	if (p->ttl <= 1 || am_fib_lookup(skb, p, fib) != BPF_FIB_LKUP_RET_SUCCESS)
		return TC_ACT_OK;
	return am_redirect_out(skb, p, fib);
}

/*
 * A translated packet, out by the uplink. Never up to the stack: its source may be this node's own address, which the
 * stack would take for a forgery. A neighbour that is not known yet is asked for by the kernel, which keeps the packet.
 */
AM_INLINE int am_forward_translated(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role)
{
	struct bpf_fib_lookup *fib = &am_work_of(p)->fib;
	struct bpf_redir_neigh *hop = &am_work_of(p)->hop;
	long found;

	__builtin_memset(fib, 0, sizeof(*fib));
	__builtin_memset(hop, 0, sizeof(*hop));
	if (p->ttl <= 1)
		return am_refuse(skb, p, role, AM_REASON_TTL_EXCEEDED);
	found = am_fib_lookup(skb, p, fib);
	if (found == BPF_FIB_LKUP_RET_SUCCESS)
		return am_redirect_out(skb, p, fib);
	if (found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return am_refuse(skb, p, role, AM_REASON_NO_ROUTE);
	hop->nh_family = fib->family;
	__builtin_memcpy(hop->ipv6_nh, fib->ipv6_dst, 16); /* a union with the IPv4 ones in both */
	if (am_decrement_ttl(skb, p, 0))
		return TC_ACT_SHOT;
	return am_redirect_neigh(fib->ifindex, hop, sizeof(*hop), 0);
}

#endif
