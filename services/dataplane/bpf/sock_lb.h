/*
 * The load balancer of sockets: a Service's virtual address becomes a backend when a socket connects or sends, so that
 * no packet is rewritten, and becomes visible again when the application asks whom it talks to; included by sock.c.
 *
 * It acts in the network namespaces of am_cookies alone (nodes of a lab share one cgroup root; on a real node that is
 * right too). An AF_INET6 socket that talks to an IPv4-mapped address meets the v6 hooks on connect and receive but the
 * v4 hook on send; since every key is 16 bytes with IPv4 mapped, all of them find the same entries.
 *
 * What a socket that connects asked for is remembered where its cookie says (am_slots, am_sent), until it closes:
 * cookies are counted up, so that place is in the processor's cache and nobody else's. A hash fetches a bucket from far
 * away for every new socket, an LRU throws somebody out first. am_reverse, an LRU, is for those who send without
 * connecting (they may have many backends), and for those whose place a younger one took.
 */
#ifndef AM_SOCK_LB_H
#define AM_SOCK_LB_H

#include "types.h"
#include "address.h"
#include "packet.h"
#include "refusal.h"

#define AM_ALLOW 1
#define AM_REFUSE 0
#define AM_ECONNREFUSED 111

/* How long one UDP socket that never connects keeps its backend between two messages. */
#define AM_SOCKET_AFFINITY_NS (30ULL * 1000000000)

/* Stands in a slot instead of a cookie while its place is written. */
#define AM_SLOT_BUSY (~0ULL)

AM_INLINE struct am_cookie_mark *am_netns_mark(struct bpf_sock_addr *ctx)
{
	struct am_cookie_key key = { .cookie = bpf_get_netns_cookie(ctx) };

	return am_cookies.lookup(&key);
}

/*
 * A backend by chance; where it refused a moment ago another one, and where that did, too, the one after it. One that
 * hints have left out stands in for a single one (core/loadbalancer/endpoint_choice.py).
 */
AM_INLINE struct am_backend *am_backend_by_chance(const struct am_service *service, u8 protocol)
{
	struct am_backend_key key = { .service = service->number };
	u32 count = service->backends, first = bpf_get_prandom_u32() % count, other;
	struct am_backend *backend, *instead;

	key.index = first;
	backend = am_backends.lookup(&key);
	if (!backend || !am_refused_lately(&backend->address, backend->port, protocol))
		return backend;
	if (count < 2) {
		key.index = 1;
		instead = am_backends.lookup(&key);
		return instead ? instead : backend;
	}
	other = (first + 1 + bpf_get_prandom_u32() % (count - 1)) % count;
	key.index = other;
	instead = am_backends.lookup(&key);
	if (!instead || !am_refused_lately(&instead->address, instead->port, protocol))
		return instead ? instead : backend;
	key.index = (other + 1) % count;
	instead = am_backends.lookup(&key);
	return instead ? instead : backend;
}

/* The backend that a client had, if it serves still. Its time is set in place: an update of an LRU costs several
 * times as much. Should the entry become somebody else's at that moment, that one merely seems younger.
 */
AM_INLINE int am_affinity_of_socket(const struct am_affinity_key *key, u32 service, u64 now, u64 lifetime, struct am_target *target)
{
	struct am_affinity *had = am_affinity.lookup(key);
	struct am_member_key member = { .service = service };

	if (!had || now - had->last > lifetime)
		return 0;
	member.address = had->address;
	member.port = had->port;
	if (!am_members.lookup(&member)) /* it serves no longer */
		return 0;
	target->address = had->address;
	target->port = had->port;
	had->last = now;
	return 1;
}

