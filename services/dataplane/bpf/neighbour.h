/*
 * ARP (RFC 826) and neighbour discovery (RFC 4861) of a pod: its own entries and the gateway alone, and it is no
 * router; included by pod.c.
 *
 * Neighbours are permanent on both sides of a pod's link, so ARP and neighbour discovery are hardly needed; what a
 * pod's stack still sends by itself is either harmless (and goes up to the node) or dropped.
 */
#ifndef AM_NEIGHBOUR_H
#define AM_NEIGHBOUR_H

#include "types.h"
#include "address.h"
#include "packet.h"
#include "endpoint.h"
#include "ipcache.h"

/* Not a reason: dropped and counted, but not reported. What every IPv6 stack sends when a link comes up. */
#define AM_SILENT_DROP 0x100

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

struct am_neighbour {
	u8 type;
	u8 code;
	u16 check;
	u32 flags;
	struct am_addr target;
};

/* fe80::1, the gateway that every pod has */
AM_INLINE int am_is_gateway6(const struct am_addr *a)
{
	return a->word[0] == bpf_htonl(0xfe800000) && !a->word[1] && !a->word[2] && a->word[3] == bpf_htonl(1);
}

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
	if (!am_has_address(link, &p->source) && !am_is_link_local(&p->source))
		/* :: asks whether an address is free before taking it; ours are given, not taken. */
		return am_is_unspecified(&p->source) ? AM_SILENT_DROP : AM_REASON_SPOOFED_ADDRESS;
	if (p->icmp_type == 135) {
		if (!am_is_gateway6(&n.target))
			return AM_REASON_SPOOFED_NEIGHBOUR;
	} else if (!am_has_address(link, &n.target) && !(am_is_link_local(&n.target) && am_same_addr(&n.target, &p->source))) {
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
		return AM_SILENT_DROP;
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
