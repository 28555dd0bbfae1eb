/* Written by services.dataplane.datapath.header from core/datapath/layout.py and proto/: do not edit. */

#ifndef AM_GENERATED_H
#define AM_GENERATED_H

#define AM_REASON_FORWARDED 0
#define AM_REASON_REPLY 1
#define AM_REASON_POLICY_DENIED 2
#define AM_REASON_POLICY_UNKNOWN 3
#define AM_REASON_POLICY_REVOKED 4
#define AM_REASON_SPOOFED_ADDRESS 5
#define AM_REASON_SPOOFED_MAC 6
#define AM_REASON_SPOOFED_NEIGHBOUR 7
#define AM_REASON_NOT_IP 8
#define AM_REASON_MALFORMED 9
#define AM_REASON_FRAGMENT 10
#define AM_REASON_EXTENSION_HEADERS 11
#define AM_REASON_CONNTRACK_FULL 12
#define AM_REASON_CONNTRACK_BUDGET 13
#define AM_REASON_TTL_EXCEEDED 14
#define AM_REASON_ENDPOINT_GONE 15
#define AM_REASON_LINK_UNKNOWN 16
#define AM_REASON_SERVICE_NO_BACKEND 17
#define AM_REASON_SERVICE_NO_LOCAL_BACKEND 18
#define AM_REASON_SERVICE_SOURCE 19
#define AM_REASON_SERVICE_NO_SOURCE 20
#define AM_REASON_TRANSLATION_UNKNOWN 21
#define AM_REASON_NO_ROUTE 22
#define AM_REASON_SPOOFED_ERROR 23
#define AM_REASON_TUNNEL_PEER 24
#define AM_REASON_TUNNEL_SOURCE 25
#define AM_REASON_TUNNEL_MALFORMED 26
#define AM_REASON_UNENCRYPTED 27
#define AM_REASON_TOO_BIG 28

#define AM_IDENTITY_UNKNOWN 0
#define AM_IDENTITY_HOST 1
#define AM_IDENTITY_WORLD 2
#define AM_IDENTITY_KUBE_APISERVER 3
#define AM_IDENTITY_REMOTE_NODE 4

#define AM_SIDE_INGRESS 0
#define AM_SIDE_EGRESS 1

#define AM_PEER_ANYBODY 0
#define AM_PEER_ANY_POD 1
#define AM_PEER_SELECTOR_SET 2
#define AM_PEER_CIDR_SET 3

#define AM_VERDICT_DENY 0
#define AM_VERDICT_ALLOW 1

#define AM_IPCACHE_POD 1
#define AM_IPCACHE_NODE 2

#define AM_FLOW_HOST 1
#define AM_FLOW_TRANSLATED 2

#define AM_SEEN_REPLY 1
#define AM_SEEN_FIN_ORIGINAL 2
#define AM_SEEN_FIN_REPLY 4
#define AM_SEEN_RESET 8
#define AM_SEEN_ESTABLISHED 16
#define AM_SEEN_SYN 32
#define AM_SEEN_AGAIN 64
#define AM_SEEN_ONE_SHOT 128

#define AM_UPLINK_LOCAL 1

#define AM_LOCALITY_LOCAL 1
#define AM_LOCALITY_REMOTE 2
#define AM_LOCALITY_REMOTE_POD 3

#define AM_CONFIG_EMIT_FORWARDED 1
#define AM_CONFIG_ENCRYPT4 2
#define AM_CONFIG_ENCRYPT6 4
#define AM_CONFIG_TUNNELS 8
#define AM_CONFIG_REFUSE_PLAIN4 16
#define AM_CONFIG_REFUSE_PLAIN6 32
#define AM_CONFIG_MEASURE_DNS 64

#define AM_AFFINITY_NAMESPACE 0
#define AM_AFFINITY_SOCKET 1

#define AM_SCOPE_SOCKET 0
#define AM_SCOPE_PACKET 1

#define AM_SERVICE_NODE_ONLY 1
#define AM_SERVICE_FOREIGN 2
#define AM_SERVICE_LOCAL_ONLY 4
#define AM_SERVICE_SOURCE_RANGES 8

#define AM_HOOK_WIRE 0
#define AM_HOOK_POD 1
#define AM_HOOK_NODE 2

#define AM_TUNNEL_VXLAN 1
#define AM_TUNNEL_IPIP 2
#define AM_TUNNEL_WIREGUARD 3

