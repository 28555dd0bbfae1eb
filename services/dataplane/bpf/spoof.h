/*
 * A pod speaks in its own name only: its MAC, its addresses, its own neighbour entries; it is no router.
 *
 * Neighbours are permanent on both sides of a pod's link, so ARP and neighbour discovery are hardly needed; what a pod's
 * stack still sends by itself is either harmless (and goes up to the node) or dropped.
 *
 * And nobody else speaks in a name of the cluster but where it can come from: a pod of this node by its link, the node
 * itself by none, pods and nodes elsewhere by what am_uplinks names. Any other interface brings the world alone. What
 * rp_filter says or does is of no account.
 */
#ifndef AM_SPOOF_H
#define AM_SPOOF_H

/* Not a reason: dropped and counted, but not told. What every IPv6 stack sends when a link comes up. */
#define AM_CHATTER 0x100

struct am_eth {
	u8 destination[6];
	u8 source[6];
	__be16 type;
};

struct am_arp {
	__be16 hardware;
	__be16 protocol;
	u8 hardware_len;
	u8 protocol_len;
	__be16 operation;
	u8 sender_mac[6];
	u8 sender[4];
	u8 target_mac[6];
	u8 target[4];
};

AM_INLINE int am_same_mac(const u8 *a, const u8 *b)
{
	return *(u16 *)a == *(u16 *)b && *(u16 *)(a + 2) == *(u16 *)(b + 2) && *(u16 *)(a + 4) == *(u16 *)(b + 4);
}

AM_INLINE u32 am_check_arp(struct __sk_buff *skb, const struct am_link *link)
{
	struct am_arp arp = {};
	struct am_addr sender = {};

	if (bpf_skb_load_bytes(skb, AM_ETH_LEN, &arp, sizeof(arp)))
		return AM_REASON_MALFORMED;
	if (arp.hardware != bpf_htons(1) || arp.protocol != AM_ETH_IP || arp.hardware_len != 6 || arp.protocol_len != 4)
		return AM_REASON_MALFORMED;
	am_map4(&sender, *(u32 *)arp.sender);
	if (!am_same_mac(arp.sender_mac, link->mac) || !am_same_addr(&sender, &link->address4))
		return AM_REASON_SPOOFED_NEIGHBOUR;
	return 0;
}

/* The source is one of the link's own. A link without a family has zeros there, which no packet may claim. */
AM_INLINE int am_owns(const struct am_link *link, const struct am_addr *address)
{
	if (am_no_addr(address))
		return 0;
	return am_same_addr(address, &link->address4) || am_same_addr(address, &link->address6);
}

struct am_neighbour {
	u8 type;
	u8 code;
	u16 check;
	u32 flags;
	struct am_addr target;
};

/* ff02::1:ff00:1, where neighbours of fe80::1 are asked for */
AM_INLINE int am_is_gateway6_group(const struct am_addr *a)
{
	return a->word[0] == bpf_htonl(0xff020000) && !a->word[1] && a->word[2] == bpf_htonl(1) &&
	       a->word[3] == bpf_htonl(0xff000001);
}

/* Neighbour solicitation and advertisement (RFC 4861): about the gateway, or about the pod itself. */
AM_INLINE u32 am_check_neighbour(struct __sk_buff *skb, const struct am_packet *p, const struct am_link *link)
{
	struct am_neighbour n = {};
	u8 option[8] = {};
	u32 flags;

	if (p->ttl != 255 || p->is_fragment || bpf_skb_load_bytes(skb, p->l4, &n, sizeof(n)))
		return AM_REASON_SPOOFED_NEIGHBOUR;
	if (!am_owns(link, &p->source) && !am_is_link_local(&p->source))
		/* :: asks whether an address is free before taking it; ours are given, not taken. */
		return am_no_addr(&p->source) ? AM_CHATTER : AM_REASON_SPOOFED_ADDRESS;
	if (p->icmp_type == 135) {
		if (!am_is_gateway6(&n.target))
			return AM_REASON_SPOOFED_NEIGHBOUR;
	} else if (!am_owns(link, &n.target) && !(am_is_link_local(&n.target) && am_same_addr(&n.target, &p->source))) {
		return AM_REASON_SPOOFED_NEIGHBOUR;
	}
	if (am_is_gateway6(&p->source))
		return AM_REASON_SPOOFED_NEIGHBOUR;
	/* The link-layer address option, where there is one, names the pod's own MAC. */
	if (p->l4_len >= 32) {
		if (bpf_skb_load_bytes(skb, p->l4 + 24, option, sizeof(option)) || !am_same_mac(option + 2, link->mac))
			return AM_REASON_SPOOFED_NEIGHBOUR;
	}
	if (!am_is_gateway6(&p->destination) && !am_is_gateway6_group(&p->destination) &&
	    am_identity_of(&p->destination, &flags) != AM_IDENTITY_HOST)
		return AM_REASON_SPOOFED_NEIGHBOUR;
	return 0;
}

/* What a pod may say: in its own name, and of errors only those about what was sent to it. */
AM_INLINE u32 am_check_source(const struct am_packet *p, const struct am_link *link)
{
	if (!am_owns(link, &p->source))
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

/* A pod, a node or an API server of the cluster has this address. */
AM_INLINE int am_is_known(const struct am_addr *address)
{
	u32 flags;

	return am_local(address) || am_identity_of(address, &flags) != AM_IDENTITY_WORLD;
}

/*
 * May what the stack hands to a pod have its source, coming by the interface that it came by? Sets role->is_outer where
 * that may be anybody who is not here (am_is_forged).
 */
AM_INLINE u32 am_check_way(const struct am_packet *p, u32 from, struct am_role *role)
{
	struct am_link_key key = { .ifindex = from };
	struct am_uplink *uplink = am_uplinks.lookup(&key);
	struct am_link *link;

	if (uplink) {
		role->is_outer = !(uplink->flags & AM_UPLINK_LOCAL);
		return 0;
	}
	link = am_links.lookup(&key);
	if (link ? am_owns(link, &p->source) : !am_is_known(&p->source))
		return 0;
	return AM_REASON_SPOOFED_ADDRESS;
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

	if (am_local(&p->source))
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

/* Messages between neighbours and routers. Sets *to_node when the node's stack, and nobody else, is to have the packet. */
AM_INLINE u32 am_check_discovery(struct __sk_buff *skb, const struct am_packet *p, const struct am_link *link, u8 *to_node)
{
	if (p->family == 4)
		return p->protocol == AM_ICMP && p->icmp_type == 5 ? AM_REASON_SPOOFED_NEIGHBOUR : 0;
	if (p->protocol != AM_ICMP6)
		return 0;
	switch (p->icmp_type) {
	case 130: /* multicast listener query, report, done */
	case 131:
	case 132:
	case 143: /* listener report, version 2 */
	case 133: /* router solicitation */
		return AM_CHATTER;
	case 134: /* router advertisement */
	case 137: /* redirect */
		return AM_REASON_SPOOFED_NEIGHBOUR;
	case 135:
	case 136:
		*to_node = 1;
		return am_check_neighbour(skb, p, link);
	}
	return 0;
}

#endif
