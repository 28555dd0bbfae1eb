/*
 * The verdict on a packet for one endpoint, of conntrack and else of policy, counted and reported; included by
 * arrival.h and pod.c.
 *
 * A packet of another generation than its flow's is judged again, as the flow's first packet was: a right that was
 * taken away ends the flow (POLICY_REVOKED). Nothing passes untracked but answers that begin no flow (a reset, a
 * SYN-ACK, an ICMP error), which are judged each time.
 */
#ifndef AM_VERDICT_H
#define AM_VERDICT_H

#include "types.h"
#include "packet.h"
#include "endpoint.h"
#include "ipcache.h"
#include "policy.h"
#include "flow_state.h"
#include "conntrack.h"
#include "drop.h"
#include "refusal.h"
#include "dns.h"

/* Nobody out there has an address of this node or of its pods. */
AM_INLINE int am_is_spoofed(const struct am_role *role, struct am_verdict *verdict)
{
	if (!role->is_outer || role->side == AM_SIDE_EGRESS || verdict->locality != AM_LOCALITY_LOCAL)
		return 0;
	verdict->rule = AM_NO_RULE;
	verdict->reason = AM_REASON_SPOOFED_ADDRESS;
	return 1;
}

/* verdict->locality for a packet of a known flow (0: nobody has asked yet). An ICMP error may come from anybody on the way. */
AM_INLINE void am_flow_locality(const struct am_packet *p, const struct am_role *role, const struct am_flow_key *key, struct am_flow *flow, struct am_verdict *v)
{
	u64 known = flow->locality;

	if (known & 0xff && known >> 8 == v->generation)
		v->locality = known & 0xff;
	else
		v->locality = am_locality_of(&key->remote);
	if (!p->is_error)
		flow->locality = am_locality_word(v->generation, v->locality);
	/* Nobody outside is between two who are both here. */
	else if (role->side == AM_SIDE_INGRESS && v->locality != AM_LOCALITY_LOCAL)
		v->locality = am_locality_of(&p->source);
}

/* A packet of a flow that is known. */
AM_INLINE void am_known_flow(const struct am_packet *p, const struct am_role *role, struct am_flow_key *key, struct am_flow *flow, struct am_verdict *verdict)
{
	u8 is_reply = flow->side != role->side;
	u32 flags;

	if (role->is_outer)
		am_flow_locality(p, role, key, flow, verdict);
	if (am_is_spoofed(role, verdict))
		return;
	if (flow->generation != verdict->generation && !(flow->flags & AM_FLOW_HOST)) {
		verdict->peer = am_identity_of(&key->remote, &flags);
		am_evaluate_policy(role->subject, key, flow->side, verdict);
		if (verdict->reason) {
			/* The entry stays, to be judged again: without it an answer that is on its way would begin
			 * a flow of its own, of which the next packet would be the reply. It ages as any other. */
			verdict->reason = AM_REASON_POLICY_REVOKED;
			return;
		}
		if (!p->is_error)
			flow->generation = verdict->generation;
	}
	/* The same ports may be used by way of a Service and directly, one after the other. */
	if (!is_reply && !p->is_error && !(flow->flags & AM_FLOW_TRANSLATED) != !p->is_translated)
		flow->flags ^= AM_FLOW_TRANSLATED;
	if (is_reply && role->side == AM_SIDE_INGRESS && am_is_refusal(p, key, flow))
		am_note_refusal(key);
	verdict->is_back = is_reply && (flow->flags & AM_FLOW_TRANSLATED);
	verdict->reason = p->is_error ? 0 : am_ct_update(key, flow, p, is_reply, role->side == AM_SIDE_EGRESS);
	if (!verdict->reason)
		verdict->reason = is_reply ? AM_REASON_REPLY : AM_REASON_FORWARDED;
}