#define AM_DNS_USEFUL 0
#define AM_DNS_EMPTY 1
#define AM_DNS_FORMERR 2
#define AM_DNS_SERVFAIL 3
#define AM_DNS_NXDOMAIN 4
#define AM_DNS_NOTIMP 5
#define AM_DNS_REFUSED 6
#define AM_DNS_OTHER 7
#define AM_DNS_TRUNCATED 8
#define AM_DNS_RETRIED 9

#define AM_NO_RULE 0xffffffffu
#define AM_REPLY_MARK 0xa150001u
#define AM_SENT_MARK 0xa150003u
#define AM_FIRST_COMPUTED 256
#define AM_SCOPE_BITS 128
#define AM_ADDRESS_BITS 128
#define AM_CIDR_BITS 192
#define AM_WORK_FIB 648
#define AM_MAX_EXPIRED 32
#define AM_FRAGMENTS_EACH 128
#define AM_FRAGMENT_SENDERS 64
#define AM_FIRST_PORT 61000
#define AM_SLOTS 65536
#define AM_LAST_PORT 65535
#define AM_PORT_TRIES 6
#define AM_TUNNEL_MARK 0xa150002u
#define AM_FIRST_TUNNEL_PORT 49152
#define AM_LAST_TUNNEL_PORT 65535
#define AM_TUNNEL_TTL 64
#define AM_WAYS 4
#define AM_NAT_RECENT_SETS 2048
#define AM_NEXT_HOP_SLOTS 1024
#define AM_HELD 65536
#define AM_NODE_ENDPOINT 0
#define AM_DNS_SETS 32
#define AM_DNS_WAYS 4
#define AM_DNS_SAMPLES 32
#define AM_DNS_NAME_WORDS 14
#define AM_DNS_OUTCOMES 9
#define AM_DNS_BUCKETS 24
#define AM_DNS_TICK_SHIFT 10
#define AM_DNS_TIMEOUT 5000000000ull
#define AM_DNS_RETRY_FROM 1000000000ull
#define AM_DNS_RETRY_UNTIL 7000000000ull
#define AM_PRESSURE 8
#define AM_PEER_SHARE 8
#define AM_DNS_PORT 53
#define AM_AHEAD 4194304
#define AM_BEHIND 262144
#define AM_STEP 262144
#define AM_EARLY 16384
#define AM_TCP_SYN_SECONDS 60
#define AM_TCP_ESTABLISHED_SECONDS 21600
#define AM_TCP_HALF_CLOSED_SECONDS 600
#define AM_TCP_CLOSING_SECONDS 10
#define AM_UDP_ONCE_SECONDS 30
#define AM_OTHER_ONCE_SECONDS 60
#define AM_STREAM_SECONDS 180
#define AM_ANSWERED_DNS_SECONDS 10
#define AM_ICMP_SECONDS 30

/* An address: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. */
struct am_addr {
	u32 word[4];
};

/* A host veth, by interface index in the node's namespace. */
struct am_link_key {
	u32 ifindex;
};
_Static_assert(sizeof(struct am_link_key) == 4, "LinkKey");

/* The pod behind a host veth: what it may call itself. None where it lacks a family. */
struct am_link {
	u64 identity;
	struct am_addr address4;
	struct am_addr address6;
	u8 mac[6];
	u16 flags;
	u32 endpoint;
	u8 hole_6[4];
};
_Static_assert(sizeof(struct am_link) == 56, "Link");

/* An interface whose packets may have the address of somebody in the cluster (UplinkFlag). */
struct am_uplink {
	u32 flags;
};
_Static_assert(sizeof(struct am_uplink) == 4, "Uplink");

/* An address of a pod of this node. */
struct am_address_key {
	struct am_addr address;
};
_Static_assert(sizeof(struct am_address_key) == 16, "AddressKey");

/* Where a local pod's packets go: its host veth, and the MACs of both ends (pod first: copied as one). */
struct am_endpoint {
	u64 identity;
	u32 ifindex;
	u32 endpoint;
	u8 mac[6];
	u8 host_mac[6];
	u16 flags;
	u8 hole_6[2];
};
_Static_assert(sizeof(struct am_endpoint) == 32, "Endpoint");

/* A prefix; prefixlen counts bits of the 16-byte form, so an IPv4 /24 is 120. */
struct am_prefix_key {
	u32 prefixlen;
	struct am_addr address;
};
_Static_assert(sizeof(struct am_prefix_key) == 20, "PrefixKey");

