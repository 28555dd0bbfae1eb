/*
 * The kernel's routing table (bpf_fib_lookup), and what a packet is on the wire: its length, its hops left; included by
 * encap.h, forward.h and tunnel.c.
 *
 * The table is asked once a flow and tick of the kernel's clock (am_next_hops): nobody tells a program of a change, so what
 * is known is not believed any longer than that, 1 to 10 ms. Only a way is kept, no refusal. The question is kept whole
 * beside it, so a flow's packets are spread over next hops as if each had asked.
 */
#ifndef AM_FIB_H
#define AM_FIB_H

#include "types.h"
#include "packet.h"
#include "parse.h"

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
 * Fills the question: where do packets from pair[0] to pair[1] go, of ports[0] to ports[1], which are `longest` at most (am_longest_on_wire)? Of
 * several next hops the kernel takes one by a hash over addresses, protocol and ports (fib_multipath_hash_policy), the
 * same as its stack takes for the flow's packets.
 */
AM_INLINE void am_ask_route(struct bpf_fib_lookup *fib, const struct am_addr *pair, const __be16 *ports, u8 family, u32 longest)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->tot_len = longest;
	fib->sport = ports[0];
	fib->dport = ports[1];
	if (family == 4) {
		fib->family = AM_AF_INET;
		fib->ipv4_src = pair[0].word[3];
		fib->ipv4_dst = pair[1].word[3];
	} else {
		fib->family = AM_AF_INET6;
		__builtin_memcpy(fib->ipv6_src, &pair[0], 32); /* both */
	}
}

/*
 * With a length in tot_len the helper compares it with the route's MTU (a locked one: what both nodes take, as `routing`
 * has written it) or else the interface's. Without one it compares with the interface's alone, and no GSO packet.
 */
AM_INLINE long am_fib_lookup(struct __sk_buff *skb, struct bpf_fib_lookup *fib, u8 protocol, u32 flags)
{
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = protocol;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), flags);
}

/* What is remembered of a question: all of it, and what is filled in for it. `word`: tick << 8 | what the helper returned. */
struct am_known_hop {
	u64 word;
	struct bpf_fib_lookup asked;
	struct bpf_fib_lookup found;
};
_Static_assert(sizeof(struct am_known_hop) == sizeof(struct am_next_hop), "core/layout.py says how large");

/* Is it the same question, about a packet that is no longer? All that is asked stands in the first six words. */
AM_INLINE int am_is_asked(const struct bpf_fib_lookup *asked, const struct bpf_fib_lookup *fib)
{
	const u64 *one = (const u64 *)asked, *other = (const u64 *)fib;
	u64 differs = (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]) | (one[4] ^ other[4]) | (one[5] ^ other[5]);

	return !(differs | (*(const u32 *)asked ^ *(const u32 *)fib) | (asked->dport ^ fib->dport)) && asked->tot_len >= fib->tot_len;
}

/* As am_fib_lookup, of the way that a packet is forwarded. */
AM_INLINE long am_find_next_hop(struct __sk_buff *skb, struct bpf_fib_lookup *fib, u8 protocol)
{
	const u32 *from = fib->ipv6_src, *to = fib->ipv6_dst;
	u32 index = from[0] ^ from[3] ^ to[0] ^ to[3] ^ fib->sport ^ fib->dport << 16;
	u64 tick = bpf_jiffies64();
	struct am_known_hop *known;
	long found;

	index = index * AM_GOLDEN_RATIO / (0x100000000ULL / AM_NEXT_HOP_SLOTS);
	known = (struct am_known_hop *)am_next_hops.lookup(&index);
	if (!known)
		return am_fib_lookup(skb, fib, protocol, 0);
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = protocol;
	if (known->word >> 8 == tick && am_is_asked(&known->asked, fib)) {
		__builtin_memcpy(fib, &known->found, sizeof(*fib));
		return known->word & 0xff;
	}
	known->word = 0;
	__builtin_memcpy(&known->asked, fib, sizeof(*fib));
	found = am_fib_lookup(skb, fib, protocol, 0);
	if (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) {
		__builtin_memcpy(&known->found, fib, sizeof(*fib));
		known->word = tick << 8 | found;
	}
	return found;
}

/* Sends a packet, whole but for MAC addresses that are not known, where the route in w->fib leads. */
AM_INLINE int am_redirect(struct __sk_buff *skb, struct am_work *w, u64 has_neighbour)
{
	struct bpf_fib_lookup *fib = &w->fib;
	struct bpf_redir_neigh *hop = &w->hop;

	skb->mark = AM_SENT_MARK;
	if (has_neighbour)
		return bpf_redirect(fib->ifindex, 0);
	__builtin_memset(hop, 0, sizeof(*hop));
	hop->nh_family = fib->family;
	__builtin_memcpy(hop->ipv6_nh, fib->ipv6_dst, 16); /* a union with the IPv4 ones in both */
	return am_redirect_neigh(fib->ifindex, hop, sizeof(*hop), 0);
}

#endif
