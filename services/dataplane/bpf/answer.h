/*
 * The answer to a packet that is too long for its way and cannot go up the stack: an ICMP or ICMPv6 error (RFC 1191, RFC
 * 4443 3.2) in this node's name; included by forward.h.
 */
#ifndef AM_ANSWER_H
#define AM_ANSWER_H

#include "types.h"
#include "packet.h"
#include "parse.h"
#include "csum.h"
#include "endpoint.h"
#include "drop.h"

#define AM_QUOTED 512 /* bytes of the packet that the answer is about; bpf_csum_diff takes no more */

/* ICMP's and ICMPv6's header alike: the MTU is the last half, or all, of the second word. */
struct am_too_big {
	u8 type;
	u8 code;
	u16 check;
	__be32 mtu;
};

/*
 * The sum over what is quoted, which lies behind the Ethernet header. The quoted transport checksum becomes the one value that
 * stays as it is when the kernel or a card computes it later (CHECKSUM_PARTIAL: the packet may say so, and nobody can
 * ask): x with x = -(r + x), where r is the sum of all else, is -r / 2, and halving is to rotate. Nobody can check the
 * old one any more, since the packet is cut. An IPv4 header sums up to nothing. Returns -1 when it cannot be read.
 */
AM_INLINE s64 am_sum_of_quoted(struct __sk_buff *skb, const struct am_packet *p)
{
	u32 at = p->l4 + am_csum_offset(p->protocol), rest, all;
	u8 has_sum = p->protocol == AM_TCP || p->protocol == AM_UDP;
	void *head;
	u16 own = 0;

	if (has_sum && bpf_skb_store_bytes(skb, at, &own, 2, 0))
		return -1;
	head = (void *)(long)skb->data + AM_ETH_LEN;
	if (head + AM_QUOTED > (void *)(long)skb->data_end)
		return -1;
	all = am_csum_fold(bpf_csum_diff(0, 0, head, AM_QUOTED, 0));
	if (!has_sum)
		return all;
	rest = all;
	if (p->family == 6)
		rest += 0xffff - am_csum_fold(bpf_csum_diff(0, 0, head, 40, 0));
	rest = 0xffff - am_csum_fold(rest);
	own = rest >> 1 | (rest & 1) << 15;
	if (bpf_skb_store_bytes(skb, at, &own, 2, 0))
		return -1;
	return am_csum_fold(all + own);
}

/* Writes the headers before the quoted packet, which has room for them. Returns nonzero when it could not. */
AM_INLINE long am_write_too_big(struct __sk_buff *skb, const struct am_packet *p, u32 mtu, u32 sum)
{
	struct am_tunnel_head *head = &am_work_of(p)->tunnel_head;
	struct am_too_big *icmp;
	u8 macs[12];

	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return -1;
	__builtin_memset(head, 0, sizeof(*head));
	__builtin_memcpy(head->macs, macs + 6, 6);
	__builtin_memcpy(head->macs + 6, macs, 6);
	if (p->family == 4) {
		struct am_ip4 *ip = (struct am_ip4 *)head->room;

		icmp = (struct am_too_big *)(ip + 1);
		head->type = AM_ETH_IP;
		ip->version_ihl = 0x45;
		ip->tos = 0xc0; /* internetwork control, as the stack has it */
		ip->total = bpf_htons(sizeof(*ip) + sizeof(*icmp) + AM_QUOTED);
		ip->ttl = 64;
		ip->protocol = AM_ICMP;
		ip->source = am_work_of(p)->outer[0].word[3];
		ip->destination = p->source.word[3];
		ip->check = ~am_csum_fold(am_csum_ip4(ip));
		icmp->type = 3;
		icmp->code = 4;
		icmp->mtu = bpf_htonl(mtu);
		sum += am_csum_fold(bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp), 0));
		icmp->check = ~am_csum_fold(sum);
		return bpf_skb_store_bytes(skb, 0, head->macs, AM_ETH_LEN + sizeof(*ip) + sizeof(*icmp), 0);
	}
	struct am_ip6 *ip = (struct am_ip6 *)head->room;

	icmp = (struct am_too_big *)(ip + 1);
	head->type = AM_ETH_IP6;
	ip->version_class = bpf_htonl(0x60000000);
	ip->payload = bpf_htons(sizeof(*icmp) + AM_QUOTED);
	ip->next = AM_ICMP6;
	ip->hops = 64;
	ip->source = am_work_of(p)->outer[0];
	ip->destination = p->source;
	icmp->type = 2;
	icmp->mtu = bpf_htonl(mtu);
	/* Both addresses, the length and the protocol are summed as well. */
	sum += am_csum_fold(bpf_csum_diff(0, 0, (void *)&ip->source, 32 + sizeof(*icmp), 0)) + ip->payload + bpf_htons(AM_ICMP6);
	icmp->check = ~am_csum_fold(sum);
	return bpf_skb_store_bytes(skb, 0, head->macs, AM_ETH_LEN + sizeof(*ip) + sizeof(*icmp), 0);
}

/*
 * Drops the packet, which is as it was received, and tells its sender how long one may be. About an error, or a fragment
 * that has no ports, nobody is told anything (RFC 1122 3.2.2). The answer is shorter than what it is about.
 */
AM_INLINE int am_answer_too_big(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role, u32 mtu)
{
	struct am_work *w = am_work_of(p);
	s64 sum;

	am_refuse(skb, p, role, AM_REASON_TOO_BIG);
	if (p->is_error || !p->is_first || skb->len < AM_ETH_LEN + AM_QUOTED)
		return TC_ACT_SHOT;
	if (!am_own_address(p->family, &w->outer[0]))
		w->outer[0] = p->destination;
	if (bpf_skb_change_tail(skb, AM_ETH_LEN + AM_QUOTED, 0))
		return TC_ACT_SHOT;
	sum = am_sum_of_quoted(skb, p);
	if (sum < 0 || bpf_skb_adjust_room(skb, p->family == 4 ? 28 : 48, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	if (am_write_too_big(skb, p, mtu, sum))
		return TC_ACT_SHOT;
	/* A pod gets it from its link; anybody else by the way that its packet came. */
	if (role->side == AM_SIDE_EGRESS)
		return bpf_redirect_peer(skb->ifindex, 0);
	return bpf_redirect(p->tunnel ? p->tunnel : skb->ifindex, 0);
}

#endif