/* Whose an address is. An address without an entry is Reserved.WORLD. */
struct am_peer {
	u64 identity;
	u32 flags;
	u8 hole_2[4];
};
_Static_assert(sizeof(struct am_peer) == 16, "Peer");

/* A prefix within the partition of one namespace, so that no namespace's ipBlocks cut another's. */
struct am_cidr_key {
	u32 prefixlen;
	u8 namespace[8];
	struct am_addr address;
};
_Static_assert(sizeof(struct am_cidr_key) == 28, "CidrKey");

/* The set of ipBlock rules that hold an address (proto.policy.CidrSet.number); 0 = a hole in an outer one. */
struct am_cidr_number {
	u64 number;
};
_Static_assert(sizeof(struct am_cidr_number) == 8, "CidrNumber");

/* An identity that lives on this node. */
struct am_subject_key {
	u64 identity;
};
_Static_assert(sizeof(struct am_subject_key) == 8, "SubjectKey");

/* Its policy: the scope of each direction (0 = no rules); a subject without an entry is denied everything. */
struct am_subject {
	u64 ingress;
	u64 egress;
	u8 ingress_isolated;
	u8 egress_isolated;
	u8 hole_4[2];
	u32 policy;
	u8 namespace[8];
};
_Static_assert(sizeof(struct am_subject) == 32, "Subject");

/* An identity that a selector in use on this node matches. */
struct am_identity_key {
	u64 identity;
};
_Static_assert(sizeof(struct am_identity_key) == 8, "IdentityKey");

/* The set of selectors in use that match an identity (core.policy.selection); without an entry none does. */
struct am_selector_set {
	u64 number;
};
_Static_assert(sizeof(struct am_selector_set) == 8, "SelectorSet");

/* Peers of a scope. peer is the number of the selector set or CIDR set, 0 for the others. */
struct am_scope_peer_key {
	u64 scope;
	u64 peer;
	u32 kind;
	u8 hole_3[4];
};
_Static_assert(sizeof(struct am_scope_peer_key) == 24, "ScopePeerKey");

/* Rules of a scope, one bit each, the first in precedence the lowest. */
struct am_scope_bits {
	u64 bits[4];
};
_Static_assert(sizeof(struct am_scope_bits) == 32, "ScopeBits");

/* Ports of a scope. hole moves protocol and port to the very end of what is compared. */
struct am_scope_port_key {
	u32 prefixlen;
	u8 hole_1[4];
	u64 scope;
	u8 hole;
	u8 protocol;
	__be16 port;
	u8 hole_6[4];
};
_Static_assert(sizeof(struct am_scope_port_key) == 24, "ScopePortKey");

/* A rule by its bit. */
struct am_scope_rule_key {
	u64 scope;
	u32 index;
	u8 hole_2[4];
};
_Static_assert(sizeof(struct am_scope_rule_key) == 16, "ScopeRuleKey");

/* What a rule says, and its number for whoever asks why (proto.policy.CompiledRule.source). */
struct am_scope_rule {
	u32 rule;
	u8 verdict;
	u8 hole_2[3];
};
_Static_assert(sizeof(struct am_scope_rule) == 8, "ScopeRule");

/* Key of an array. */
struct am_index {
	u32 index;
};
_Static_assert(sizeof(struct am_index) == 4, "Index");

/* Raised after every change that policy depends on: makes live flows be judged again. */
struct am_generation {
	u32 number;
};
_Static_assert(sizeof(struct am_generation) == 4, "Generation");

/* A flow as the pod it is tracked for sees it: one key for both directions, whoever began. */
struct am_flow_key {
	struct am_addr local;
	struct am_addr remote;
	__be16 local_port;
	__be16 remote_port;
	u8 protocol;
	u8 hole_5[3];
};
_Static_assert(sizeof(struct am_flow_key) == 40, "FlowKey");

/* A flow that was let through, and the policy generation it was judged under. */
struct am_flow {
	u64 last_seen;
	u64 locality;
	u32 generation;
	u32 endpoint;
	u32 rule;
	u32 sent;
	u32 expected;
	u32 cell;
	u8 seen;
	u8 flags;
	u8 side;
	u8 hole_11[5];
};
_Static_assert(sizeof(struct am_flow) == 48, "Flow");

