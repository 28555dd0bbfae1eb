/*
 * Drops, their counters (am_metrics) and events (am_events, for new flows too, if asked for); included by dns.h, verdict.h,
 * answer.h, forward.h, arrival.h, pod.c, uplink.c and tunnel.c.
 *
 * Events pass a token bucket per endpoint and reason on each processor; what it holds back is counted and reported with
 * the next event that goes out. A full ring buffer counts the same way. The packet never waits.
 */
#ifndef AM_DROP_H
#define AM_DROP_H

#include "types.h"
#include "packet.h"

AM_INLINE void am_count_packet(struct __sk_buff *skb, u32 reason, u8 side)
{
	u32 index = reason * 2 + side;
	struct am_metric *metric = am_metrics.lookup(&index);

	if (!metric)
		return;
	metric->packets += 1;
	metric->bytes += skb->len;
}

/* Takes a token. Returns the bucket, or 0 when there is none left (already counted). */
AM_INLINE struct am_throttle *am_token(const struct am_packet *p, u32 endpoint, u32 reason, const struct am_config *config)
{
	struct am_throttle_key *key = &am_work_of(p)->throttle_key;
	struct am_throttle *bucket, *fresh = &am_work_of(p)->throttle;
	u64 now = bpf_ktime_get_coarse_ns(), earned;

	key->endpoint = endpoint;
	key->reason = reason;
	bucket = am_throttle.lookup(key);
	if (!bucket) {
		fresh->last = now;
		fresh->tokens = config->events_burst;
		fresh->missed = 0;
		am_throttle.update(key, fresh);
		bucket = am_throttle.lookup(key);
		if (!bucket)
			return 0;
	}
	earned = (now - bucket->last) / 1000000 * config->events_per_second / 1000;
	if (earned) {
		earned += bucket->tokens;
		bucket->tokens = earned > config->events_burst ? config->events_burst : earned;
		bucket->last = now;
	}
	if (!bucket->tokens) {
		bucket->missed += 1;
		return 0;
	}
	bucket->tokens -= 1;
	return bucket;
}

AM_INLINE void am_emit_event(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role, const struct am_verdict *v)
{
	int zero = 0;
	struct am_config *config = am_config.lookup(&zero);
	struct am_throttle *bucket;
	struct am_event *event;

	if (!config)
		return;
	bucket = am_token(p, role->endpoint, v->reason, config);
	if (!bucket)
		return;
	event = am_events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		bucket->missed += 1;
		return;
	}
	event->time = bpf_ktime_get_ns();
	event->subject = role->subject;
	event->peer = v->peer;
	event->source = p->source;
	event->destination = p->destination;
	event->length = skb->len;
	event->ifindex = skb->ingress_ifindex; /* 0: the node itself */
	event->endpoint = role->endpoint;
	event->rule = v->rule;
	event->missed = bucket->missed;
	event->policy = v->policy;
	event->source_port = p->flow.source_port;
	event->destination_port = p->flow.destination_port;
	event->reason = v->reason;
	event->protocol = p->protocol;
	event->direction = role->side;
	bucket->missed = 0;
	am_events.ringbuf_submit(event, 0);
}

/* Drops, counts, reports. */
AM_INLINE int am_drop(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role, const struct am_verdict *v)
{
	am_count_packet(skb, v->reason, role->side);
	am_emit_event(skb, p, role, v);
	return TC_ACT_SHOT;
}

/* Drops for a reason that needs no policy. */
AM_INLINE int am_refuse(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role, u32 reason)
{
	struct am_verdict verdict = { .reason = reason, .rule = AM_NO_RULE };

	return am_drop(skb, p, role, &verdict);
}

/* AM_CONFIG_* */
AM_INLINE u32 am_switches(void)
{
	int zero = 0;
	struct am_config *config = am_config.lookup(&zero);

	return config ? config->flags : 0;
}

#endif
