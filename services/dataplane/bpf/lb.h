/*
 * The load balancer's tables: the frontend that a packet is for (am_services), the sources that may use it
 * (am_src_ranges), its backends (am_backends, am_members), and the choice of one; included by nodeport.h.
 *
 * A flow's backend is the same on every node: by its hash, of backends that stand in one order everywhere. So a router
 * outside that sends the flow to another node (ECMP, one node less) changes nothing of the choice. The hash is SipHash-1-3
 * with a key of the cluster (am_choice): who does not know it cannot aim at one backend by the ports that he takes.
 */
#ifndef AM_LB_H
#define AM_LB_H

#include "types.h"
#include "address.h"
#include "packet.h"

AM_INLINE struct am_service *am_frontend_of(const struct am_packet *p)
{
	struct am_service_key key = {
		.address = p->destination,
		.port = p->flow.destination_port,
		.protocol = p->protocol,
		.scope = AM_SCOPE_PACKET,
	};

	return am_services.lookup(&key);
}

AM_INLINE int am_is_source_allowed(const struct am_packet *p, const struct am_service *service)
{
	struct am_source_range_key key = {
		.prefixlen = 32 + AM_ADDRESS_BITS,
		.service = service->number,
		.address = p->source,
	};

	return !(service->flags & AM_SERVICE_SOURCE_RANGES) || am_src_ranges.lookup(&key);
}

AM_INLINE int am_is_backend(u32 service, const struct am_addr *address, __be16 port)
{
	struct am_member_key member = { .service = service, .address = *address, .port = port };

	return am_members.lookup(&member) != 0;
}

AM_INLINE int am_affinity_of_client(struct am_work *w, const struct am_client_key *client, const struct am_service *service)
{
	struct am_affinity *had = am_clients.lookup(client);
	s64 age;

	if (!had)
		return 0;
	age = bpf_ktime_get_coarse_ns() - had->last;
	if (age > (s64)(service->affinity_seconds * 1000000000ULL))
		return 0;
	w->target.address = had->address;
	w->target.port = had->port;
	return am_is_backend(service->number, &w->target.address, w->target.port);
}

#define AM_ROTATE(word, bits) ((word) << (bits) | (word) >> (64 - (bits)))

/* One round of SipHash (Aumasson, Bernstein: SipHash, a fast short-input PRF, 2012). */
#define AM_SIP_ROUND(v) do { \
	v[0] += v[1]; v[1] = AM_ROTATE(v[1], 13) ^ v[0]; v[0] = AM_ROTATE(v[0], 32); \
	v[2] += v[3]; v[3] = AM_ROTATE(v[3], 16) ^ v[2]; \
	v[0] += v[3]; v[3] = AM_ROTATE(v[3], 21) ^ v[0]; \
	v[2] += v[1]; v[1] = AM_ROTATE(v[1], 17) ^ v[2]; v[2] = AM_ROTATE(v[2], 32); \
} while (0)

AM_INLINE void am_sip_word(u64 *v, u64 word)
{
	v[3] ^= word;
	AM_SIP_ROUND(v);
	v[0] ^= word;
}

/*
 * The flow's hash, over 21 bytes: the client's address, both ports and the protocol. `of_client`: with 0 for the client's
 * port. The last five stand in one word with the length.
 */
AM_INLINE u64 am_choice_hash(const struct am_tuple *flow, u64 of_client)
{
	int zero = 0;
	struct am_choice_key *key = am_choice.lookup(&zero);
	u64 v[4], port;

	if (!key)
		return 0;
	v[0] = key->first ^ 0x736f6d6570736575ULL;
	v[1] = key->second ^ 0x646f72616e646f6dULL;
	v[2] = key->first ^ 0x6c7967656e657261ULL;
	v[3] = key->second ^ 0x7465646279746573ULL;
	port = flow->source_port * ((of_client - 1) >> 63); /* without a branch: what follows is walked for each */
	am_sip_word(v, (u64)flow->source.word[1] << 32 | flow->source.word[0]);
	am_sip_word(v, (u64)flow->source.word[3] << 32 | flow->source.word[2]);
	am_sip_word(v, port | (u64)flow->destination_port << 16 | (u64)flow->protocol << 32 | 21ULL << 56);
	v[2] ^= 0xff;
	AM_SIP_ROUND(v);
	AM_SIP_ROUND(v);
	AM_SIP_ROUND(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* Fills w->target. Returns 0 when there is nobody. A client that keeps its backend has the same on every node. */
AM_INLINE int am_choose_backend(struct am_work *w, const struct am_service *service)
{
	struct am_client_key client = { .address = w->packet.source, .service = service->number };
	struct am_backend_key key = { .service = service->number };
	struct am_affinity fresh = {};
	struct am_backend *backend;

	if (!service->backends)
		return 0;
	/* Before what differs, so that it is walked once. */
	key.index = (am_choice_hash(&w->packet.flow, service->affinity_seconds) >> 32) * service->backends >> 32;
	if (!service->affinity_seconds || !am_affinity_of_client(w, &client, service)) {
		backend = am_backends.lookup(&key);
		if (!backend)
			return 0;
		w->target.address = backend->address;
		w->target.port = backend->port;
	}
	if (service->affinity_seconds) {
		fresh.last = bpf_ktime_get_coarse_ns();
		fresh.address = w->target.address;
		fresh.port = w->target.port;
		am_clients.update(&client, &fresh);
	}
	return am_is_mapped(&w->target.address) == (w->packet.family == 4);
}

#endif