/* An endpoint by its number on this node. */
struct am_endpoint_key {
	u32 endpoint;
};
_Static_assert(sizeof(struct am_endpoint_key) == 4, "EndpointKey");

/* How many flows an endpoint has, and may have: those that others began (ingress) apart from its own (egress). */
struct am_budget {
	u64 ingress_limit;
	u64 egress_limit;
	u64 ingress;
	u64 egress;
	u32 first;
	u32 mask;
};
_Static_assert(sizeof(struct am_budget) == 40, "Budget");

/* A place for a fragmented packet, on the link that it comes by (0: the node itself). */
struct am_fragment_key {
	u32 link;
	u32 slot;
};
_Static_assert(sizeof(struct am_fragment_key) == 8, "FragmentKey");

/* Whose place it is (RFC 791, RFC 8200 4.5), and what the first fragment said, for those after it. */
struct am_fragment {
	struct am_addr source;
	struct am_addr destination;
	u32 identification;
	__be16 source_port;
	__be16 destination_port;
	u32 protocol;
};
_Static_assert(sizeof(struct am_fragment) == 44, "Fragment");

/* Packets and bytes of one (reason, direction), on one processor. */
struct am_metric {
	u64 packets;
	u64 bytes;
};
_Static_assert(sizeof(struct am_metric) == 16, "Metric");

/* Switches. Rates are for each endpoint and reason on each processor; events beyond are counted, not sent. */
struct am_config {
	u32 flags;
	u32 events_per_second;
	u32 events_burst;
};
_Static_assert(sizeof(struct am_config) == 12, "Config");

/* One stream of events. */
struct am_throttle_key {
	u32 endpoint;
	u32 reason;
};
_Static_assert(sizeof(struct am_throttle_key) == 8, "ThrottleKey");

/* A token bucket, and the events it has held back since the last one sent. */
struct am_throttle {
	u64 last;
	u32 tokens;
	u32 missed;
};
_Static_assert(sizeof(struct am_throttle) == 16, "Throttle");

/* Room for one packet while a program looks at it (struct am_work); means nothing to anybody else. */
struct am_scratch {
	u64 room[164];
};
_Static_assert(sizeof(struct am_scratch) == 1312, "Scratch");

/* A virtual address, port and protocol, as sockets of this node see it or as packets from outside do. */
struct am_service_key {
	struct am_addr address;
	__be16 port;
	u8 protocol;
	u8 scope;
};
_Static_assert(sizeof(struct am_service_key) == 20, "ServiceKey");

/* Its backends are am_backends[number, 0 … backends - 1]; with none, connections are refused. */
struct am_service {
	u32 number;
	u32 backends;
	u32 affinity_seconds;
	u32 flags;
};
_Static_assert(sizeof(struct am_service) == 16, "Service");

/* The index-th backend of a service. */
struct am_backend_key {
	u32 service;
	u32 index;
};
_Static_assert(sizeof(struct am_backend_key) == 8, "BackendKey");

/* Where a connection really goes. */
struct am_backend {
	struct am_addr address;
	__be16 port;
	u8 hole_2[2];
};
_Static_assert(sizeof(struct am_backend) == 20, "Backend");

/* A backend by what it is: tells whether a remembered one still serves. */
struct am_member_key {
	u32 service;
	struct am_addr address;
	__be16 port;
	u8 hole_3[2];
};
_Static_assert(sizeof(struct am_member_key) == 24, "MemberKey");

/* Its index in am_backends. */
struct am_member {
	u32 index;
};
_Static_assert(sizeof(struct am_member) == 4, "Member");

/* The 128-bit key of the hash by which a flow from outside chooses its backend, the same on all nodes. */
struct am_choice_key {
	u64 first;
	u64 second;
};
_Static_assert(sizeof(struct am_choice_key) == 16, "ChoiceKey");

/* A prefix that may reach a service from outside; prefixlen counts the service's 32 bits too. */
struct am_source_range_key {
	u32 prefixlen;
	u32 service;
	struct am_addr address;
};
_Static_assert(sizeof(struct am_source_range_key) == 24, "SourceRangeKey");

/* Its presence allows. */
struct am_source_range {
	u32 mark;
};
_Static_assert(sizeof(struct am_source_range) == 4, "SourceRange");