/* A packet of no flow that is known, or of one that is `over`: it may begin one. */
AM_INLINE void am_new_flow(const struct am_packet *p, const struct am_role *role, struct am_flow_key *key, struct am_flow *over, struct am_verdict *verdict)
{
	u64 peer = AM_IDENTITY_HOST;
	u32 flags = 0;

	if (over) { /* the same flow to policy, whose answer stands (am_ct_may_reuse) */
		if (role->is_outer)
			am_flow_locality(p, role, key, over, verdict);
		if (am_is_spoofed(role, verdict))
			return;
		verdict->rule = over->rule;
	} else {
		if (p->is_error) { /* about no flow of ours: a message like any other, but never the start of a flow */
			key->local = role->side == AM_SIDE_EGRESS ? p->source : p->destination;
			key->remote = role->side == AM_SIDE_EGRESS ? p->destination : p->source;
			key->protocol = p->protocol;
		}
		if (!role->from_host)
			peer = am_identity_of(&key->remote, &flags);
		if (role->is_outer)
			verdict->locality = am_peer_locality(&key->remote, peer, flags);
		if (am_is_spoofed(role, verdict))
			return;
		verdict->rule = AM_NO_RULE;
		verdict->peer = peer;
		verdict->reason = AM_REASON_FORWARDED;
		if (!role->from_host)
			am_evaluate_policy(role->subject, key, role->side, verdict);
		if (verdict->reason || p->is_error || !am_may_create(p))
			return;
	}
	verdict->reason = am_ct_create(key, over, p, role, verdict);
	verdict->is_new = 1;
}

/* Sets verdict->reason: FORWARDED or REPLY to let the packet through, else why not. */
AM_INLINE void am_find_verdict(const struct am_packet *p, const struct am_role *role, struct am_verdict *verdict)
{
	struct am_flow_key *key = &am_work_of(p)->flow_key;
	struct am_flow *flow;

	__builtin_memset(key, 0, sizeof(*key));
	/* Read before the maps are asked: a change in between leaves an entry that is judged again. */
	verdict->generation = am_generation_now();
	am_ct_key_of(&p->flow, role->side, key);
	/* An error is read, and no more: it may find a flow, but begins, keeps and ends none. */
	flow = p->is_error && !p->inner_l4 ? 0 : am_ct.lookup(key);
	if (flow && flow->endpoint == role->endpoint && !(am_is_syn(p) && am_is_closed(flow->seen))) {
		am_known_flow(p, role, key, flow, verdict);
		return;
	}
	/* An address that had another owner, or a new connection on the ports of one that is over. */
	if (flow && (p->is_error || !am_ct_may_reuse(flow, role, verdict->generation))) {
		if (!p->is_error)
			am_ct_delete(key, flow);
		flow = 0;
	}
	am_new_flow(p, role, key, flow, verdict);
}

#define AM_PASSES 1
#define AM_PASSES_REPLY 2 /* an answer that am_nat has a translation for */
#define AM_PASSES_AWAY 3 /* to somebody who is not of this node */
#define AM_PASSES_TO_POD 4 /* to a pod of another node */

/* Judges, counts and reports. Returns 0 unless the packet may go on. */
AM_INLINE int am_pass(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role)
{
	struct am_verdict *verdict = &am_work_of(p)->verdict;
	u64 is_reported;
	u32 flags;

	__builtin_memset(verdict, 0, sizeof(*verdict));
	am_find_verdict(p, role, verdict);
	verdict->reason = am_opaque(p, verdict->reason);
	am_count_packet(skb, verdict->reason, role->side);
	is_reported = verdict->reason > AM_REASON_REPLY || (verdict->is_new && am_switches() & AM_CONFIG_EMIT_FORWARDED);
	if (am_opaque(p, is_reported)) {
		if (verdict->is_new && !verdict->peer) { /* it followed another on its ports (am_ct_may_reuse) */
			verdict->peer = am_identity_of(&am_work_of(p)->flow_key.remote, &flags);
			verdict->policy = role->from_host ? 0 : am_policy_of(role->subject);
		}
		am_emit_event(skb, p, role, verdict);
	}
	if (verdict->reason > AM_REASON_REPLY)
		return 0;
	if (am_work_of(p)->flow_key.remote_port == bpf_htons(AM_DNS_PORT))
		am_measure_dns(skb, p, role);
	if (verdict->reason == AM_REASON_REPLY && role->side == AM_SIDE_EGRESS)
		skb->mark = AM_REPLY_MARK;
	if (verdict->is_back)
		return AM_PASSES_REPLY;
	switch (verdict->locality) {
	case AM_LOCALITY_REMOTE_POD:
		return AM_PASSES_TO_POD;
	case AM_LOCALITY_REMOTE:
		return AM_PASSES_AWAY;
	}
	return AM_PASSES;
}

/* Judges a packet for the pod that is to receive it, and gives it to the pod. */
AM_INLINE int am_pass_to_endpoint(struct __sk_buff *skb, const struct am_packet *p, struct am_endpoint *endpoint, u8 is_outer)
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

#endif
