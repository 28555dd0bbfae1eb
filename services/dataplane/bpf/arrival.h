/*
 * A packet that has reached this node, by an uplink or out of a tunnel: for a pod, for a Service, for the node itself; included by
 * uplink.c and tunnel.c.
 */
#ifndef AM_ARRIVAL_H
#define AM_ARRIVAL_H

#include "types.h"
#include "packet.h"
#include "parse.h"
#include "fragment.h"
#include "endpoint.h"
#include "ipcache.h"
#include "drop.h"
#include "verdict.h"
#include "spoof.h"
#include "rewrite.h"
#include "nodeport.h"
#include "forward.h"

#define AM_TO_POD -1
#define AM_TO_STACK -2

/* By which interface it came: what a tunnel brings does not mix with what comes beside it. */
AM_INLINE u32 am_link_of(const struct __sk_buff *skb, const struct am_packet *p)
{
	return p->tunnel ? p->tunnel : skb->ifindex;
}

/* What was received for no pod of ours. Returns an action, AM_TO_STACK, or AM_TO_POD when it has become a pod's. */
AM_INLINE int am_from_external(struct __sk_buff *skb, struct am_packet *p, const struct am_role *role)
{
	struct am_work *w = am_work_of(p);
	u32 reason;

	/* Whatever is not for us, not TCP or UDP, or cannot be read: the stack's, as if we were not here. */
	if (skb->pkt_type || am_parse(skb, p) || am_fragment_ports(p, am_link_of(skb, p)))
		return AM_TO_STACK;
	if (p->flow.protocol != AM_TCP && p->flow.protocol != AM_UDP)
		return AM_TO_STACK;
	reason = am_nodeport(w);
	if (reason == AM_NO_SERVICE)
		return AM_TO_STACK;
	if (reason)
		return am_refuse(skb, p, role, reason);
	if (p->is_refused) /* reported as a drop, but answered */
		am_refuse(skb, p, role, AM_REASON_SERVICE_NO_BACKEND);
	if (w->entry.is_back || w->entry.partner == AM_HOOK_WIRE)
		return am_forward(skb, p, role, AM_WAY_TRANSLATED);
	if (am_rewrite(skb, p, w))
		return TC_ACT_SHOT;
	if (w->entry.partner == AM_HOOK_POD)
		return AM_TO_POD;
	am_expect_host_replies();
	return AM_TO_STACK;
}

/* It came in the clear, from another node's pod, where that is not believed. */
AM_INLINE int am_is_unencrypted(const struct am_packet *p, u32 switches)
{
	u32 flags;

	if (!(switches & (p->family == 4 ? AM_CONFIG_REFUSE_PLAIN4 : AM_CONFIG_REFUSE_PLAIN6)))
		return 0;
	am_identity_of(&p->source, &flags);
	return flags & AM_IPCACHE_POD && !am_local_endpoint(&p->source);
}

/*
 * Judges and delivers a packet whose addresses are known. `endpoint` has its destination, or nobody here; `switches` are
 * the node's, or 0 for what came encrypted. Returns an action or AM_TO_STACK.
 */
AM_INLINE int am_arrive(struct __sk_buff *skb, struct am_packet *p, struct am_endpoint *endpoint, u32 switches)
{
	struct am_role role = { .side = AM_SIDE_INGRESS };
	u32 reason, flags;
	int action;

	if (am_is_unencrypted(p, switches))
		return am_refuse(skb, p, &role, AM_REASON_UNENCRYPTED);
	if (endpoint) {
		role.subject = endpoint->identity;
		role.endpoint = endpoint->endpoint;
		reason = am_parse(skb, p);
		if (!reason)
			reason = am_check_scope(p);
		if (!reason)
			reason = am_fragment_ports(p, am_link_of(skb, p));
		if (reason)
			return am_refuse(skb, p, &role, reason);
	} else {
		if (am_locality_of(&p->source) == AM_LOCALITY_LOCAL)
			return am_refuse(skb, p, &role, AM_REASON_SPOOFED_ADDRESS);
		action = am_from_external(skb, p, &role);
		/* Of a tunnel the stack takes what is for the node itself, and forwards nothing. */
		if (action == AM_TO_STACK && p->tunnel && am_identity_of(&p->destination, &flags) != AM_IDENTITY_HOST)
			return am_refuse(skb, p, &role, AM_REASON_ENDPOINT_GONE);
		if (action != AM_TO_POD)
			return action;
		endpoint = am_local_endpoint(&p->destination);
		if (!endpoint)
			return am_refuse(skb, p, &role, AM_REASON_ENDPOINT_GONE);
	}
	return am_pass_to_endpoint(skb, p, endpoint, 1);
}

#endif