AM_INLINE int am_choose_socket_backend(struct bpf_sock_addr *ctx, struct am_service *service, u8 per_message, struct am_target *target)
{
	struct am_affinity_key client = { .service = service->number };
	u64 now = 0, lifetime = 0;
	struct am_affinity fresh = {};
	struct am_backend *backend;

	if (service->affinity_seconds) {
		client.client = bpf_get_netns_cookie(ctx);
		client.kind = AM_AFFINITY_NAMESPACE;
		lifetime = service->affinity_seconds * 1000000000ULL;
	} else if (per_message) {
		client.client = bpf_get_socket_cookie(ctx);
		client.kind = AM_AFFINITY_SOCKET;
		lifetime = AM_SOCKET_AFFINITY_NS;
	}
	if (lifetime) {
		now = bpf_ktime_get_coarse_ns();
		if (am_affinity_of_socket(&client, service->number, now, lifetime, target) &&
		    (service->affinity_seconds || !am_refused_lately(&target->address, target->port, ctx->protocol)))
			return 1;
	}
	backend = am_backend_by_chance(service, ctx->protocol);
	if (!backend)
		return 0;
	target->address = backend->address;
	target->port = backend->port;
	if (lifetime) {
		fresh.last = now;
		fresh.address = target->address;
		fresh.port = target->port;
		am_affinity.update(&client, &fresh);
	}
	return 1;
}

/* Writes into the LRU what a socket asked for, unless it stands there: an update that changes nothing costs the same. */
AM_INLINE void am_reverse_insert(u64 socket, const struct am_target *backend, const struct am_target *virtual)
{
	struct am_reverse_key key = { .socket = socket };
	struct am_virtual value = {}, *had;

	key.address = backend->address;
	key.port = backend->port;
	had = am_reverse.lookup(&key);
	if (had && had->port == virtual->port && am_same_addr(&had->address, &virtual->address))
		return;
	value.address = virtual->address;
	value.port = virtual->port;
	am_reverse.update(&key, &value);
}

/*
 * Gives a socket its place in am_sent; returns 0 when it is being written for another at this moment. Whoever has it
 * moves to the LRU: it may live long, or have gone without a word (a subflow of MPTCP, the kernel's own socket), and the
 * newest are the likeliest to close soon. All writers hold a place by AM_SLOT_BUSY. One that connects again just as it is
 * moved may be noted with its former backend: getpeername then shows the backend.
 */
AM_INLINE int am_slot_claim(u64 socket, const struct am_target *backend, const struct am_target *virtual)
{
	u32 index = socket % AM_SLOTS;
	struct am_slot *slot = am_slots.lookup(&index);
	struct am_sent *sent = am_sent.lookup(&index);
	struct am_target its = {}, asked = {};
	u64 had;

	if (!slot || !sent)
		return 0;
	had = *(volatile u64 *)&slot->socket;
	if (had == AM_SLOT_BUSY)
		return 0;
	if (had && had != socket) {
		its.address = sent->address;
		its.port = sent->port;
		asked.address = sent->virtual;
		asked.port = sent->virtual_port;
		am_reverse_insert(had, &its, &asked);
	}
	if (__sync_val_compare_and_swap(&slot->socket, had, AM_SLOT_BUSY) != had)
		return 0;
	sent->address = backend->address;
	sent->port = backend->port;
	sent->virtual = virtual->address;
	sent->virtual_port = virtual->port;
	__sync_lock_test_and_set(&slot->socket, socket);
	return 1;
}

/* Rewrites *target from virtual to backend. Returns 0 to leave the socket alone, 1 when rewritten, -1 to refuse. */
AM_INLINE int am_translate(struct bpf_sock_addr *ctx, struct am_target *target, u8 per_message)
{
	struct am_service_key key = { .address = target->address, .port = target->port, .protocol = ctx->protocol };
	struct am_target virtual = *target;
	struct am_cookie_mark *mark;
	struct am_service *service;
	u64 socket;

	key.scope = AM_SCOPE_SOCKET;
	service = am_services.lookup(&key);
	if (!service)
		return 0;
	mark = am_netns_mark(ctx); /* after the service: most go elsewhere, and are spared it */
	if (!mark || ((service->flags & AM_SERVICE_NODE_ONLY) && !mark->node))
		return 0;
	if (!service->backends || !am_choose_socket_backend(ctx, service, per_message, target)) {
		bpf_set_retval(-AM_ECONNREFUSED);
		return -1;
	}
	socket = bpf_get_socket_cookie(ctx);
	if (per_message || !am_slot_claim(socket, target, &virtual))
		am_reverse_insert(socket, target, &virtual);
	return 1;
}

