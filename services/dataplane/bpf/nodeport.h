/*
 * Services for packets from outside: node ports, host ports, external and load-balancer addresses, over TCP and UDP;
 * included by arrival.h, uplink.c and tunnel.c.
 *
 * Three kinds of backend. A pod of this node sees the client's own address, and is judged for it. This node itself (a
 * hostNetwork pod) too: the packet goes up the stack, to_wire turns the answer back. Any other backend sees this node's
 * address, so that its answers come back here. A flow stays with its backend: TCP while it lives, UDP while the backend
 * serves. Only a first packet of TCP (SYN), or one of a flow that nobody remembers, chooses: the same backend on every
 * node, so a packet in the middle of a flow that had come by another node is for the pod that it was for there. Policy
 * judges it as the first of its flow.
 */
#ifndef AM_NODEPORT_H
#define AM_NODEPORT_H

#include "types.h"
#include "address.h"
#include "packet.h"
#include "endpoint.h"
#include "ipcache.h"
#include "flow_state.h"
#include "nat.h"
#include "lb.h"

/* Not a reason: not for us, the stack knows what to do. */
#define AM_NO_SERVICE 0x200

/* The known flow must choose again. `service` may be 0: its frontend is gone, but the flow lives. */
AM_INLINE int am_is_stale(struct am_work *w, struct am_service *service)
{
	const struct am_packet *p = &w->packet;
	struct am_endpoint *endpoint;

	if (w->entry.is_back || p->is_error)
		return 0;
	if (w->entry.partner == AM_HOOK_POD) {
		endpoint = am_local_endpoint(&w->entry.destination);
		if (!endpoint || endpoint->endpoint != w->entry.endpoint)
			return 1;
	}
	if (!service)
		return 0;
	if (p->protocol == AM_TCP) {
		if (!am_is_syn(p))
			return 0;
		if (w->entry.seen & (AM_SEEN_FIN_ORIGINAL | AM_SEEN_FIN_REPLY | AM_SEEN_RESET))
			return 1;
		if (w->entry.seen & AM_SEEN_REPLY)
			return 0;
	} else if (am_nat_expired(&w->entry)) {
		return 1;
	}
	return w->entry.service != service->number ||
	       !am_is_backend(service->number, &w->entry.destination, w->entry.destination_port);
}

/* In whose name this node speaks for the client: as whom the client knows it, or as the agent says. */
AM_INLINE int am_choose_snat_address(struct am_work *w)
{
	u32 flags;

	w->entry.source = w->packet.destination;
	return am_identity_of(&w->packet.destination, &flags) == AM_IDENTITY_HOST || am_own_address(w->packet.family, &w->entry.source);
}

/* Makes w->entry lead the packet to w->target, as if that were this node itself. */
AM_INLINE void am_set_dnat(struct am_work *w, u32 service)
{
	w->entry.last_seen = bpf_ktime_get_coarse_ns();
	w->entry.source = w->packet.source;
	w->entry.source_port = w->packet.flow.source_port;
	w->entry.destination = w->target.address;
	w->entry.destination_port = w->target.port;
	w->entry.service = service;
	w->entry.endpoint = 0;
	w->entry.is_back = 0;
	w->entry.seen = am_see_first(&w->packet, 0, (struct am_reach *)&w->entry.sent);
	w->entry.hole = 0;
	w->entry.cell = 0;
	w->entry.period = am_idle_seconds(w->packet.protocol, w->entry.seen);
	w->entry.partner = AM_HOOK_NODE;
}

/*
 * Without backends: a reason to drop, or the stack. For an address that is not the node's own the node's stack refuses
 * all the same: sent to port 0 of the node, where nobody can listen, the packet is answered by a reset or an ICMP error,
 * and to_wire says that in the frontend's name.
 */
AM_INLINE u32 am_no_backend(struct am_work *w, const struct am_service *service)
{
	if (service->flags & AM_SERVICE_LOCAL_ONLY)
		return AM_REASON_SERVICE_NO_LOCAL_BACKEND;
	if (!(service->flags & AM_SERVICE_FOREIGN))
		return AM_NO_SERVICE;
	if (!am_own_address(w->packet.family, &w->target.address))
		return AM_REASON_SERVICE_NO_BACKEND;
	w->target.port = 0;
	w->packet.is_refused = 1;
	return 0;
}

/* Chooses a backend for the packet in w->key and remembers it. */
AM_INLINE u32 am_nodeport_new(struct am_work *w, struct am_service *service)
{
	const struct am_packet *p = &w->packet;
	struct am_endpoint *endpoint;
	u32 flags, reason;

	if (!am_choose_backend(w, service)) {
		reason = am_no_backend(w, service);
		if (reason)
			return reason;
	}
	if (am_same_addr(&w->target.address, &p->destination) && w->target.port == p->flow.destination_port)
		return AM_NO_SERVICE; /* the frontend is its own backend: nothing to translate */
	am_set_dnat(w, service->number);
	endpoint = am_local_endpoint(&w->target.address);
	if (endpoint) {
		w->entry.partner = AM_HOOK_POD;
		w->entry.endpoint = endpoint->endpoint;
	} else if (am_identity_of(&w->target.address, &flags) != AM_IDENTITY_HOST) {
		w->entry.partner = AM_HOOK_WIRE;
		if (service->flags & AM_SERVICE_LOCAL_ONLY)
			return AM_REASON_SERVICE_NO_LOCAL_BACKEND;
		if (!am_choose_snat_address(w))
			return AM_REASON_SERVICE_NO_SOURCE;
	}
	return am_nat_create(w);
}

/*
 * What is to become of a packet that an uplink received and that is for no pod: fills w->entry and returns 0, or returns
 * AM_NO_SERVICE, or an AM_REASON_* to drop it for.
 */
AM_INLINE u32 am_nodeport(struct am_work *w)
{
	const struct am_packet *p = &w->packet;
	struct am_service *service = p->is_error ? 0 : am_frontend_of(p);
	u8 known;

	if (service && !am_is_source_allowed(p, service))
		return AM_REASON_SERVICE_SOURCE;
	/* What no service is asked for may still belong to a flow: an answer to one of our ports, TCP in the middle. */
	if (service || p->is_error)
		known = 1;
	else if (p->protocol == AM_TCP)
		known = !am_is_syn(p);
	else
		known = bpf_ntohs(p->flow.destination_port) >= AM_FIRST_PORT;
	if (!known)
		return AM_NO_SERVICE;
	if (am_nat_lookup(w, AM_HOOK_WIRE)) {
		if (!am_is_stale(w, service))
			return 0;
		am_nat_delete(w);
	}
	return service ? am_nodeport_new(w, service) : AM_NO_SERVICE;
}

/* A backend of this node's own network is in use: to_wire has work to do. */
AM_INLINE void am_expect_host_replies(void)
{
	int zero = 0;
	struct am_outward *outward = am_outward.lookup(&zero);
	u64 now = bpf_ktime_get_coarse_ns();

	if (outward && now - outward->last_node_flow > AM_REFRESH_NS)
		outward->last_node_flow = now;
}

AM_INLINE int am_expects_host_replies(void)
{
	int zero = 0;
	struct am_outward *outward = am_outward.lookup(&zero);

	return outward && outward->last_node_flow &&
	       bpf_ktime_get_coarse_ns() - outward->last_node_flow < AM_TCP_ESTABLISHED_SECONDS * 1000000000ULL;
}

#endif
