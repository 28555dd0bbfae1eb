/*
 * The state of a flow, of TCP and others: what each packet changes in it, and how long it may be idle in each; included
 * by conntrack.h, verdict.h, nat.h and nodeport.h.
 *
 * core/conntrack/state.py says the same in Python, and why.
 */
#ifndef AM_FLOW_STATE_H
#define AM_FLOW_STATE_H

#include "types.h"
#include "packet.h"

#define AM_REFRESH_NS (1ULL << 30)

/* As they lie in struct am_flow and struct am_nat: TCP's next sequence number of the pod (during the handshake), and of
 * its peer, as the pod last acknowledged it. */
struct am_reach {
	u32 sent;
	u32 expected;
};

AM_INLINE int am_in_window(u32 number, u32 expected)
{
	return (u32)(number - expected + AM_BEHIND) < AM_BEHIND + AM_AHEAD;
}

AM_INLINE int am_is_closed(u8 seen)
{
	return (seen & AM_SEEN_RESET) || (~seen & (AM_SEEN_FIN_ORIGINAL | AM_SEEN_FIN_REPLY)) == 0;
}

/* The first packet of a connection. */
AM_INLINE int am_is_syn(const struct am_packet *p)
{
	return p->protocol == AM_TCP && (p->tcp_flags & (AM_TCP_SYN | AM_TCP_ACK)) == AM_TCP_SYN;
}

/* May a packet of no known flow begin one? An answer to a SYN and a reset are answers to something. */
AM_INLINE int am_may_create(const struct am_packet *p)
{
	return p->protocol != AM_TCP ||
	       !((p->tcp_flags & AM_TCP_RST) || (p->tcp_flags & (AM_TCP_SYN | AM_TCP_ACK)) == (AM_TCP_SYN | AM_TCP_ACK));
}

/* What a flow's first packet leaves. */
AM_INLINE u8 am_see_first(const struct am_packet *p, u8 is_own, struct am_reach *reach)
{
	u32 end = p->sequence + p->payload;

	if (p->protocol != AM_TCP)
		return p->protocol == AM_UDP && p->flow.destination_port == bpf_htons(AM_DNS_PORT) ? AM_SEEN_ONE_SHOT : 0;
	if (p->tcp_flags & AM_TCP_SYN) {
		reach->sent = is_own ? end + 1 : 0;
		reach->expected = is_own ? 0 : end + 1;
		return AM_SEEN_SYN;
	}
	reach->sent = is_own ? end : p->acknowledged;
	reach->expected = is_own ? p->acknowledged : end;
	return p->tcp_flags & AM_TCP_FIN ? AM_SEEN_FIN_ORIGINAL : 0;
}

AM_INLINE u8 am_see_syn(const struct am_packet *p, u8 is_reply, u8 is_own, u8 seen, struct am_reach *reach)
{
	u32 end = p->sequence + p->payload + 1;

	if (seen & AM_SEEN_ESTABLISHED)
		return seen; /* a late one, or a forged one: who lives answers it, and goes on */
	if (!(p->tcp_flags & AM_TCP_ACK)) {
		if (is_reply) /* both began (RFC 9293 3.5): then what both directions say must do */
			return seen & ~AM_SEEN_SYN;
		if ((seen & AM_SEEN_SYN) && (is_own ? reach->sent : reach->expected) == end)
			return seen;
		reach->sent = is_own ? end : 0;
		reach->expected = is_own ? 0 : end;
		return AM_SEEN_SYN;
	}
	if (!is_reply || !(seen & AM_SEEN_SYN))
		return seen;
	if ((u32)((is_own ? reach->expected : reach->sent) - p->acknowledged) >= AM_EARLY)
		return seen;
	if (is_own)
		reach->sent = end;
	else
		reach->expected = end;
	return seen | AM_SEEN_REPLY;
}

/* A packet of a flow that is older than its entry. */
AM_INLINE u8 am_see_older(const struct am_packet *p, u8 is_reply, u8 is_own, u8 seen, struct am_reach *reach)
{
	u32 mine = is_own ? reach->sent : reach->expected, other = is_own ? reach->expected : reach->sent;

	if (((seen & AM_SEEN_REPLY) || is_reply) && am_in_window(p->sequence, mine) && am_in_window(p->acknowledged, other))
		seen |= AM_SEEN_REPLY | AM_SEEN_ESTABLISHED;
	else if (is_own && is_reply)
		seen |= AM_SEEN_REPLY;
	if (is_own) {
		reach->sent = p->sequence + p->payload;
		reach->expected = p->acknowledged;
	}
	return seen;
}

