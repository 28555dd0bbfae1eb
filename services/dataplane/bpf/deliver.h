/*
 * Where a packet that may pass goes: into a local pod, out by the fast path, or up to the node's stack.
 *
 * The kernel's routing table is the one truth of where packets go (bpf_fib_lookup); whatever it does not answer with a
 * plain success (no neighbour yet, too big, unreachable, expired) is the stack's to deal with, ICMP errors included.
 */
#ifndef AM_DELIVER_H
#define AM_DELIVER_H

/* Into the pod's namespace, past its host veth: whoever calls this has judged the pod's ingress. */
AM_INLINE int am_deliver(struct __sk_buff *skb, struct am_endpoint *endpoint)
{
	u8 macs[12];

	__builtin_memcpy(macs, endpoint->mac, 6);
	__builtin_memcpy(macs + 6, endpoint->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

/* One hop less to live. IPv6 has no checksum over it. */
AM_INLINE int am_decrement_ttl(struct __sk_buff *skb, const struct am_packet *p)
{
	u8 ttl = p->ttl - 1;

	if (p->family == 6)
		return bpf_skb_store_bytes(skb, AM_ETH_LEN + 7, &ttl, 1, 0);
	if (bpf_l3_csum_replace(skb, AM_ETH_LEN + 10, bpf_htons(p->ttl << 8), bpf_htons(ttl << 8), 2))
		return -1;
	return bpf_skb_store_bytes(skb, AM_ETH_LEN + 8, &ttl, 1, 0);
}

/* To a pod of another node. */
AM_INLINE int am_route(struct __sk_buff *skb, const struct am_packet *p)
{
	struct bpf_fib_lookup fib = {};
	u8 macs[12];

	fib.ifindex = skb->ifindex;
	fib.l4_protocol = p->protocol;
	/* tot_len stays 0: the helper then measures the packet against the link itself, segments of a GSO one apart. */
	if (p->family == 4) {
		fib.family = AM_AF_INET;
		fib.ipv4_src = p->source.word[3];
		fib.ipv4_dst = p->destination.word[3];
	} else {
		fib.family = AM_AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->source, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->destination, 16);
	}
	if (p->ttl <= 1 || bpf_fib_lookup(skb, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return TC_ACT_OK;
	__builtin_memcpy(macs, fib.dmac, 6);
	__builtin_memcpy(macs + 6, fib.smac, 6);
	if (am_decrement_ttl(skb, p) || bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(fib.ifindex, 0);
}

#endif
