/*
 * The tc programs. from_pod: what a pod sends. to_pod: what the node's stack sends to a pod. from_wire: what an uplink
 * receives. to_wire: what the node's stack sends through one. collect: conntrack's broom, run by the agent. See README.md
 * for how a packet travels.
 */
#include "generated.h"
#include "types.h"
#include "parse.h"
#include "policy.h"
#include "ct.h"
#include "drop.h"
#include "spoof.h"
#include "deliver.h"
#include "rewrite.h"
#include "nat.h"
#include "serve.h"

/* Judges a packet for the pod that is to receive it, and gives it to the pod. */
AM_INLINE int am_enter(struct __sk_buff *skb, const struct am_packet *p, struct am_endpoint *endpoint, u8 is_outer)
{
	struct am_role role = {
		.subject = endpoint->identity,
		.endpoint = endpoint->endpoint,
		.side = AM_SIDE_INGRESS,
		.is_outer = is_outer,
	};

	if (!am_pass(skb, p, &role))
		return TC_ACT_SHOT;
	return am_deliver(skb, endpoint);
}

/*
 * A pod's answer to a client of a Service: in the front's name again, straight to the uplink. Only in the pod's own flow:
 * the entry says whose it is.
 */
AM_INLINE int am_answer(struct __sk_buff *skb, struct am_packet *p, const struct am_role *role)
{
	struct am_work *w = am_work_of(p);

	if (!am_recall(w, AM_PLACE_POD) || w->entry.endpoint != role->endpoint)
		return am_refuse(skb, p, role, AM_REASON_TRANSLATION_UNKNOWN);
	if (am_rewrite(skb, p, w))
		return TC_ACT_SHOT;
	return am_send_on(skb, p, role);
}

int from_pod(struct __sk_buff *skb)
{
	struct am_link_key link_key = { .ifindex = skb->ifindex };
	struct am_link *link = am_links.lookup(&link_key);
	struct am_role role = { .side = AM_SIDE_EGRESS, .is_outer = 1 };
	struct am_packet *p = am_scratch_packet();
	struct am_endpoint *endpoint;
	struct am_eth eth = {};
	u32 reason;
	u8 to_node = 0;
	int passes;

	if (!p)
		return TC_ACT_SHOT;

	if (!link)
		return am_refuse(skb, p, &role, AM_REASON_LINK_UNKNOWN);
	role.subject = link->identity;
	role.endpoint = link->endpoint;
	if (am_read(skb, 0, &eth, sizeof(eth)))
		return am_refuse(skb, p, &role, AM_REASON_MALFORMED);
	if (!am_same_mac(eth.source, link->mac))
		return am_refuse(skb, p, &role, AM_REASON_SPOOFED_MAC);
	if (skb->vlan_present)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	if (eth.type == AM_ETH_ARP) {
		reason = am_check_arp(skb, link);
		return reason ? am_refuse(skb, p, &role, reason) : TC_ACT_OK;
	}
	if (eth.type != AM_ETH_IP && eth.type != AM_ETH_IP6)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	reason = am_parse_addresses(skb, p, eth.type);
	if (!reason)
		reason = am_parse(skb, p);
	if (!reason)
		reason = am_check_discovery(skb, p, link, &to_node);
	if (!reason && !to_node)
		reason = am_check_source(p, link);
	if (!reason)
		reason = am_join(p, skb->ifindex);
	if (reason == AM_CHATTER) {
		am_count(skb, AM_REASON_SPOOFED_NEIGHBOUR, AM_SIDE_EGRESS);
		return TC_ACT_SHOT;
	}
	if (reason)
		return am_refuse(skb, p, &role, reason);
	if (to_node)
		return TC_ACT_OK;
	passes = am_pass(skb, p, &role);
	switch (passes) {
	case 0:
		return TC_ACT_SHOT;
	case AM_PASSES_BACK:
		return am_answer(skb, p, &role);
	case AM_PASSES_TO_POD:
		return am_route(skb, p);
	case AM_PASSES_AWAY:
		return TC_ACT_OK;
	}
	endpoint = am_local(&p->destination);
	return endpoint ? am_enter(skb, p, endpoint, 0) : TC_ACT_OK;
}

