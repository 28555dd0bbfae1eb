/*
 * The parser of Ethernet, IPv4 (RFC 791), IPv6 (RFC 8200) and transport headers into struct am_packet; included by
 * fib.h, answer.h, encap.h, decap.h, arrival.h, pod.c, uplink.c and tunnel.c.
 *
 * A packet that does not lie in one piece is read all the same (am_read). Refuses what could carry one meaning here and
 * another at its destination: lengths that contradict each other, tiny or overlapping fragments (RFC 1858, RFC 8200
 * 4.5), IPv4-mapped addresses on the wire, routing headers, more than eight IPv6 extension headers, ICMP errors in
 * fragments. Each function returns an AM_REASON_*, 0 for none.
 *
 * Parsing writes no map. am_fragment_ports (fragment.h) does: call it when the source has been checked.
 */
#ifndef AM_PARSE_H
#define AM_PARSE_H

#include "types.h"
#include "address.h"
#include "packet.h"

#define AM_MAX_EXTENSIONS 8
#define AM_DIRECT_BYTES 256

struct am_eth {
	u8 destination[6];
	u8 source[6];
	__be16 type;
};

struct am_ip4 {
	u8 version_ihl;
	u8 tos;
	__be16 total;
	__be16 id;
	__be16 frag;
	u8 ttl;
	u8 protocol;
	u16 check;
	u32 source;
	u32 destination;
};

struct am_ip6 {
	__be32 version_class;
	__be16 payload;
	u8 next;
	u8 hops;
	struct am_addr source;
	struct am_addr destination;
};

/*
 * Bytes of a packet. Straight from memory where it lies there in one piece up to there, as headers nearly always do.
 * Nonzero when the packet is shorter.
 */
AM_INLINE int am_read(struct __sk_buff *skb, u32 offset, void *to, u32 size)
{
	void *begin = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	/* The verifier wants a bound. */
	if (offset < AM_DIRECT_BYTES && begin + offset + size <= end) {
		/* In words, not in octets: the processors that we are built for read words anywhere. */
		__builtin_memcpy(to, __builtin_assume_aligned(begin + offset, 8), size);
		return 0;
	}
	return bpf_skb_load_bytes(skb, offset, to, size);
}