/* Rewrites *target from backend to virtual where this socket had been sent there. */
AM_INLINE int am_reverse_translate(struct bpf_sock_addr *ctx, struct am_target *target)
{
	struct am_reverse_key key = { .socket = bpf_get_socket_cookie(ctx) };
	u32 index = key.socket % AM_SLOTS;
	struct am_slot *slot = am_slots.lookup(&index);
	struct am_sent *sent = am_sent.lookup(&index);
	struct am_virtual *virtual;
	struct am_target asked;

	if (slot && sent && slot->socket == key.socket && sent->port == target->port &&
	    am_same_addr(&sent->address, &target->address)) {
		asked.address = sent->virtual;
		asked.port = sent->virtual_port;
		/* Still its own, so none of it was another's. */
		if (__sync_fetch_and_add(&slot->socket, 0) == key.socket) {
			*target = asked;
			return 1;
		}
	}
	key.address = target->address;
	key.port = target->port;
	virtual = am_reverse.lookup(&key);
	if (!virtual)
		return 0;
	target->address = virtual->address;
	target->port = virtual->port;
	return 1;
}

AM_INLINE void am_read4(struct bpf_sock_addr *ctx, struct am_target *target)
{
	am_map4(&target->address, ctx->user_ip4);
	target->port = ctx->user_port;
}

AM_INLINE void am_write4(struct bpf_sock_addr *ctx, const struct am_target *target)
{
	ctx->user_ip4 = target->address.word[3];
	ctx->user_port = target->port;
}

AM_INLINE void am_read6(struct bpf_sock_addr *ctx, struct am_target *target)
{
	target->address.word[0] = ctx->user_ip6[0];
	target->address.word[1] = ctx->user_ip6[1];
	target->address.word[2] = ctx->user_ip6[2];
	target->address.word[3] = ctx->user_ip6[3];
	target->port = ctx->user_port;
}

AM_INLINE void am_write6(struct bpf_sock_addr *ctx, const struct am_target *target)
{
	ctx->user_ip6[0] = target->address.word[0];
	ctx->user_ip6[1] = target->address.word[1];
	ctx->user_ip6[2] = target->address.word[2];
	ctx->user_ip6[3] = target->address.word[3];
	ctx->user_port = target->port;
}

AM_INLINE int am_to_backend4(struct bpf_sock_addr *ctx, u8 per_message)
{
	struct am_target target = {};
	int done;

	am_read4(ctx, &target);
	done = am_translate(ctx, &target, per_message);
	if (done < 0)
		return AM_REFUSE;
	if (!done)
		return AM_ALLOW;
	/* A v4 socket cannot reach a v6 backend: the agent gives a v4 address v4 backends, and this keeps it honest. */
	if (!am_is_mapped(&target.address))
		return AM_REFUSE;
	am_write4(ctx, &target);
	return AM_ALLOW;
}

AM_INLINE int am_to_backend6(struct bpf_sock_addr *ctx, u8 per_message)
{
	struct am_target target = {};
	int done;

	am_read6(ctx, &target);
	done = am_translate(ctx, &target, per_message);
	if (done < 0)
		return AM_REFUSE;
	if (done)
		am_write6(ctx, &target);
	return AM_ALLOW;
}

AM_INLINE int am_to_virtual4(struct bpf_sock_addr *ctx)
{
	struct am_target target = {};

	am_read4(ctx, &target);
	if (am_reverse_translate(ctx, &target))
		am_write4(ctx, &target);
	return AM_ALLOW;
}

AM_INLINE int am_to_virtual6(struct bpf_sock_addr *ctx)
{
	struct am_target target = {};

	am_read6(ctx, &target);
	if (am_reverse_translate(ctx, &target))
		am_write6(ctx, &target);
	return AM_ALLOW;
}

#endif
