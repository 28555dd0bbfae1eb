/*
 * Conntrack's garbage collection, run by the agent (BPF_PROG_TEST_RUN): collect deletes expired entries, recount
 * corrects the counts and sets the limits of endpoints.
 */
#include "types.h"
#include "budget.h"
#include "conntrack.h"

/* One entry to be collected: gone only if it has not been seen since the agent looked (0: whatever it is). */
struct am_expired {
	struct am_flow_key key;
	u64 last_seen;
};
_Static_assert(sizeof(struct am_expired) == 48, "core/conntrack.py packs this");

#define AM_FRAME_HEAD 16

/*
 * The "packet" is 16 bytes of head and an array of struct am_expired, the return value how many went. Looking and
 * deleting stand next to each other here, so a packet that revives a flow between the agent's look and this has its way;
 * what remains is the few nanoseconds between the comparison and the delete.
 */
int collect(struct __sk_buff *skb)
{
	struct am_expired c = {};
	u32 gone = 0, i;

	for (i = 0; i < AM_MAX_EXPIRED; i++) {
		struct am_flow *flow;

		if (bpf_skb_load_bytes(skb, AM_FRAME_HEAD + i * sizeof(c), &c, sizeof(c)))
			break;
		flow = am_ct.lookup(&c.key);
		if (!flow || (c.last_seen && flow->last_seen != c.last_seen))
			continue;
		am_ct_delete(&c.key, flow);
		gone++;
	}
	return gone;
}

/* What the agent says of an endpoint's counts. Limits of 0: as they are. */
struct am_correction {
	u32 endpoint;
	u32 hole;
	s64 ingress;
	s64 egress;
	u64 ingress_limit;
	u64 egress_limit;
	u32 first;
	u32 mask;
};
_Static_assert(sizeof(struct am_correction) == 48, "core/conntrack.py packs this");

/* Adds what may be negative, but leaves no count below zero. */
AM_INLINE void am_adjust(u64 *count, s64 difference)
{
	s64 now = (s64)__sync_fetch_and_add(count, difference) + difference;

	if (now < 0)
		__sync_fetch_and_add(count, -now);
}

/* As collect, of struct am_correction: differences are added to counts that packets move meanwhile. */
int recount(struct __sk_buff *skb)
{
	struct am_budget *budget;
	struct am_correction m = {};
	u32 done = 0, i;

	for (i = 0; i < AM_MAX_EXPIRED; i++) {
		if (bpf_skb_load_bytes(skb, AM_FRAME_HEAD + i * sizeof(m), &m, sizeof(m)))
			break;
		budget = am_budget_of(m.endpoint);
		if (!budget)
			continue;
		if (m.ingress)
			am_adjust(&budget->ingress, m.ingress);
		if (m.egress)
			am_adjust(&budget->egress, m.egress);
		if (m.ingress_limit) {
			budget->ingress_limit = m.ingress_limit;
			budget->egress_limit = m.egress_limit;
			budget->first = m.first;
			budget->mask = m.mask;
		}
		done++;
	}
	return done;
}
