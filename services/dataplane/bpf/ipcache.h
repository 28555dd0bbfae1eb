/*
 * The ipcache: address → identity of every pod and node, and whether who has it is on this node; included by verdict.h,
 * neighbour.h, spoof.h, nodeport.h, forward.h, arrival.h and pod.c.
 */
#ifndef AM_IPCACHE_H
#define AM_IPCACHE_H

#include "types.h"
#include "endpoint.h"

/* Whose an address is; a stranger is the world. */
AM_INLINE u64 am_identity_of(const struct am_addr *address, u32 *flags)
{
	struct am_prefix_key key = { .prefixlen = AM_ADDRESS_BITS, .address = *address };
	struct am_peer *peer = am_ipcache.lookup(&key);

	*flags = peer ? peer->flags : 0;
	return peer ? peer->identity : AM_IDENTITY_WORLD;
}

/* Where who has an address is, as an AM_AT_*; `identity` and `flags` as am_identity_of says them. */
AM_INLINE u8 am_peer_locality(const struct am_addr *address, u64 identity, u32 flags)
{
	if (identity == AM_IDENTITY_HOST || am_local_endpoint(address))
		return AM_LOCALITY_LOCAL;
	return flags & AM_IPCACHE_POD ? AM_LOCALITY_REMOTE_POD : AM_LOCALITY_REMOTE;
}

AM_INLINE u8 am_locality_of(const struct am_addr *address)
{
	u32 flags;
	u64 identity = am_identity_of(address, &flags);

	return am_peer_locality(address, identity, flags);
}

/* A pod, a node or an API server of the cluster has this address. */
AM_INLINE int am_is_in_cluster(const struct am_addr *address)
{
	u32 flags;

	return am_local_endpoint(address) || am_identity_of(address, &flags) != AM_IDENTITY_WORLD;
}

#endif
