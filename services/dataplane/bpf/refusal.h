/*
 * Backends that refused a moment ago (am_refused): noted where the refusal arrives at the pod that asked, passed over
 * where a socket chooses; included by verdict.h and sock_lb.h.
 *
 * A server that ends refuses until Kubernetes has said so, a second or two later. Whoever is refused asks again, and is
 * to find another one then. Only what nobody but the backend can say counts, and only about a flow of which it has said
 * nothing before: a reset in answer to a SYN (RFC 9293 3.10.7.1), or its ICMP error that a port or itself is not reached
 * (RFC 1122 3.2.2.1, RFC 4443 3.1). So a client makes no backend look dead, and a backend that lies loses its own share.
 */
#ifndef AM_REFUSAL_H
#define AM_REFUSAL_H

#include "types.h"
#include "address.h"
#include "packet.h"

/* Longer than musl waits for an answer before it asks again (2.5 s); glibc, which is told, asks at once. */
#define AM_REFUSED_NS (3ULL * 1000000000)
#define AM_ICMP_UNREACHABLE 3
#define AM_ICMP6_UNREACHABLE 1

/* Of a packet to the pod that began the flow, before the flow has taken it in. */
AM_INLINE int am_is_refusal(const struct am_packet *p, const struct am_flow_key *key, const struct am_flow *flow)
{
	if (p->is_error)
		return p->icmp_type == (p->family == 6 ? AM_ICMP6_UNREACHABLE : AM_ICMP_UNREACHABLE) &&
		       am_same_addr(&p->source, &key->remote);
	return (p->tcp_flags & AM_TCP_RST) && flow->seen == AM_SEEN_SYN;
}

AM_INLINE void am_note_refusal(const struct am_flow_key *flow)
{
	struct am_refused_key key = { .address = flow->remote, .port = flow->remote_port, .protocol = flow->protocol };
	struct am_refused refused = { .last = bpf_ktime_get_coarse_ns() };

	am_refused.update(&key, &refused);
}

AM_INLINE int am_refused_lately(const struct am_addr *address, __be16 port, u8 protocol)
{
	struct am_refused_key key = { .address = *address, .port = port, .protocol = protocol };
	struct am_refused *refused = am_refused.lookup(&key);

	return refused && bpf_ktime_get_coarse_ns() - refused->last < AM_REFUSED_NS;
}

#endif
