/*
 * What every other header stands on: protocol numbers, the packet as we see it, comparisons of addresses.
 *
 * bcc 0.26 has no subprograms and no .rodata: every function is inlined, constants are macros. Kernel names come in
 * through bcc's own headers, so everything of ours begins with am_.
 */
#ifndef AM_TYPES_H
#define AM_TYPES_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#define AM_INLINE static __always_inline

#define AM_ETH_LEN 14
#define AM_ETH_IP bpf_htons(0x0800)
#define AM_ETH_ARP bpf_htons(0x0806)
#define AM_ETH_IP6 bpf_htons(0x86DD)
#define AM_ETH_VLAN bpf_htons(0x8100)
#define AM_ETH_QINQ bpf_htons(0x88A8)

#define AM_ICMP 1
#define AM_TCP 6
#define AM_UDP 17
#define AM_ICMP6 58
#define AM_SCTP 132

#define AM_AF_INET 2
#define AM_AF_INET6 10

#define AM_TCP_FIN 0x01
#define AM_TCP_SYN 0x02
#define AM_TCP_RST 0x04
#define AM_TCP_ACK 0x10

/* Whom a flow is between, and by which ports (ICMP's identifier: parse.h). */
struct am_tuple {
	struct am_addr source;
	struct am_addr destination;
	__be16 source_port;
	__be16 destination_port;
	u8 protocol;
};

/* A parsed packet. `flow` is what conntrack looks for: of an ICMP error with inner_l4, the packet that it is about. */
struct am_packet {
	struct am_addr source;
	struct am_addr destination;
	struct am_tuple flow;
	u32 l4;       /* offset of the transport header from the start of the frame */
	u32 l4_len;   /* bytes from there to the end of the IP packet */
	u32 fragment; /* identification, where it is a fragment */
	u32 inner_l4; /* of the packet inside an ICMP error; 0: it is about nothing that its receiver sent */
	u32 sequence; /* TCP */
	u32 acknowledged; /* TCP */
	u32 payload;  /* bytes after the TCP header */
	u8 family;    /* 4 or 6 */
	u8 ttl;
	u8 protocol;
	u8 tcp_flags;
	u8 icmp_type;
	u8 is_fragment;
	u8 is_first; /* the fragment that carries the transport header */
	u8 is_error; /* an ICMP error: read, and never more (ct.h, nat.h) */
	u8 is_refused; /* it goes to where nobody listens */
	u8 is_translated; /* it had another destination on the wire */
};

/* Where a connection is to go, or goes. */
struct am_target {
	struct am_addr address;
	__be16 port;
};

/* What policy says, and of whom. */
struct am_verdict {
	u64 peer;
	u32 reason; /* AM_REASON_*; FORWARDED and REPLY let through */
	u32 rule;
	u32 policy; /* the subject's policy that was asked; 0: none was */
	u32 generation;
	u32 is_new; /* the packet began a flow */
	u32 is_back; /* it answers a flow that came by a Service's address */
	u32 where; /* AM_AT_*: where the peer is, for who wants to know */
};

/* What stands in am_scratch: the packet, and what translating it takes (nat.h). */
struct am_work {
	struct am_packet packet;
	struct am_nat_key key; /* the packet as it was met */
	struct am_nat entry;   /* what it becomes */
	struct am_nat_key partner_key;
	struct am_nat partner;
	struct am_addr outer[2];
	struct am_target target;
	struct am_verdict verdict;
	/* Of a search for a port; kept here, where the verifier does not count along. */
	/* What conntrack looks for, and makes (ct.h). */
	struct am_flow_key flow_key;
	struct am_flow_key elder;
	struct am_flow flow;
	struct am_nat_key elder_nat;
	struct am_nat_key elder_partner;
	struct bpf_fib_lookup fib;
	struct bpf_redir_neigh hop;
	struct am_throttle_key throttle_key;
	struct am_throttle throttle;
	u32 index; /* of a set of recent flows */
	u32 front[8]; /* struct am_front (deliver.h) */
	u64 blurred;
	u64 is_ours; /* one of the node's reserve */
	u64 is_late; /* one of a flow that is not established will do */
};

/*
 * Where the packet is kept while a program runs: a map's memory, of which the verifier remembers nothing. On the stack
 * it would follow every combination of family, fragment and flag through all that comes after (fifteen times the work).
 * Programs run with softirqs off, so no other of ours comes between on the same processor.
 */
AM_INLINE struct am_packet *am_scratch_packet(void)
{
	int zero = 0;
	struct am_packet *p = (struct am_packet *)am_scratch.lookup(&zero);

	if (p)
		__builtin_memset(p, 0, sizeof(*p));
	return p;
}
_Static_assert(sizeof(struct am_work) <= sizeof(struct am_scratch), "core/layout.py says how large");

/* The room around such a packet. Nothing in it has a value yet. */
AM_INLINE struct am_work *am_work_of(const struct am_packet *p)
{
	return (struct am_work *)p;
}

/* The same number, of which the verifier knows nothing any more: what differs in it alone is walked once. */
AM_INLINE u64 am_blurred(const struct am_packet *p, u64 number)
{
	volatile u64 *room = &am_work_of(p)->blurred;

	*room = number;
	return *room;
}

/* Of another network on the same wire (IEEE 802.1Q). Tag 0 says a priority and nothing else: the stack looks behind it. */
AM_INLINE int am_is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & 0xfff;
}

AM_INLINE int am_same_addr(const struct am_addr *a, const struct am_addr *b)
{
	/* One branch, not four: each is a path more that the verifier walks. */
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		 (a->word[3] ^ b->word[3]));
}

AM_INLINE int am_no_addr(const struct am_addr *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

AM_INLINE int am_is_mapped(const struct am_addr *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

AM_INLINE void am_map4(struct am_addr *a, u32 v4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = v4;
}

/* fe80::/10 */
AM_INLINE int am_is_link_local(const struct am_addr *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* fe80::1, the gateway that every pod has */
AM_INLINE int am_is_gateway6(const struct am_addr *a)
{
	return a->word[0] == bpf_htonl(0xfe800000) && !a->word[1] && !a->word[2] && a->word[3] == bpf_htonl(1);
}

#endif