AM_INLINE u8 am_see_tcp(const struct am_packet *p, u8 is_reply, u8 is_own, u8 seen, u8 is_due, struct am_reach *reach)
{
	if (p->tcp_flags & AM_TCP_RST) {
		if (is_own || !(seen & AM_SEEN_ESTABLISHED) || am_in_window(p->sequence, reach->expected))
			seen |= AM_SEEN_RESET;
		return seen;
	}
	if (p->tcp_flags & AM_TCP_SYN)
		return am_see_syn(p, is_reply, is_own, seen, reach);
	if (!(p->tcp_flags & AM_TCP_ACK))
		return seen;
	if (seen & AM_SEEN_ESTABLISHED) {
		if (is_own && (is_due || (s32)(p->acknowledged - reach->expected) > AM_STEP))
			reach->expected = p->acknowledged;
	} else {
		/* The pod has this connection already, and took the SYN for a forgery. */
		if (is_own && !(seen & AM_SEEN_REPLY))
			seen &= ~AM_SEEN_SYN;
		if (!(seen & AM_SEEN_SYN))
			seen = am_see_older(p, is_reply, is_own, seen, reach);
		else if (!is_reply && (seen & AM_SEEN_REPLY) &&
			 (u32)(p->acknowledged - (is_own ? reach->expected : reach->sent)) < AM_EARLY)
			seen |= AM_SEEN_ESTABLISHED;
	}
	if ((p->tcp_flags & AM_TCP_FIN) && (is_own || am_in_window(p->sequence, reach->expected)))
		seen |= is_reply ? AM_SEEN_FIN_REPLY : AM_SEEN_FIN_ORIGINAL;
	if (is_own) /* it goes on, so it did not take the reset */
		seen &= ~AM_SEEN_RESET;
	return seen;
}

AM_INLINE u8 am_see_other(const struct am_packet *p, u8 is_reply, u8 seen, u8 is_due)
{
	u8 may_last = !(seen & AM_SEEN_ONE_SHOT) && p->protocol != AM_ICMP && p->protocol != AM_ICMP6;

	if (may_last) {
		if (is_reply ? (seen & AM_SEEN_AGAIN) : 0)
			seen |= AM_SEEN_ESTABLISHED;
		if (seen & AM_SEEN_REPLY)
			seen |= (is_reply ? 0 : AM_SEEN_AGAIN) | (is_due ? AM_SEEN_ESTABLISHED : 0);
	}
	return is_reply ? seen | AM_SEEN_REPLY : seen;
}

/*
 * is_reply: against the direction in which the flow began. is_own: the pod sends it (of a translated flow: the backend).
 * is_due: nobody has written the entry for AM_REFRESH_NS.
 */
AM_INLINE u8 am_see_after(const struct am_packet *p, u8 is_reply, u8 is_own, u8 seen, u8 is_due, struct am_reach *reach)
{
	if (p->protocol == AM_TCP)
		return am_see_tcp(p, is_reply, is_own, seen, is_due, reach);
	return am_see_other(p, is_reply, seen, is_due);
}

AM_INLINE u64 am_idle_seconds(u8 protocol, u8 seen)
{
	if (protocol == AM_ICMP || protocol == AM_ICMP6)
		return AM_ICMP_SECONDS;
	if (protocol != AM_TCP) {
		if ((seen & AM_SEEN_ONE_SHOT) && (seen & AM_SEEN_REPLY))
			return AM_ANSWERED_DNS_SECONDS;
		if (seen & AM_SEEN_ESTABLISHED)
			return AM_STREAM_SECONDS;
		return protocol == AM_UDP ? AM_UDP_ONCE_SECONDS : AM_OTHER_ONCE_SECONDS;
	}
	if (am_is_closed(seen))
		return AM_TCP_CLOSING_SECONDS;
	if (!(seen & AM_SEEN_ESTABLISHED))
		return AM_TCP_SYN_SECONDS;
	return seen & (AM_SEEN_FIN_ORIGINAL | AM_SEEN_FIN_REPLY) ? AM_TCP_HALF_CLOSED_SECONDS : AM_TCP_ESTABLISHED_SECONDS;
}

#endif