/* A client of a service: a network namespace (ClientIP affinity) or a UDP socket. */
struct am_affinity_key {
	u64 client;
	u32 service;
	u32 kind;
};
_Static_assert(sizeof(struct am_affinity_key) == 16, "AffinityKey");

/* The backend it had, and when. */
struct am_affinity {
	u64 last;
	struct am_addr address;
	__be16 port;
	u8 hole_3[6];
};
_Static_assert(sizeof(struct am_affinity) == 32, "Affinity");

/* Which connected socket has this place in am_sent: the last one of those with this cookie % SLOTS. */
struct am_slot {
	u64 socket;
};
_Static_assert(sizeof(struct am_slot) == 8, "Slot");

/* Where a socket that connected was sent, and the virtual address that it had asked for. */
struct am_sent {
	struct am_addr address;
	struct am_addr virtual;
	__be16 port;
	__be16 virtual_port;
};
_Static_assert(sizeof(struct am_sent) == 36, "Sent");

/* A backend as one socket sees it. */
struct am_reverse_key {
	u64 socket;
	struct am_addr address;
	__be16 port;
	u8 hole_3[6];
};
_Static_assert(sizeof(struct am_reverse_key) == 32, "ReverseKey");

/* The virtual address that the socket asked for. */
struct am_virtual {
	struct am_addr address;
	__be16 port;
	u8 hole_2[2];
};
_Static_assert(sizeof(struct am_virtual) == 20, "Virtual");

/* A network namespace by its cookie (SO_NETNS_COOKIE). */
struct am_cookie_key {
	u64 cookie;
};
_Static_assert(sizeof(struct am_cookie_key) == 8, "CookieKey");

/* The socket programs act in this namespace; node where it is the node's own. */
struct am_cookie_mark {
	u8 node;
};
_Static_assert(sizeof(struct am_cookie_mark) == 1, "CookieMark");

/* A packet of a translated flow, as it is met. */
struct am_nat_key {
	struct am_addr source;
	struct am_addr destination;
	__be16 source_port;
	__be16 destination_port;
	u8 protocol;
	u8 hook;
	u16 hole;
};
_Static_assert(sizeof(struct am_nat_key) == 40, "NatKey");

/* What such a packet becomes. The first four members lie as those of NatKey do: copied and summed as one. */
struct am_nat {
	u64 last_seen;
	struct am_addr source;
	struct am_addr destination;
	__be16 source_port;
	__be16 destination_port;
	u32 service;
	u32 endpoint;
	u8 partner;
	u8 is_back;
	u8 seen;
	u8 hole;
	u32 sent;
	u32 expected;
	u32 cell;
	u32 period;
};
_Static_assert(sizeof(struct am_nat) == 72, "Nat");

/* A client from outside and the service it asked for (ClientIP affinity). */
struct am_client_key {
	struct am_addr address;
	u32 service;
};
_Static_assert(sizeof(struct am_client_key) == 20, "ClientKey");

/* In whose name this node speaks to backends elsewhere when the client asked for an address that is not its own. */
struct am_node_addresses {
	struct am_addr address4;
	struct am_addr address6;
};
_Static_assert(sizeof(struct am_node_addresses) == 32, "NodeAddresses");

/* When a packet last went to a backend that is this node itself; spares the node's own traffic a look. */
struct am_outward {
	u64 last_node_flow;
};
_Static_assert(sizeof(struct am_outward) == 8, "Outward");

/* Four places for flows that are not established (struct am_recent_set in bpf/recent.h). */
struct am_recent {
	u64 room[26];
};
_Static_assert(sizeof(struct am_recent) == 208, "Recent");

/* How many established flows peers hold whose hash is this place's, at one endpoint (or another of this hash). */
struct am_held {
	u64 count;
};
_Static_assert(sizeof(struct am_held) == 8, "Held");

/* A tunnel device, and what its outer packets have in common. */
struct am_tunnel {
	u8 kind;
	u8 family;
	u16 port;
	u32 vni;
	struct am_addr local;
	u8 mac[6];
	u8 hole_6[2];
};
_Static_assert(sizeof(struct am_tunnel) == 32, "Tunnel");

/* What outer packets for one of this node's tunnels are sent to: by protocol 4 (port 0), or 17. */
struct am_tunnel_end_key {
	struct am_addr address;
	__be16 port;
	u8 protocol;
	u8 hole_3[1];
};
_Static_assert(sizeof(struct am_tunnel_end_key) == 20, "TunnelEndKey");

