/*
 * Comparisons of IP and MAC addresses; included by any.
 */
#ifndef AM_ADDRESS_H
#define AM_ADDRESS_H

#include "types.h"

AM_INLINE int am_same_addr(const struct am_addr *a, const struct am_addr *b)
{
	/* One branch, not four: each is a path more that the verifier walks. */
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		 (a->word[3] ^ b->word[3]));
}

AM_INLINE int am_is_unspecified(const struct am_addr *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

AM_INLINE int am_is_mapped(const struct am_addr *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

AM_INLINE void am_map4(struct am_addr *a, u32 v4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = v4;
}

/* fe80::/10 */
AM_INLINE int am_is_link_local(const struct am_addr *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

AM_INLINE int am_same_mac(const u8 *a, const u8 *b)
{
	return *(u16 *)a == *(u16 *)b && *(u16 *)(a + 2) == *(u16 *)(b + 2) && *(u16 *)(a + 4) == *(u16 *)(b + 4);
}

#endif
