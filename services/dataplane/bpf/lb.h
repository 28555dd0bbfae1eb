/*
 * The load balancer's tables: the frontend that a packet is for (am_services), the sources that may use it
 * (am_src_ranges), its backends (am_backends, am_members), and the choice of one; included by nodeport.h.
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

/* Fills w->target. Returns 0 when there is nobody. */
AM_INLINE int am_choose_backend(struct am_work *w, const struct am_service *service)
{
	struct am_client_key client = { .address = w->packet.source, .service = service->number };
	struct am_backend_key key = { .service = service->number };
	struct am_affinity fresh = {};
	struct am_backend *backend;

	if (!service->backends)
		return 0;
	if (!service->affinity_seconds || !am_affinity_of_client(w, &client, service)) {
		key.index = bpf_get_prandom_u32() % service->backends;
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