int to_pod(struct __sk_buff *skb)
{
	struct am_link_key link_key = { .ifindex = skb->ifindex };
	struct am_link *link = am_links.lookup(&link_key);
	struct am_role role = { .side = AM_SIDE_INGRESS };
	u32 from = skb->ingress_ifindex;
	u8 is_ours = !from;
	struct am_packet *p = am_scratch_packet();
	u32 reason, flags;

	if (!p)
		return TC_ACT_SHOT;
	if (!link)
		return am_refuse(skb, p, &role, AM_REASON_LINK_UNKNOWN);
	role.subject = link->identity;
	role.endpoint = link->endpoint;
	if (skb->protocol == AM_ETH_ARP && is_ours)
		return TC_ACT_OK;
	if (skb->protocol != AM_ETH_IP && skb->protocol != AM_ETH_IP6)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	reason = am_parse_addresses(skb, p, skb->protocol);
	if (!reason)
		reason = am_parse(skb, p);
	if (!reason && !is_ours)
		reason = am_check_scope(p);
	if (!reason && !is_ours)
		reason = am_check_way(p, from, &role);
	if (!reason)
		reason = am_join(p, from);
	if (reason)
		return am_refuse(skb, p, &role, reason);
	/* The node's own neighbour discovery and multicast listening: no flow, nothing to track. */
	if (is_ours && p->protocol == AM_ICMP6 && p->icmp_type >= 130 && p->icmp_type <= 143)
		return TC_ACT_OK;
	/* What is not for the pod itself would be tracked as if it were. */
	if (!am_owns(link, &p->destination))
		return am_refuse(skb, p, &role, AM_REASON_ENDPOINT_GONE);
	role.from_host = is_ours && am_identity_of(&p->source, &flags) == AM_IDENTITY_HOST;
	return am_pass(skb, p, &role) ? TC_ACT_OK : TC_ACT_SHOT;
}

#define AM_TO_POD -1

/* What an uplink received for no pod of ours. Returns an action, or AM_TO_POD when it has become a pod's. */
AM_INLINE int am_from_outside(struct __sk_buff *skb, struct am_packet *p, const struct am_role *role)
{
	struct am_work *w = am_work_of(p);
	u32 reason;

	/* Whatever is not for us, not TCP or UDP, or cannot be read: the stack's, as if we were not here. */
	if (skb->pkt_type || am_parse(skb, p) || am_join(p, skb->ifindex))
		return TC_ACT_OK;
	if (p->flow.protocol != AM_TCP && p->flow.protocol != AM_UDP)
		return TC_ACT_OK;
	reason = am_serve(w);
	if (reason == AM_NOT_SERVED)
		return TC_ACT_OK;
	if (reason)
		return am_refuse(skb, p, role, reason);
	if (p->is_refused) /* told as a drop, but answered */
		am_refuse(skb, p, role, AM_REASON_SERVICE_NO_BACKEND);
	if (am_rewrite(skb, p, w))
		return TC_ACT_SHOT;
	if (w->entry.is_back || w->entry.partner == AM_PLACE_WIRE)
		return am_send_on(skb, p, role);
	if (w->entry.partner == AM_PLACE_POD)
		return AM_TO_POD;
	am_expect_answers();
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
	endpoint = am_local(&p->destination);
	if (endpoint) {
		role.subject = endpoint->identity;
		role.endpoint = endpoint->endpoint;
		reason = am_parse(skb, p);
		if (!reason)
			reason = am_check_scope(p);
		if (!reason)
			reason = am_join(p, skb->ifindex);
		if (reason)
			return am_refuse(skb, p, &role, reason);
	} else {
		if (am_at(&p->source) == AM_AT_HERE)
			return am_refuse(skb, p, &role, AM_REASON_SPOOFED_ADDRESS);
		action = am_from_outside(skb, p, &role);
		if (action != AM_TO_POD)
			return action;
		endpoint = am_local(&p->destination);
		if (!endpoint)
			return am_refuse(skb, p, &role, AM_REASON_ENDPOINT_GONE);
	}
	return am_enter(skb, p, endpoint, 1);
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
	u32 reason;

	if (from.ifindex ? am_links.lookup(&from) || am_uplinks.lookup(&from) : !am_expects_answers())
		return TC_ACT_OK;
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
	if (reason || am_parse(skb, p) || am_join(p, 0))
		return TC_ACT_OK;
	if ((p->flow.protocol != AM_TCP && p->flow.protocol != AM_UDP) || !am_recall(am_work_of(p), AM_PLACE_NODE))
		return TC_ACT_OK;
	return am_rewrite(skb, p, am_work_of(p)) ? TC_ACT_SHOT : TC_ACT_OK;
}

/* One entry to be collected: gone only if it has not been seen since the agent looked (0: whatever it is). */
struct am_condemned {
	struct am_flow_key key;
	u64 last_seen;
};
_Static_assert(sizeof(struct am_condemned) == 48, "core/conntrack.py packs this");

#define AM_FRAME_HEAD 16

/*
 * The "packet" is 16 bytes of head and an array of struct am_condemned, the return value how many went. Looking and deleting stand next to
 * each other here, so a packet that revives a flow between the agent's look and this has its way; what remains is the
 * few nanoseconds between the comparison and the delete.
 */
int collect(struct __sk_buff *skb)
{
	struct am_condemned c = {};
	u32 gone = 0, i;

	for (i = 0; i < AM_MAX_CONDEMNED; i++) {
		struct am_flow *flow;

		if (bpf_skb_load_bytes(skb, AM_FRAME_HEAD + i * sizeof(c), &c, sizeof(c)))
			break;
		flow = am_ct.lookup(&c.key);
		if (!flow || (c.last_seen && flow->last_seen != c.last_seen))
			continue;
		am_forget(&c.key, flow->endpoint);
		gone++;
	}
	return gone;
}
