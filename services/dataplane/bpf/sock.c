/*
 * The cgroup programs of sockets: connect, sendmsg, recvmsg and getpeername of both families, and the release of a
 * socket.
 */
#include "types.h"
#include "sock_lb.h"

int connect4(struct bpf_sock_addr *ctx)
{
	return am_to_backend4(ctx, 0);
}

int connect6(struct bpf_sock_addr *ctx)
{
	return am_to_backend6(ctx, 0);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return am_to_backend4(ctx, 1);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	return am_to_backend6(ctx, 1);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	return am_to_virtual4(ctx);
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	return am_to_virtual6(ctx);
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	return am_to_virtual4(ctx);
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	return am_to_virtual6(ctx);
}

/* Every socket's last close: whoever has a place gives it back. */
int sock_release(struct bpf_sock *ctx)
{
	u64 socket = bpf_get_socket_cookie(ctx);
	u32 index = socket % AM_SLOTS;
	struct am_slot *slot = am_slots.lookup(&index);

	if (slot && slot->socket == socket)
		__sync_val_compare_and_swap(&slot->socket, socket, 0);
	return AM_ALLOW;
}
