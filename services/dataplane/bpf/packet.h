/*
 * The packet that a program looks at: its parsed headers, for which endpoint it is judged, the verdict, and the per-CPU
 * scratch memory that holds them; included by any.
 */
#ifndef AM_PACKET_H
#define AM_PACKET_H

#include "types.h"

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
	u32 tunnel;   /* the interface of the tunnel that it came out of; 0: none */
	u8 family;    /* 4 or 6 */
	u8 ttl;
	u8 protocol;
	u8 tcp_flags;
	u8 icmp_type;
	u8 is_fragment;
	u8 is_first; /* the fragment that carries the transport header */
	u8 is_error; /* an ICMP error: read, and never more (conntrack.h, nat.h) */
	u8 is_refused; /* it goes to where nobody listens */
	u8 is_translated; /* it had another destination on the wire */
};

/* Where a connection is to go, or goes. */
struct am_target {
	struct am_addr address;
	__be16 port;
};

/* Who a packet is judged for. */
struct am_role {
	u64 subject;
	u32 endpoint;
	u8 side;
	u8 from_host; /* begun by this node itself: always let through */
	u8 is_outer; /* from_pod and from_wire: where the peer is matters */
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
	u32 locality; /* AM_AT_*: where the peer is, for who wants to know */
};

/* The headers before a packet: Ethernet and what follows. The hole has that lie on a word. */
struct am_tunnel_head {
	u16 hole;
	u8 macs[12];
	__be16 type;
	u32 room[18];
};

/* What there is to know of an outer packet (decap.h). Offsets are from the start of the frame. */
struct am_outer {
	u32 l4;
	u32 end; /* of the IP packet */
	u32 skip; /* bytes before the inner packet */
	u32 node;
	u32 ifindex;
	__be16 type; /* of the inner packet */
	u8 protocol;
	u8 tos;
	u8 is_fragment;
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
	/* What conntrack looks for, and makes (conntrack.h). */
	struct am_flow_key flow_key;
	struct am_flow_key evicted;
	struct am_flow flow;
	struct am_nat_key evicted_nat;
	struct am_nat_key evicted_partner;
	struct bpf_fib_lookup fib __attribute__((aligned(8)));
	struct bpf_redir_neigh hop;
	struct am_throttle_key throttle_key;
	struct am_throttle throttle;
	/* Of a packet on its way out (forward.h, encap.h). */
	struct am_tunnel_head tunnel_head;
	struct am_addr remote; /* the other end of the tunnel */
	/* Keys, and an outer packet: on the stack the verifier would tell apart how they came there. */
	struct am_address_key address;
	struct am_link_key device;
	struct am_tunnel_end_key end_key;
	struct am_prefix_key prefix;
	struct am_outer arrived;
	u8 inner_macs[12];
	u32 longest; /* am_longest_on_wire */
	u32 flow_hash; /* of a packet that goes into a tunnel */
	__be16 outer_ports[2];
	u32 index; /* of a set of recent flows */
	u32 frame_head[8]; /* struct am_frame_head (fib.h) */
	u64 opaque;
	/* Of a search for a port (nat.h); kept here, where the verifier does not count along. */
	u64 is_ours; /* one of the node's reserve */
	u64 is_late; /* one of a flow that is not established will do */
	u64 dns_room[20]; /* struct am_dns_message (dns.h) */
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
_Static_assert(__builtin_offsetof(struct am_work, fib) == AM_WORK_FIB, "core/layout.py says where");

/* The room around such a packet. Nothing in it has a value yet. */
AM_INLINE struct am_work *am_work_of(const struct am_packet *p)
{
	return (struct am_work *)p;
}

/* The same number, of which the verifier knows nothing any more: what differs in it alone is walked once. */
AM_INLINE u64 am_opaque(const struct am_packet *p, u64 number)
{
	volatile u64 *room = &am_work_of(p)->opaque;

	*room = number;
	return *room;
}

/* Of another network on the same wire (IEEE 802.1Q). Tag 0 says a priority and nothing else: the stack looks behind it. */
AM_INLINE int am_is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & 0xfff;
}

#endif
