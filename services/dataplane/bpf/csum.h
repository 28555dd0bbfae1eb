/*
 * Checksums (RFC 1071), and incremental updates of them (RFC 1624); included by rewrite.h, answer.h and encap.h.
 */
#ifndef AM_CSUM_H
#define AM_CSUM_H

#include "types.h"

#define AM_F_IPV6 (1ULL << 7) /* BPF_F_IPV6 of kernel 6.16 */
#define AM_EINVAL 22

AM_INLINE u32 am_csum_offset(u8 protocol)
{
	return protocol == AM_TCP ? 16 : 6;
}

/* Sum of two checksum differences. */
AM_INLINE u32 am_csum_add(u32 a, u32 b)
{
	u64 sum = (u64)a + b;

	return (u32)sum + (u32)(sum >> 32);
}

/* A sum of 16-bit words, as one: 0 to 0xffff. */
AM_INLINE u32 am_csum_fold(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The sum of an IPv4 header without options. */
AM_INLINE u32 am_csum_ip4(const void *header)
{
	const u32 *word = header;
	u64 sum = (u64)word[0] + word[1] + word[2] + word[3] + word[4];

	return am_csum_add(sum, sum >> 32);
}

/* A transport checksum after a change of the addresses that it covers. Older kernels know nothing of the IPv6 flag. */
AM_INLINE long am_csum_replace_pseudo(struct __sk_buff *skb, u32 at, u32 diff, u64 flags, u8 family)
{
	long error;

	flags |= BPF_F_PSEUDO_HDR;
	if (family == 4)
		return bpf_l4_csum_replace(skb, at, 0, diff, flags);
	error = bpf_l4_csum_replace(skb, at, 0, diff, flags | AM_F_IPV6);
	return error == -AM_EINVAL ? bpf_l4_csum_replace(skb, at, 0, diff, flags) : error;
}

AM_INLINE u32 am_csum_diff(struct am_addr *from, struct am_addr *to)
{
	return bpf_csum_diff((void *)from, 32, (void *)to, 32, 0);
}

#endif
