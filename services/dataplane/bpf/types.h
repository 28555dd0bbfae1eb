/*
 * Protocol numbers of Ethernet, IP and TCP, and what the compiler wants; included by any.
 *
 * bcc 0.26 has no subprograms and no .rodata: every function is inlined, constants are macros. Kernel names come in
 * through bcc's own headers, so everything of ours begins with am_.
 */
#ifndef AM_TYPES_H
#define AM_TYPES_H

#include "generated.h"

#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#define AM_INLINE static __always_inline

#define AM_ETH_LEN 14
#define AM_ETH_IP bpf_htons(0x0800)
#define AM_ETH_ARP bpf_htons(0x0806)
#define AM_ETH_IP6 bpf_htons(0x86DD)
#define AM_ETH_VLAN bpf_htons(0x8100)
#define AM_ETH_QINQ bpf_htons(0x88A8)

#define AM_ICMP 1
#define AM_IPIP 4
#define AM_TCP 6
#define AM_UDP 17
#define AM_ICMP6 58
#define AM_SCTP 132

#define AM_GOLDEN_RATIO 0x9E3779B1u /* 2^32 by the golden ratio: spreads numbers that are neighbours */

#define AM_AF_INET 2
#define AM_AF_INET6 10

#define AM_TCP_FIN 0x01
#define AM_TCP_SYN 0x02
#define AM_TCP_RST 0x04
#define AM_TCP_ACK 0x10

#endif
