/*
 * Pods' DNS as each pod sees it on its own link: queries out, answers in, what became of them and how long it took;
 * included by verdict.h.
 *
 * Messages (RFC 1035 4.1) over UDP, and over TCP where a segment begins with one (4.2.2): what follows it in the
 * segment, or what begins in an earlier one, is not read. Nothing here changes a packet or its verdict. Everything is
 * kept in the pod's own record (core/datapath/dns_layout.py), so a flood costs the figures of whoever sends it.
 */
#ifndef AM_DNS_H
#define AM_DNS_H

#include "types.h"
#include "packet.h"
#include "drop.h"

#define AM_DNS_HEAD 12
#define AM_DNS_QUESTION_END 4 /* type and class, after the name */
#define AM_DNS_NAME_BYTES (AM_DNS_NAME_WORDS * 8)
#define AM_DNS_RESPONSE 0x80 /* QR, of the first byte of flags */
#define AM_DNS_TC 0x02
#define AM_DNS_OPCODE 0x78
#define AM_DNS_RCODE 0x0f /* of the second */
#define AM_DNS_LAST_RCODE 5
#define AM_DNS_NOTHING 16 /* no outcome */
#define AM_EACH_BYTE(byte) (0x0101010101010101ull * (byte))

/* A message in am_work's dns_room, its name on a word. Past what was read stands what earlier messages left. */
struct am_dns_message {
	u32 size; /* bytes of it that were read */
	__be16 id;
	u8 flags[2];
	__be16 questions;
	__be16 answers;
	__be16 others[2];
	u64 name[AM_DNS_NAME_WORDS];
	u32 end;    /* bytes of the name, with the root's; AM_DNS_NAME_BYTES where it is longer than that */
	u16 type;   /* as on the wire */
	u16 hole;
	u64 digest; /* of name and type, whatever the case of letters */
};
_Static_assert(sizeof(struct am_dns_message) <= sizeof(((struct am_work *)0)->dns_room), "packet.h says how large");

/* A query in flight; asked is 0 where there is none. */
struct am_dns_cell {
	u64 tag; /* half of the digest, port and id of the client */
	u64 asked;
};
_Static_assert(sizeof(struct am_dns_cell) * AM_DNS_SETS * AM_DNS_WAYS == sizeof(((struct am_dns_pod *)0)->cells), "cells");

struct am_dns_sample {
	u32 number; /* counted from 1; 0 while it is being written */
	u32 end;
	u32 outcome;
	u16 type;
	u16 hole;
	u64 name[AM_DNS_NAME_WORDS];
};
_Static_assert(sizeof(struct am_dns_sample) * AM_DNS_SAMPLES == sizeof(((struct am_dns_pod *)0)->samples), "samples");

/* The top bit of the lowest byte that is zero, beside bits above it that mean nothing; 0 where no byte is. */
AM_INLINE u64 am_zero_byte(u64 word)
{
	return (word - AM_EACH_BYTE(1)) & ~word & AM_EACH_BYTE(0x80);
}

/* The message that a packet carries. Returns 0 where it carries none that can be read. */
AM_INLINE int am_dns_load(struct __sk_buff *skb, const struct am_packet *p, struct am_dns_message *message)
{
	u32 offset = p->l4 + 8, size = p->l4_len - 8;
	__be16 prefix;

	if (p->protocol == AM_TCP) {
		offset = p->l4 + p->l4_len - p->payload;
		if (p->payload <= 2 || bpf_skb_load_bytes(skb, offset, &prefix, 2))
			return 0;
		offset += 2;
		size = p->payload - 2;
		if (bpf_ntohs(prefix) < size)
			size = bpf_ntohs(prefix);
	}
	if (size > AM_DNS_HEAD + AM_DNS_NAME_BYTES)
		size = AM_DNS_HEAD + AM_DNS_NAME_BYTES;
	*(volatile u32 *)&message->size = size;
	size = *(volatile u32 *)&message->size & 127; /* what the verifier believes */
	if (size < AM_DNS_HEAD + 1 + AM_DNS_QUESTION_END)
		return 0;
	return !bpf_skb_load_bytes(skb, offset, &message->id, size) && !(message->flags[0] & AM_DNS_OPCODE) &&
	       message->questions == bpf_htons(1);
}

