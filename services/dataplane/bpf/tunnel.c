/*
 * The tc programs of a tunnel's device: to_tunnel sees what the node's stack sends into it, from_tunnel what comes out. See
 * README.md for how a packet travels.
 *
 * A WireGuard device has no Ethernet header: one is put before the packet, and the kernel takes it away again.
 */
#include "types.h"
#include "packet.h"
#include "parse.h"
#include "fragment.h"
#include "endpoint.h"
#include "drop.h"
#include "spoof.h"
#include "fib.h"
#include "rewrite.h"
#include "nat.h"
#include "nodeport.h"
#include "encap.h"
#include "arrival.h"

/* An Ethernet header where there is none. Nonzero when there is no room. */
AM_INLINE long am_add_ethernet(struct __sk_buff *skb)
{
	__be16 type = skb->protocol;

	return bpf_skb_change_head(skb, AM_ETH_LEN, 0) || bpf_skb_store_bytes(skb, 12, &type, 2, 0);
}

/*
 * The other way in. What from_wire has judged has a mark; from WireGuard packets come as they are, each from a peer that
 * may have its source (allowed-ips). Anything else was meant for the device, and by nobody of the cluster.
 */
int from_tunnel(struct __sk_buff *skb)
{
	struct am_link_key key = { .ifindex = skb->ifindex };
	struct am_role role = { .side = AM_SIDE_INGRESS };
	struct am_tunnel *tunnel = am_tunnels.lookup(&key);
	struct am_packet *p = am_scratch_packet();
	u32 reason;
	int action;

	if (!p)
		return TC_ACT_SHOT;
	if (!tunnel)
		return am_refuse(skb, p, &role, AM_REASON_LINK_UNKNOWN);
	if (tunnel->kind != AM_TUNNEL_WIREGUARD) {
		if (skb->mark != AM_TUNNEL_MARK)
			return am_refuse(skb, p, &role, AM_REASON_TUNNEL_PEER);
		skb->mark = 0;
		bpf_skb_change_type(skb, 0); /* to us, whatever its inner Ethernet header says */
		return TC_ACT_OK;
	}
	if (skb->protocol != AM_ETH_IP && skb->protocol != AM_ETH_IP6)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	if (am_add_ethernet(skb))
		return TC_ACT_SHOT;
	p->tunnel = skb->ifindex;
	reason = am_parse_addresses(skb, p, skb->protocol);
	if (reason)
		return am_refuse(skb, p, &role, reason);
	action = am_arrive(skb, p, am_local_endpoint(&p->destination), 0);
	return action == AM_TO_STACK ? TC_ACT_OK : action;
}

/* Into the tunnel, by the route of the packet; a probe goes to the very node that it is for. */
AM_INLINE int am_send_into(struct __sk_buff *skb, const struct am_packet *p, const struct am_role *role, const struct am_tunnel *tunnel)
{
	struct am_work *w = am_work_of(p);
	struct am_address_key key = { .address = p->destination };
	struct am_tunnel_peer *peer = am_tunnel_peers.lookup(&key);
	u64 found;

	if (peer) {
		w->remote = p->destination;
	} else {
		am_ask_route(&w->fib, &p->source, &p->flow.source_port, p->family, 0);
		found = am_fib_lookup(skb, &w->fib, p->protocol, BPF_FIB_LOOKUP_OUTPUT);
		if ((found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH) || !am_outer_destination(w, tunnel))
			return am_refuse(skb, p, role, AM_REASON_NO_ROUTE);
	}
	found = am_opaque(p, am_route_outer(skb, w, tunnel, am_longest_on_wire(skb, p)));
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return am_refuse(skb, p, role, AM_REASON_TOO_BIG);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return am_refuse(skb, p, role, AM_REASON_NO_ROUTE);
	return am_send_outer(skb, w, tunnel, found == BPF_FIB_LKUP_RET_SUCCESS);
}

/*
 * What to_wire does, for what leaves by a tunnel; and for IPIP the tunnel itself: its device is one in name. The kernel's
 * VXLAN device and WireGuard do that by themselves.
 */
int to_tunnel(struct __sk_buff *skb)
{
	struct am_link_key key = { .ifindex = skb->ifindex }, from = { .ifindex = skb->ingress_ifindex };
	struct am_role role = { .side = AM_SIDE_INGRESS };
	struct am_tunnel *tunnel = am_tunnels.lookup(&key);
	struct am_packet *p = am_scratch_packet();
	u32 switches = am_switches(), reason, flags;
	u8 kind, answers = 0, known = 0;

	if (!p)
		return TC_ACT_SHOT;
	if (!tunnel)
		return am_refuse(skb, p, &role, AM_REASON_LINK_UNKNOWN);
	kind = tunnel->kind;
	if (skb->protocol != AM_ETH_IP && skb->protocol != AM_ETH_IP6)
		return am_refuse(skb, p, &role, AM_REASON_NOT_IP);
	if (kind == AM_TUNNEL_WIREGUARD) {
		if (skb->mark == AM_TUNNEL_MARK) { /* it has been here */
			skb->mark = 0;
			return TC_ACT_OK;
		}
		switches = 0;
	}
	if (from.ifindex) {
		known = am_is_known_way(&from);
	} else {
		answers = am_expects_host_replies();
		known = !answers && skb->sk;
	}
	if (known && kind != AM_TUNNEL_IPIP && !(switches & (AM_CONFIG_ENCRYPT4 | AM_CONFIG_ENCRYPT6)))
		return TC_ACT_OK;
	if (kind == AM_TUNNEL_IPIP && skb->protocol == AM_ETH_IP6) { /* what every IPv6 stack sends when a link comes up */
		am_count_packet(skb, AM_REASON_NOT_IP, AM_SIDE_INGRESS);
		return TC_ACT_SHOT;
	}
	if (kind == AM_TUNNEL_WIREGUARD && am_add_ethernet(skb))
		return TC_ACT_SHOT;
	reason = am_parse_addresses(skb, p, skb->protocol);
	if (reason)
		return am_refuse(skb, p, &role, reason);
	if (am_leaks(p, switches))
		return am_refuse(skb, p, &role, AM_REASON_UNENCRYPTED);
	if (from.ifindex && !known) {
		reason = am_check_forwarded(p);
		if (reason)
			return am_refuse(skb, p, &role, reason);
	}
	if (am_parse(skb, p))
		return am_refuse(skb, p, &role, AM_REASON_MALFORMED);
	if (!known && am_is_orphan_fragment(skb, p)) {
		reason = am_check_orphan_fragment(p);
		if (reason)
			return am_refuse(skb, p, &role, reason);
	}
	am_fragment_ports(p, 0);
	if (answers && (p->flow.protocol == AM_TCP || p->flow.protocol == AM_UDP) && am_nat_lookup(am_work_of(p), AM_HOOK_NODE) &&
	    am_rewrite(skb, p, am_work_of(p)))
		return TC_ACT_SHOT;
	if (kind == AM_TUNNEL_IPIP)
		return am_send_into(skb, p, &role, tunnel);
	if (kind != AM_TUNNEL_WIREGUARD)
		return TC_ACT_OK;
	skb->mark = AM_TUNNEL_MARK;
	return bpf_redirect(skb->ifindex, 0);
}
