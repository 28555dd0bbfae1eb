/*
 * The tc programs of an uplink: from_wire judges what it receives, to_wire what the node's stack sends through it. See
 * README.md for how a packet travels.
 */
#include "types.h"
#include "packet.h"
#include "parse.h"
#include "fragment.h"
#include "endpoint.h"
#include "ipcache.h"
#include "drop.h"
#include "verdict.h"
#include "spoof.h"
#include "fib.h"
#include "rewrite.h"
#include "nat.h"
#include "nodeport.h"

#define AM_TO_POD -1

/* What an uplink received for no pod of ours. Returns an action, or AM_TO_POD when it has become a pod's. */
AM_INLINE int am_from_external(struct __sk_buff *skb, struct am_packet *p, const struct am_role *role)
{
	struct am_work *w = am_work_of(p);
	u32 reason;

	/* Whatever is not for us, not TCP or UDP, or cannot be read: the stack's, as if we were not here. */
	if (skb->pkt_type || am_parse(skb, p) || am_fragment_ports(p, skb->ifindex))
		return TC_ACT_OK;
	if (p->flow.protocol != AM_TCP && p->flow.protocol != AM_UDP)
		return TC_ACT_OK;
	reason = am_nodeport(w);
	if (reason == AM_NO_SERVICE)
		return TC_ACT_OK;
	if (reason)
		return am_refuse(skb, p, role, reason);
	if (p->is_refused) /* reported as a drop, but answered */
		am_refuse(skb, p, role, AM_REASON_SERVICE_NO_BACKEND);
	if (am_rewrite(skb, p, w))
		return TC_ACT_SHOT;
	if (w->entry.is_back || w->entry.partner == AM_HOOK_WIRE)
		return am_forward_translated(skb, p, role);
	if (w->entry.partner == AM_HOOK_POD)
		return AM_TO_POD;
	am_expect_host_replies();
	return TC_ACT_OK;
}

int from_wire(struct __sk_buff *skb)
{
	struct am_role role = { .side = AM_SIDE_INGRESS };
	struct am_packet *p = am_scratch_packet();
	struct am_endpoint *endpoint;
	u32 reason;
	int action;

	if (!p)
		return TC_ACT_SHOT;
	if (am_is_tagged(skb))
		return TC_ACT_OK;
	/* A tag behind a priority tag: the stack would look behind that one too. */
	if (skb->protocol == AM_ETH_VLAN || skb->protocol == AM_ETH_QINQ)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	if (skb->protocol != AM_ETH_IP && skb->protocol != AM_ETH_IP6)
		return TC_ACT_OK;
	reason = am_parse_addresses(skb, p, skb->protocol);
	if (reason)
		return am_refuse(skb, p, &role, reason);
	endpoint = am_local_endpoint(&p->destination);
	if (endpoint) {
		role.subject = endpoint->identity;
		role.endpoint = endpoint->endpoint;
		reason = am_parse(skb, p);
		if (!reason)
			reason = am_check_scope(p);
		if (!reason)
			reason = am_fragment_ports(p, skb->ifindex);
		if (reason)
			return am_refuse(skb, p, &role, reason);
	} else {
		if (am_locality_of(&p->source) == AM_LOCALITY_LOCAL)
			return am_refuse(skb, p, &role, AM_REASON_SPOOFED_ADDRESS);
		action = am_from_external(skb, p, &role);
		if (action != AM_TO_POD)
			return action;
		endpoint = am_local_endpoint(&p->destination);
		if (!endpoint)
			return am_refuse(skb, p, &role, AM_REASON_ENDPOINT_GONE);
	}
	return am_pass_to_endpoint(skb, p, endpoint, 1);
}

/*
 * What leaves by an uplink. Only the node's own stack answers for backends of the node's own network; what was received
 * somewhere (a pod's packet, a forwarded one) is none of that, but must not go out in a name that is not its own.
 */
int to_wire(struct __sk_buff *skb)
{
	struct am_link_key from = { .ifindex = skb->ingress_ifindex };
	struct am_role role = { .side = AM_SIDE_INGRESS };
	struct am_packet *p;
	u8 answers = 0;
	u32 reason;

	if (from.ifindex) {
		if (am_links.lookup(&from) || am_uplinks.lookup(&from))
			return TC_ACT_OK;
	} else {
		answers = am_expects_host_replies();
		if (!answers && skb->sk)
			return TC_ACT_OK;
	}
	if (am_is_tagged(skb) || (skb->protocol != AM_ETH_IP && skb->protocol != AM_ETH_IP6))
		return TC_ACT_OK;
	p = am_scratch_packet();
	if (!p)
		return TC_ACT_SHOT;
	reason = am_parse_addresses(skb, p, skb->protocol);
	if (from.ifindex) {
		if (!reason)
			reason = am_check_forwarded(p);
		return reason ? am_refuse(skb, p, &role, reason) : TC_ACT_OK;
	}
	if (reason || am_parse(skb, p))
		return TC_ACT_OK;
	if (am_is_orphan_fragment(skb, p)) {
		reason = am_check_orphan_fragment(p);
		return reason ? am_refuse(skb, p, &role, reason) : TC_ACT_OK;
	}
	if (!answers || am_fragment_ports(p, 0))
		return TC_ACT_OK;
	if ((p->flow.protocol != AM_TCP && p->flow.protocol != AM_UDP) || !am_nat_lookup(am_work_of(p), AM_HOOK_NODE))
		return TC_ACT_OK;
	return am_rewrite(skb, p, am_work_of(p)) ? TC_ACT_SHOT : TC_ACT_OK;
}