/* Which tunnel they are for. */
struct am_tunnel_end {
	u32 ifindex;
	u32 vni;
};
_Static_assert(sizeof(struct am_tunnel_end) == 8, "TunnelEnd");

/* The node that has an underlay address, and how packets to this address go from here. */
struct am_tunnel_peer {
	u32 node;
	u32 ifindex;
	struct am_addr outer;
	u8 mac[6];
	u8 hole_4[2];
};
_Static_assert(sizeof(struct am_tunnel_peer) == 32, "TunnelPeer");

/* Which node may send packets with sources of a prefix; 0: none. */
struct am_tunnel_source {
	u32 node;
};
_Static_assert(sizeof(struct am_tunnel_source) == 4, "TunnelSource");

/* A question to the kernel's routing table and its answer (struct am_known_hop in bpf/fib.h). */
struct am_next_hop {
	u64 room[17];
};
_Static_assert(sizeof(struct am_next_hop) == 136, "NextHop");

/* A backend of any service. */
struct am_refused_key {
	struct am_addr address;
	__be16 port;
	u8 protocol;
	u8 hole_3[1];
};
_Static_assert(sizeof(struct am_refused_key) == 20, "RefusedKey");

/* When it refused last. */
struct am_refused {
	u64 last;
};
_Static_assert(sizeof(struct am_refused) == 8, "Refused");

/* What was measured of one pod's DNS since its first query. */
struct am_dns_pod {
	u64 cells[256];
	u64 samples[512];
	u64 queries;
	u64 tcp_queries;
	u64 retries;
	u64 timeouts;
	u64 late;
	u64 displaced;
	u64 unmatched;
	u64 unread;
	u64 sampled;
	u64 answers[216];
};
_Static_assert(sizeof(struct am_dns_pod) == 7944, "DnsPod");

/* What the ring buffer carries: one packet's verdict. Numbers as in proto.flow and proto.policy. */
struct am_event {
	u64 time;
	u64 subject;
	u64 peer;
	struct am_addr source;
	struct am_addr destination;
	u32 length;
	u32 ifindex;
	u32 endpoint;
	u32 rule;
	u32 missed;
	u32 policy;
	__be16 source_port;
	__be16 destination_port;
	u16 reason;
	u8 protocol;
	u8 direction;
};
_Static_assert(sizeof(struct am_event) == 88, "Event");