/* Finds the end of the name, and digests the question. Returns 0 where the message ends before the question does. */
AM_INLINE int am_dns_digest(struct am_dns_message *message)
{
	u64 digest = 0, word, zero;
	u32 i, end = AM_DNS_NAME_BYTES;

#pragma unroll
	for (i = 0; i < AM_DNS_NAME_WORDS; i++) {
		word = message->name[i];
		zero = am_zero_byte(word);
		zero &= -zero;
		if (zero) /* the root: the only label of no bytes */
			word &= zero - 1;
		digest = digest * 0x9E3779B97F4A7C15ull + (word | AM_EACH_BYTE(0x20));
		if (zero) {
			end = i * 8 + ((zero >> 7) * 0x0001020304050607ull >> 56) + 1;
			break;
		}
	}
	*(volatile u32 *)&message->end = end;
	*(volatile u64 *)&message->digest = digest;
	end = *(volatile u32 *)&message->end;
	digest = *(volatile u64 *)&message->digest;
	message->type = 0;
	if (end <= AM_DNS_NAME_BYTES - AM_DNS_QUESTION_END) {
		if (AM_DNS_HEAD + end + AM_DNS_QUESTION_END > message->size)
			return 0;
		message->type = *(u16 *)((u8 *)message->name + (end & 127));
	} else if (message->size != AM_DNS_HEAD + AM_DNS_NAME_BYTES) { /* its type was not read */
		return 0;
	}
	digest = (digest ^ message->type) * 0x9E3779B97F4A7C15ull;
	message->digest = digest ^ digest >> 29;
	return 1;
}

/* Keeps the question, for the agent to read. */
AM_INLINE void am_dns_keep_sample(struct am_dns_pod *pod, const struct am_dns_message *message, u32 outcome)
{
	u64 number = __sync_fetch_and_add(&pod->sampled, 1) + 1;
	struct am_dns_sample *sample = (struct am_dns_sample *)pod->samples + (number & (AM_DNS_SAMPLES - 1));

	*(volatile u32 *)&sample->number = 0;
	sample->type = message->type;
	sample->outcome = outcome;
	sample->end = message->end;
	__builtin_memcpy(sample->name, message->name, sizeof(sample->name));
	*(volatile u32 *)&sample->number = number;
}

AM_INLINE u64 am_dns_tag(const struct am_packet *p, const struct am_dns_message *message)
{
	u64 port = am_work_of(p)->flow_key.local_port;

	return (message->digest & 0xffffffff00000000ull) | port << 16 | message->id;
}

/* Slot of the cell with this tag; AM_DNS_WAYS: none has it. */
AM_INLINE u64 am_dns_slot_of(const struct am_packet *p, const struct am_dns_cell *cells, u64 tag)
{
	u64 i;

#pragma unroll
	for (i = 0; i < AM_DNS_WAYS; i++) {
		if (cells[i].tag == tag && cells[i].asked)
			break;
	}
	return am_opaque(p, i);
}

/* Slot of a free cell, else of the one that has waited longest, by four nanoseconds. */
AM_INLINE u64 am_dns_oldest(const struct am_dns_cell *cells)
{
	u64 least = ~0ull, i, ordered;

#pragma unroll
	for (i = 0; i < AM_DNS_WAYS; i++) {
		ordered = (cells[i].asked & -(u64)AM_DNS_WAYS) | i;
		if (ordered < least)
			least = ordered;
	}
	return least & (AM_DNS_WAYS - 1);
}

/* Does another one ask the same for so long that this is a retry? */
AM_INLINE int am_dns_is_again(const struct am_dns_cell *cells, u64 tag, u64 now)
{
	u64 asked, i;

#pragma unroll
	for (i = 0; i < AM_DNS_WAYS; i++) {
		asked = cells[i].asked;
		if ((cells[i].tag ^ tag) >> 32 || !asked)
			continue;
		if (now - asked - AM_DNS_RETRY_FROM < AM_DNS_RETRY_UNTIL - AM_DNS_RETRY_FROM) /* unsigned: both bounds */
			return 1;
	}
	return 0;
}

/* Has a query waited for too long? Another processor may have asked a moment after `now`. */
AM_INLINE int am_dns_is_over(u64 asked, u64 now)
{
	return (s64)(now - asked) >= (s64)AM_DNS_TIMEOUT;
}

/* A query that the pod sends: it takes a cell, or is one that has been sent before. Returns what there is to sample. */
AM_INLINE u64 am_dns_ask(const struct am_packet *p, struct am_dns_pod *pod, struct am_dns_cell *cells, u64 tag, u64 now)
{
	u64 same = am_dns_slot_of(p, cells, tag), is_same = same < AM_DNS_WAYS;
	u64 is_retry = am_opaque(p, is_same || am_dns_is_again(cells, tag, now));
	struct am_dns_cell *cell = cells + (am_opaque(p, is_same ? same : am_dns_oldest(cells)) & (AM_DNS_WAYS - 1));
	u64 asked = cell->asked;

	__sync_fetch_and_add(&pod->queries, 1);
	if (p->protocol == AM_TCP)
		__sync_fetch_and_add(&pod->tcp_queries, 1);
	if (is_retry)
		__sync_fetch_and_add(&pod->retries, 1);
	/* Sent again, it waits since its first try. */
	if (!is_same || am_dns_is_over(asked, now)) {
		if (asked)
			__sync_fetch_and_add(am_dns_is_over(asked, now) ? &pod->timeouts : &pod->displaced, 1);
		cell->tag = tag;
		cell->asked = now;
	}
	return is_retry ? AM_DNS_RETRIED : AM_DNS_NOTHING;
}