/* Addresses only: what an uplink needs to know before it decides whether a packet is ours to judge. */
AM_INLINE u32 am_parse_addresses(struct __sk_buff *skb, struct am_packet *p, __be16 ethertype)
{
	if (ethertype == AM_ETH_IP) {
		struct am_ip4 ip = {};

		if (am_read(skb, AM_ETH_LEN, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4)
			return AM_REASON_MALFORMED;
		am_map4(&p->source, ip.source);
		am_map4(&p->destination, ip.destination);
		p->family = 4;
		return 0;
	}
	struct am_ip6 ip = {};

	if (am_read(skb, AM_ETH_LEN, &ip, sizeof(ip)) || (ip.version_class & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return AM_REASON_MALFORMED;
	p->source = ip.source;
	p->destination = ip.destination;
	p->family = 6;
	if (am_is_mapped(&p->source) || am_is_mapped(&p->destination))
		return AM_REASON_MALFORMED;
	return 0;
}

AM_INLINE u32 am_parse4(struct __sk_buff *skb, struct am_packet *p)
{
	struct am_ip4 ip = {};
	u32 header, total, offset;

	if (am_read(skb, AM_ETH_LEN, &ip, sizeof(ip)))
		return AM_REASON_MALFORMED;
	header = (ip.version_ihl & 15) * 4;
	total = bpf_ntohs(ip.total);
	if (!total) /* a GSO packet of more than 64 KiB */
		total = skb->len - AM_ETH_LEN;
	if (header < sizeof(ip) || total < header || total > skb->len - AM_ETH_LEN)
		return AM_REASON_MALFORMED;
	p->ttl = ip.ttl;
	p->protocol = ip.protocol;
	p->l4 = AM_ETH_LEN + header;
	p->l4_len = total - header;
	offset = (bpf_ntohs(ip.frag) & 0x1fff) * 8;
	p->is_first = !offset;
	p->is_fragment = offset || (ip.frag & bpf_htons(0x2000));
	p->fragment = ip.id;
	/* A second fragment inside the transport header could rewrite ports that were judged. */
	if (offset && offset < (ip.protocol == AM_TCP ? 20 : 8))
		return AM_REASON_FRAGMENT;
	return 0;
}

struct am_extension {
	u8 next;
	u8 length;
	__be16 frag;
	__be32 id;
};

/* One extension header. Returns -1 when `next` is not one (the walk ends), else a reason. */
AM_INLINE int am_parse_extension(struct __sk_buff *skb, struct am_packet *p, u32 index)
{
	struct am_extension x = {};
	u32 length;

	switch (p->protocol) {
	case 0: /* hop by hop: first or nowhere */
		if (index)
			return AM_REASON_EXTENSION_HEADERS;
	case 60:  /* destination options */
	case 135: /* mobility */
	case 51:  /* authentication */
	case 44:  /* fragment */
		break;
	case 43: /* routing: would change the destination after it was judged */
		return AM_REASON_EXTENSION_HEADERS;
	default:
		return -1;
	}
	if (p->l4_len < 8 || bpf_skb_load_bytes(skb, p->l4, &x, sizeof(x)))
		return AM_REASON_MALFORMED;
	length = p->protocol == 51 ? (x.length + 2) * 4 : (x.length + 1) * 8;
	if (p->protocol == 44) {
		u32 offset = bpf_ntohs(x.frag) & 0xfff8;

		if (p->is_fragment)
			return AM_REASON_FRAGMENT;
		length = 8;
		p->is_fragment = offset || (x.frag & bpf_htons(1));
		p->is_first = !offset;
		p->fragment = x.id;
		if (offset && offset < 60) /* a real first fragment holds its whole header chain */
			return AM_REASON_FRAGMENT;
	}
	if (length > p->l4_len)
		return AM_REASON_MALFORMED;
	p->protocol = x.next;
	p->l4 += length;
	p->l4_len -= length;
	/* What follows a later fragment's header is the middle of something. */
	return p->is_first ? 0 : -1;
}

AM_INLINE u32 am_parse6(struct __sk_buff *skb, struct am_packet *p)
{
	struct am_ip6 ip = {};
	u32 payload, i;
	int found = 0;

	if (am_read(skb, AM_ETH_LEN, &ip, sizeof(ip)))
		return AM_REASON_MALFORMED;
	payload = bpf_ntohs(ip.payload);
	if (!payload) /* BIG TCP */
		payload = skb->len - AM_ETH_LEN - sizeof(ip);
	if (payload + sizeof(ip) > skb->len - AM_ETH_LEN)
		return AM_REASON_MALFORMED;
	p->ttl = ip.hops;
	p->protocol = ip.next;
	p->l4 = AM_ETH_LEN + sizeof(ip);
	p->l4_len = payload;
	p->is_first = 1;
	for (i = 0; i <= AM_MAX_EXTENSIONS; i++) {
		found = am_parse_extension(skb, p, i);
		if (found)
			break;
	}
	if (!found)
		return AM_REASON_EXTENSION_HEADERS;
	return found < 0 ? 0 : found;
}

/*
 * The flow of the packet inside an ICMP error, turned round: the error is then a reply to that flow. Only when whoever
 * sent that packet is who receives the error, and its ports are there: inner_l4 says so. Else the error is about nothing.
 */
AM_INLINE void am_parse_inner(struct __sk_buff *skb, struct am_packet *p)
{
	u32 inner = p->l4 + 8, l4;
	struct am_extension x = {};
	struct am_addr source, destination;
	__be16 ports[2] = {};
	u8 protocol, echo[8];

	if (p->family == 4) {
		struct am_ip4 ip = {};

		if (bpf_skb_load_bytes(skb, inner, &ip, sizeof(ip)))
			return;
		am_map4(&source, ip.source);
		am_map4(&destination, ip.destination);
		protocol = ip.protocol;
		l4 = inner + (ip.version_ihl & 15) * 4;
		if (ip.frag & bpf_htons(0x1fff)) /* a later fragment: no ports to know its flow by */
			return;
	} else {
		struct am_ip6 ip = {};

		if (bpf_skb_load_bytes(skb, inner, &ip, sizeof(ip)))
			return;
		source = ip.source;
		destination = ip.destination;
		protocol = ip.next;
		l4 = inner + sizeof(ip);
		if (protocol == 44) { /* a first fragment may be too big for its path too */
			if (bpf_skb_load_bytes(skb, l4, &x, sizeof(x)) || (x.frag & bpf_htons(0xfff8)))
				return;
			protocol = x.next;
			l4 += sizeof(x);
		}
	}
	if (!am_same_addr(&source, &p->destination))
		return;
	switch (protocol) {
	case AM_TCP:
	case AM_UDP:
	case AM_SCTP:
		if (bpf_skb_load_bytes(skb, l4, ports, 4))
			return;
		break;
	case AM_ICMP:
	case AM_ICMP6:
		if (bpf_skb_load_bytes(skb, l4, echo, sizeof(echo)))
			return;
		/* As am_parse_icmp has it: the id stands where the originator's port would. */
		if (echo[0] == (p->family == 6 ? 128 : 8))
			ports[0] = *(__be16 *)&echo[4];
		else if (echo[0] == (p->family == 6 ? 129 : 0))
			ports[1] = *(__be16 *)&echo[4];
	}
	p->inner_l4 = l4;
	p->flow.source = destination;
	p->flow.destination = source;
	p->flow.protocol = protocol;
	p->flow.source_port = ports[1];
	p->flow.destination_port = ports[0];
}

/* Does this type carry the packet that it is about? RFC 792 and 1122; RFC 4443: whatever is below 128. */
AM_INLINE int am_is_error_type(u8 is6, u8 type)
{
	return is6 ? type < 128 : type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* ICMP has no ports; an echo's identifier stands for the originator's, so that replies find their request. */
AM_INLINE u32 am_parse_icmp(struct __sk_buff *skb, struct am_packet *p)
{
	u8 head[8] = {};
	u8 is6 = p->protocol == AM_ICMP6;
	__be16 id;

	/* Each belongs to one family; the other stack would not understand it. */
	if (p->l4_len < 8 || is6 != (p->family == 6) || bpf_skb_load_bytes(skb, p->l4, head, 8))
		return p->is_fragment ? AM_REASON_FRAGMENT : AM_REASON_MALFORMED;
	p->icmp_type = head[0];
	id = *(__be16 *)&head[4];
	if (head[0] == (is6 ? 128 : 8))
		p->flow.source_port = id;
	else if (head[0] == (is6 ? 129 : 0))
		p->flow.destination_port = id;
	else if (am_is_error_type(is6, head[0])) {
		/* None is that long (RFC 1812 4.3.2.3, RFC 4443 2.4), and its later pieces would be known by inner ports. */
		if (p->is_fragment)
			return AM_REASON_FRAGMENT;
		p->is_error = 1;
		am_parse_inner(skb, p);
	}
	return 0;
}

AM_INLINE u32 am_parse_transport(struct __sk_buff *skb, struct am_packet *p)
{
	u32 short_reason = p->is_fragment ? AM_REASON_FRAGMENT : AM_REASON_MALFORMED;
	__be16 ports[2] = {};

	switch (p->protocol) {
	case AM_TCP: {
		u8 head[14] = {};

		if (p->l4_len < 20 || am_read(skb, p->l4, head, sizeof(head)))
			return short_reason;
		if (head[12] >> 4 < 5)
			return AM_REASON_MALFORMED;
		p->tcp_flags = head[13];
		p->sequence = bpf_ntohl(*(__be32 *)&head[4]);
		p->acknowledged = bpf_ntohl(*(__be32 *)&head[8]);
		p->payload = p->l4_len - (head[12] >> 4) * 4;
		p->flow.source_port = *(__be16 *)&head[0];
		p->flow.destination_port = *(__be16 *)&head[2];
		return 0;
	}
	case AM_UDP:
	case AM_SCTP:
		if (p->l4_len < (p->protocol == AM_UDP ? 8 : 12) || am_read(skb, p->l4, ports, 4))
			return short_reason;
		p->flow.source_port = ports[0];
		p->flow.destination_port = ports[1];
		return 0;
	case AM_ICMP:
	case AM_ICMP6:
		return am_parse_icmp(skb, p);
	}
	return 0;
}

/* Everything above the addresses (which am_parse_addresses has read). */
AM_INLINE u32 am_parse(struct __sk_buff *skb, struct am_packet *p)
{
	u32 reason = p->family == 4 ? am_parse4(skb, p) : am_parse6(skb, p);

	if (reason)
		return reason;
	p->flow.source = p->source;
	p->flow.destination = p->destination;
	p->flow.protocol = p->protocol;
	return p->is_first ? am_parse_transport(skb, p) : 0;
}

#endif
