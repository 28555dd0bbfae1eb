/*
 * The tc programs of a pod's host veth: from_pod judges what the pod sends, to_pod what the node's stack sends to it.
 * See README.md for how a packet travels.
 */
#include "types.h"
#include "address.h"
#include "packet.h"
#include "parse.h"
#include "fragment.h"
#include "endpoint.h"
#include "ipcache.h"
#include "drop.h"
#include "verdict.h"
#include "neighbour.h"
#include "spoof.h"
#include "nat.h"
#include "forward.h"

/*
 * A pod's answer to a client of a Service: with the frontend's address as its source, straight to the uplink. Only in the
 * pod's own flow: the entry says whose it is.
 */
AM_INLINE int am_is_reply_to_client(const struct am_packet *p, const struct am_role *role)
{
	struct am_work *w = am_work_of(p);

	return am_nat_lookup(w, AM_HOOK_POD) && w->entry.endpoint == role->endpoint;
}

/* Another node has this address, and packets for it go by a tunnel. */
AM_INLINE int am_goes_by_tunnel(const struct am_addr *destination)
{
	struct am_address_key key = { .address = *destination };
	struct am_tunnel_peer *peer;

	if (!(am_switches() & AM_CONFIG_TUNNELS))
		return 0;
	peer = am_tunnel_peers.lookup(&key);
	return peer && peer->ifindex;
}

int from_pod(struct __sk_buff *skb)
{
	struct am_link_key link_key = { .ifindex = skb->ifindex };
	struct am_link *link = am_links.lookup(&link_key);
	struct am_role role = { .side = AM_SIDE_EGRESS, .is_outer = 1 };
	struct am_packet *p = am_scratch_packet();
	struct am_endpoint *endpoint;
	struct am_eth eth = {};
	u32 reason;
	u8 to_node = 0;
	u64 way = AM_WAY_POD;

	if (!p)
		return TC_ACT_SHOT;

	if (!link)
		return am_refuse(skb, p, &role, AM_REASON_LINK_UNKNOWN);
	role.subject = link->identity;
	role.endpoint = link->endpoint;
	if (am_read(skb, 0, &eth, sizeof(eth)))
		return am_refuse(skb, p, &role, AM_REASON_MALFORMED);
	if (!am_same_mac(eth.source, link->mac))
		return am_refuse(skb, p, &role, AM_REASON_SPOOFED_MAC);
	if (skb->vlan_present)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	if (eth.type == AM_ETH_ARP) {
		reason = am_check_arp(skb, link);
		return reason ? am_refuse(skb, p, &role, reason) : TC_ACT_OK;
	}
	if (eth.type != AM_ETH_IP && eth.type != AM_ETH_IP6)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	reason = am_parse_addresses(skb, p, eth.type);
	if (!reason)
		reason = am_parse(skb, p);
	if (!reason)
		reason = am_check_discovery(skb, p, link, &to_node);
	if (!reason && !to_node)
		reason = am_check_source(p, link);
	if (!reason)
		reason = am_fragment_ports(p, skb->ifindex);
	if (reason == AM_SILENT_DROP) {
		am_count_packet(skb, AM_REASON_SPOOFED_NEIGHBOUR, AM_SIDE_EGRESS);
		return TC_ACT_SHOT;
	}
	if (reason)
		return am_refuse(skb, p, &role, reason);
	if (to_node)
		return TC_ACT_OK;
	switch (am_pass(skb, p, &role)) {
	case 0:
		return TC_ACT_SHOT;
	case AM_PASSES_REPLY:
		if (!am_is_reply_to_client(p, &role))
			return am_refuse(skb, p, &role, AM_REASON_TRANSLATION_UNKNOWN);
		way = AM_WAY_TRANSLATED;
		break;
	case AM_PASSES_TO_POD:
		break;
	case AM_PASSES_AWAY:
		if (!am_goes_by_tunnel(&p->destination))
			return TC_ACT_OK;
		way = AM_WAY_NODE;
		break;
	default:
		endpoint = am_local_endpoint(&p->destination);
		return endpoint ? am_pass_to_endpoint(skb, p, endpoint, 0) : TC_ACT_OK;
	}
	return am_forward(skb, p, &role, way);
}

int to_pod(struct __sk_buff *skb)
{
	struct am_link_key link_key = { .ifindex = skb->ifindex };
	struct am_link *link = am_links.lookup(&link_key);
	struct am_role role = { .side = AM_SIDE_INGRESS };
	u32 from = skb->ingress_ifindex;
	u8 is_ours = !from;
	struct am_packet *p = am_scratch_packet();
	u32 reason, flags;

	if (!p)
		return TC_ACT_SHOT;
	if (!link)
		return am_refuse(skb, p, &role, AM_REASON_LINK_UNKNOWN);
	role.subject = link->identity;
	role.endpoint = link->endpoint;
	if (skb->protocol == AM_ETH_ARP && is_ours)
		return TC_ACT_OK;
	if (skb->protocol != AM_ETH_IP && skb->protocol != AM_ETH_IP6)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	reason = am_parse_addresses(skb, p, skb->protocol);
	if (!reason)
		reason = am_parse(skb, p);
	if (am_is_orphan_fragment(skb, p))
		is_ours = 0;
	if (!reason && !is_ours)
		reason = am_check_scope(p);
	if (!reason && !is_ours)
		reason = am_check_interface(p, from, &role);
	if (!reason)
		reason = am_fragment_ports(p, from);
	if (reason)
		return am_refuse(skb, p, &role, reason);
	/* The node's own neighbour discovery and multicast listening: no flow, nothing to track. */
	if (is_ours && p->protocol == AM_ICMP6 && p->icmp_type >= 130 && p->icmp_type <= 143)
		return TC_ACT_OK;
	/* What is not for the pod itself would be tracked as if it were. */
	if (!am_has_address(link, &p->destination))
		return am_refuse(skb, p, &role, AM_REASON_ENDPOINT_GONE);
	role.from_host = is_ours && am_identity_of(&p->source, &flags) == AM_IDENTITY_HOST;
	return am_pass(skb, p, &role) ? TC_ACT_OK : TC_ACT_SHOT;
}