/* How many bits a number below 2^32 takes, without branches: which way one goes nobody could foresee. */
AM_INLINE u64 am_bit_length(u64 number)
{
	u64 length = 0, step;
	s64 by;

#pragma unroll
	for (by = 4; by >= 0; by--) {
		step = (((1ull << (1 << by)) - 1 - number) >> 63) << by;
		number >>= step;
		length += step;
	}
	return length + number;
}

/* AM_DNS_* of an answer. */
AM_INLINE u32 am_dns_outcome(const struct am_dns_message *message)
{
	u32 rcode = message->flags[1] & AM_DNS_RCODE;

	if (message->flags[0] & AM_DNS_TC)
		return AM_DNS_TRUNCATED;
	if (!rcode)
		return message->answers ? AM_DNS_USEFUL : AM_DNS_EMPTY;
	return rcode > AM_DNS_LAST_RCODE ? AM_DNS_OTHER : rcode + 1;
}

/* An answer that the pod gets: it frees its query's cell. Returns what there is to sample. */
AM_INLINE u64 am_dns_answer(const struct am_packet *p, struct am_dns_pod *pod, const struct am_dns_message *message, struct am_dns_cell *cells, u64 tag, u64 now)
{
	u64 slot = am_dns_slot_of(p, cells, tag), asked, outcome, at;
	struct am_dns_cell *cell = cells + (slot & (AM_DNS_WAYS - 1));
	s64 waited;

	asked = cell->asked;
	/* Of two copies of an answer one is the first. */
	if (slot >= AM_DNS_WAYS || !asked || __sync_val_compare_and_swap(&cell->asked, asked, 0) != asked) {
		__sync_fetch_and_add(&pod->unmatched, 1);
		return AM_DNS_NOTHING;
	}
	if (am_dns_is_over(asked, now)) {
		__sync_fetch_and_add(&pod->timeouts, 1);
		__sync_fetch_and_add(&pod->late, 1);
		return AM_DNS_NOTHING;
	}
	waited = now - asked;
	waited &= ~(waited >> 63);
	outcome = am_opaque(p, am_dns_outcome(message));
	at = outcome * AM_DNS_BUCKETS + am_bit_length((u64)waited >> AM_DNS_TICK_SHIFT);
	if (at < AM_DNS_OUTCOMES * AM_DNS_BUCKETS)
		__sync_fetch_and_add(&pod->answers[at], 1);
	return outcome;
}

/* The record of an endpoint; made for its first packet. 0 where there is no room. */
AM_INLINE struct am_dns_pod *am_dns_pod_of(u32 endpoint)
{
	struct am_endpoint_key key = { .endpoint = endpoint };
	struct am_dns_pod *blank, *pod = am_dns.lookup(&key);
	int zero = 0;

	if (pod)
		return pod;
	blank = am_dns_blank.lookup(&zero);
	if (!blank)
		return 0;
	am_dns.insert(&key, blank);
	return am_dns.lookup(&key);
}

/* Measures a packet between a pod and port 53 that has been let through. */
AM_INLINE void am_measure_dns(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role)
{
	struct am_dns_message *message = (struct am_dns_message *)am_work_of(p)->dns_room;
	struct am_dns_cell *cells;
	struct am_dns_pod *pod;
	u64 is_read, now, tag, outcome;

	if (!(am_switches() & AM_CONFIG_MEASURE_DNS) || p->is_error || !p->is_first)
		return;
	if (p->protocol != AM_UDP && (p->protocol != AM_TCP || !p->payload))
		return;
	pod = am_dns_pod_of(role->endpoint);
	if (!pod)
		return;
	is_read = am_opaque(p, am_dns_load(skb, p, message) && am_dns_digest(message));
	if (!is_read || !(message->flags[0] & AM_DNS_RESPONSE) != (role->side == AM_SIDE_EGRESS)) {
		__sync_fetch_and_add(&pod->unread, 1);
		return;
	}
	now = bpf_ktime_get_ns();
	tag = am_dns_tag(p, message);
	cells = (struct am_dns_cell *)pod->cells + (message->digest & (AM_DNS_SETS - 1)) * AM_DNS_WAYS;
	if (role->side == AM_SIDE_EGRESS)
		outcome = am_dns_ask(p, pod, cells, tag, now);
	else
		outcome = am_dns_answer(p, pod, message, cells, tag, now);
	outcome = am_opaque(p, outcome);
	if (outcome != AM_DNS_NOTHING)
		am_dns_keep_sample(pod, message, outcome);
}

#endif
