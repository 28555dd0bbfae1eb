/*
 * The tc programs of an uplink: from_wire judges what it receives, to_wire what the node's stack sends through it. See
 * README.md for how a packet travels.
 */
#include "types.h"
#include "packet.h"
#include "parse.h"
#include "fragment.h"
#include "endpoint.h"
#include "drop.h"
#include "spoof.h"
#include "rewrite.h"
#include "nat.h"
#include "nodeport.h"
#include "decap.h"
#include "arrival.h"

int from_wire(struct __sk_buff *skb)
{
	struct am_role role = { .side = AM_SIDE_INGRESS };
	struct am_packet *p = am_scratch_packet();
	struct am_endpoint *endpoint;
	u32 reason, switches = am_switches();
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
	if (!endpoint && switches & AM_CONFIG_TUNNELS) {
		reason = am_decapsulate(skb, p);
		if (reason)
			return am_refuse(skb, p, &role, reason);
		if (p->tunnel)
			endpoint = am_local_endpoint(&p->destination);
	}
	action = am_arrive(skb, p, endpoint, am_opaque(p, switches));
	if (action != AM_TO_STACK)
		return action;
	if (!p->tunnel)
		return TC_ACT_OK;
	/* As the tunnel's device would have received it: from_tunnel knows it by the mark. */
	skb->mark = AM_TUNNEL_MARK;
	return bpf_redirect(p->tunnel, BPF_F_INGRESS);
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
	u8 answers = 0, known;
	u32 reason, encrypts;

	/* A program of this node has judged it, encryption included, and no socket can say so. */
	if (skb->mark == AM_SENT_MARK && from.ifindex) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	encrypts = am_switches() & (AM_CONFIG_ENCRYPT4 | AM_CONFIG_ENCRYPT6);
	if (from.ifindex) {
		known = am_is_known_way(&from);
	} else {
		answers = am_expects_host_replies();
		known = !answers && skb->sk;
	}
	if (known && !encrypts)
		return TC_ACT_OK;
	if (am_is_tagged(skb) || (skb->protocol != AM_ETH_IP && skb->protocol != AM_ETH_IP6))
		return TC_ACT_OK;
	p = am_scratch_packet();
	if (!p)
		return TC_ACT_SHOT;
	reason = am_parse_addresses(skb, p, skb->protocol);
	if (!reason && am_leaks(p, encrypts))
		return am_refuse(skb, p, &role, AM_REASON_UNENCRYPTED);
	if (known)
		return TC_ACT_OK;
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