/* the pod behind a host veth: what it may call itself */
BPF_F_TABLE("hash", struct am_link_key, struct am_link, am_links, 4096, 0);
/* interfaces that bring others of the cluster */
BPF_F_TABLE("hash", struct am_link_key, struct am_uplink, am_uplinks, 256, 0);
/* local delivery: address to veth and MACs */
BPF_F_TABLE("hash", struct am_address_key, struct am_endpoint, am_endpoints, 8192, 0);
/* whose an address is */
BPF_F_TABLE("lpm_trie", struct am_prefix_key, struct am_peer, am_ipcache, 524288, 1);
/* ipBlock rules that hold an address */
BPF_F_TABLE("lpm_trie", struct am_cidr_key, struct am_cidr_number, am_cidrs, 262144, 1);
/* policy of the identities that live here */
BPF_F_TABLE("hash", struct am_subject_key, struct am_subject, am_subjects, 8192, 0);
/* selectors that match it */
BPF_F_TABLE("hash", struct am_identity_key, struct am_selector_set, am_selected, 131072, 1);
/* rules that name a peer */
BPF_F_TABLE("hash", struct am_scope_peer_key, struct am_scope_bits, am_scope_peer, 524288, 1);
/* rules that name a port */
BPF_F_TABLE("lpm_trie", struct am_scope_port_key, struct am_scope_bits, am_scope_port, 262144, 1);
/* what a rule says */
BPF_F_TABLE("hash", struct am_scope_rule_key, struct am_scope_rule, am_scope_rule, 131072, 1);
/* raised after each change to policy */
BPF_F_TABLE("array", u32, struct am_generation, am_generation, 1, 0);
/* conntrack, each pod's side apart */
BPF_F_TABLE("hash", struct am_flow_key, struct am_flow, am_ct, 131072, 0);
/* how much conntrack an endpoint may use */
BPF_F_TABLE("hash", struct am_endpoint_key, struct am_budget, am_ct_budget, 4096, 0);
/* ports of fragmented packets */
BPF_F_TABLE("lru_hash", struct am_fragment_key, struct am_fragment, am_frags, 32768, 0);
/* drops (and, if asked for, new flows) */
BPF_RINGBUF_OUTPUT(am_events, 256);
/* counters, index = reason * 2 + direction */
BPF_F_TABLE("percpu_array", u32, struct am_metric, am_metrics, 128, 0);
/* switches and event rates */
BPF_F_TABLE("array", u32, struct am_config, am_config, 1, 0);
/* token bucket of each event stream */
BPF_F_TABLE("lru_percpu_hash", struct am_throttle_key, struct am_throttle, am_throttle, 4096, 0);
/* the packet being looked at */
BPF_F_TABLE("percpu_array", u32, struct am_scratch, am_scratch, 1, 0);
/* virtual addresses */
BPF_F_TABLE("hash", struct am_service_key, struct am_service, am_services, 65536, 1);
/* backends by service and index */
BPF_F_TABLE("hash", struct am_backend_key, struct am_backend, am_backends, 262144, 1);
/* backends by address: still serving? */
BPF_F_TABLE("hash", struct am_member_key, struct am_member, am_members, 262144, 1);
/* key of the hash by which flows choose backends */
BPF_F_TABLE("array", u32, struct am_choice_key, am_choice, 1, 0);
/* who may reach a service from outside */
BPF_F_TABLE("lpm_trie", struct am_source_range_key, struct am_source_range, am_src_ranges, 65536, 1);
/* the backend a client had */
BPF_F_TABLE("lru_hash", struct am_affinity_key, struct am_affinity, am_affinity, 65536, 0);
/* which connected socket has which place in am_sent */
BPF_F_TABLE("array", u32, struct am_slot, am_slots, 65536, 0);
/* what connected sockets asked for, and got */
BPF_F_TABLE("array", u32, struct am_sent, am_sent, 65536, 0);
/* what sockets without a place asked for */
BPF_F_TABLE("lru_hash", struct am_reverse_key, struct am_virtual, am_reverse, 65536, 0);
/* namespaces the socket programs act in */
BPF_F_TABLE("hash", struct am_cookie_key, struct am_cookie_mark, am_cookies, 8192, 0);
/* translated flows from outside, each direction apart */
BPF_F_TABLE("lru_hash", struct am_nat_key, struct am_nat, am_nat, 65536, 0);
/* the backend a client from outside had */
BPF_F_TABLE("lru_hash", struct am_client_key, struct am_affinity, am_clients, 16384, 0);
/* in whose name this node speaks to backends */
BPF_F_TABLE("array", u32, struct am_node_addresses, am_own, 1, 0);
/* when the node itself last was a backend */
BPF_F_TABLE("array", u32, struct am_outward, am_outward, 1, 0);
/* flows that are not established yet */
BPF_F_TABLE("array", u32, struct am_recent, am_ct_recent, 32768, 0);
/* established flows that others began, by peer */
BPF_F_TABLE("array", u32, struct am_held, am_ct_peers, 65536, 0);
/* translated flows that are not established yet */
BPF_F_TABLE("array", u32, struct am_recent, am_nat_recent, 2048, 0);
/* tunnel devices of this node */
BPF_F_TABLE("hash", struct am_link_key, struct am_tunnel, am_tunnels, 64, 0);
/* where this node takes packets of tunnels */
BPF_F_TABLE("hash", struct am_tunnel_end_key, struct am_tunnel_end, am_tunnel_ends, 64, 0);
/* the other ends */
BPF_F_TABLE("hash", struct am_address_key, struct am_tunnel_peer, am_tunnel_peers, 65536, 1);
/* which node may send what */
BPF_F_TABLE("lpm_trie", struct am_prefix_key, struct am_tunnel_source, am_tunnel_srcs, 262144, 1);
/* what the routing table said this tick */
BPF_F_TABLE("percpu_array", u32, struct am_next_hop, am_next_hops, 1024, 0);
/* backends that refused a moment ago */
BPF_F_TABLE("lru_hash", struct am_refused_key, struct am_refused, am_refused, 4096, 0);
/* what was measured of a pod's DNS */
BPF_F_TABLE("hash", struct am_endpoint_key, struct am_dns_pod, am_dns, 4096, 1);
/* what a pod's record begins as: all zero */
BPF_F_TABLE("array", u32, struct am_dns_pod, am_dns_blank, 1, 0);

#endif
