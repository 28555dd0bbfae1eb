/*
 * The endpoints of this node (am_links by interface, am_endpoints by address): whose an address is, and local delivery;
 * included by ipcache.h, verdict.h, neighbour.h, spoof.h, nodeport.h, answer.h, forward.h, arrival.h, pod.c, uplink.c
 * and tunnel.c.
 */
#ifndef AM_ENDPOINT_H
#define AM_ENDPOINT_H

#include "types.h"
#include "address.h"

AM_INLINE struct am_endpoint *am_local_endpoint(const struct am_addr *address)
{
	struct am_address_key key = { .address = *address };

	return am_endpoints.lookup(&key);
}

/* The source is one of the link's own. A link without a family has zeros there, which no packet may claim. */
AM_INLINE int am_has_address(const struct am_link *link, const struct am_addr *address)
{
	if (am_is_unspecified(address))
		return 0;
	return am_same_addr(address, &link->address4) || am_same_addr(address, &link->address6);
}

/* In whose name this node speaks where the frontend's address is not its own. Returns 0 when it has none. */
AM_INLINE int am_own_address(u8 family, struct am_addr *address)
{
	int zero = 0;
	struct am_node_addresses *own = am_own.lookup(&zero);

	if (!own)
		return 0;
	*address = family == 4 ? own->address4 : own->address6;
	return !am_is_unspecified(address);
}

/* Into the pod's namespace, past its host veth: whoever calls this has judged the pod's ingress. */
AM_INLINE int am_deliver(struct __sk_buff *skb, struct am_endpoint *endpoint)
{
	u8 macs[12];

	__builtin_memcpy(macs, endpoint->mac, 6);
	__builtin_memcpy(macs + 6, endpoint->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

#endif
