/*
 * Forwarding that decides nothing: what redirections and a tunnel's headers cost without policy, connection tracking or a
 * route. Everything that it sees is IPv4 for the one pod there, and all that differs between nodes is a macro: UPLINK and
 * POD (interfaces), HEAD (the bytes that a packet gets before it, Ethernet's first), SUM (of the outer IPv4 header's
 * words but its length), IS_VXLAN. Compiled by floor.py.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#define ETHERNET 14
#define IPV4 bpf_htons(0x0800)

/* From the pod's link to the uplink. */
int leave(struct __sk_buff *skb)
{
	unsigned char head[] = { HEAD };

	if (skb->protocol != IPV4)
		return TC_ACT_OK;
#ifdef SUM
	unsigned int size = sizeof(head) - ETHERNET, length = skb->len - ETHERNET + size, sum;
	unsigned long long flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	unsigned short total = length > 0xffff ? 0 : bpf_htons(length), check, datagram;

	sum = SUM + total;
	sum = (sum & 0xffff) + (sum >> 16);
	check = ~((sum & 0xffff) + (sum >> 16));
	__builtin_memcpy(head + 16, &total, 2);
	__builtin_memcpy(head + 24, &check, 2);
#ifdef IS_VXLAN
	datagram = length > 0xffff ? 0 : bpf_htons(length - 20);
	__builtin_memcpy(head + 38, &datagram, 2);
	flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(ETHERNET);
#endif
	if (bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, flags))
		return TC_ACT_SHOT;
#endif
	if (bpf_skb_store_bytes(skb, 0, head, sizeof(head), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(UPLINK, 0);
}

/* From the uplink into the pod. */
int arrive(struct __sk_buff *skb)
{
	unsigned char head[] = { HEAD };

	if (skb->protocol != IPV4)
		return TC_ACT_OK;
#ifdef SUM
	if (bpf_skb_adjust_room(skb, -(int)(sizeof(head) - ETHERNET), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
#endif
	return bpf_redirect_peer(POD, 0);
}
