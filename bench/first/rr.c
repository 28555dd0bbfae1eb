/*
 * rr: round trips of one byte over TCP.
 *
 *     rr serve PORT
 *     rr ping ADDRESS PORT SECONDS       one connection, a byte there and back
 *     rr connect ADDRESS PORT SECONDS    each time a new connection, a byte there and back, closed by a reset
 *
 * A reset leaves no TIME_WAIT behind, so ports do not run out. Prints `summary` of pair.h.
 */
#include "pair.h"
#include <sys/epoll.h>

#define MOST 4000000
static float took[MOST];

static void watch(int poll, int fd)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
	if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static void echo(int fd)
{
	char bytes[256];
	ssize_t n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);

	if (n > 0)
		send(fd, bytes, (size_t)n, MSG_NOSIGNAL);
	else if (n == 0 || errno != EAGAIN)
		close(fd);
}

static _Noreturn void serve(const char *port)
{
	int listener = bound(SOCK_STREAM, port), poll = epoll_create1(0);

	if (listen(listener, 1024))
		die("listen");
	watch(poll, listener);
	for (;;) {
		struct epoll_event events[64];
		int n = epoll_wait(poll, events, 64, -1);
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			if (fd != listener) {
				echo(fd);
				continue;
			}
			int fresh = accept(listener, NULL, NULL);
			if (fresh < 0)
				continue;
			without_delay(fresh);
			watch(poll, fresh);
		}
	}
}

static int round_trip(int fd)
{
	char byte = 'x';
	return send(fd, &byte, 1, MSG_NOSIGNAL) == 1 && recv(fd, &byte, 1, 0) == 1;
}

static int ping(const struct sockaddr_in *to, double seconds)
{
	int fd = connected(to);
	long n = 0;

	if (fd < 0)
		die("connect");
	without_delay(fd);
	double warm = microseconds() + 1e5;
	while (microseconds() < warm)
		if (!round_trip(fd))
			die("round trip");
	double first = microseconds(), now = first;
	while (now < first + seconds * 1e6 && n < MOST) {
		double before = now;
		if (!round_trip(fd))
			die("round trip");
		now = microseconds();
		took[n++] = (float)(now - before);
	}
	summary(took, n, 0, (now - first) / 1e6);
	return 0;
}

static int reconnect(const struct sockaddr_in *to, double seconds)
{
	struct linger reset = {1, 0};
	long n = 0, failed = 0;
	double first = microseconds(), now = first;

	while (now < first + seconds * 1e6 && n < MOST && failed < 10) {
		double before = now;
		int fd = connected(to), good = fd >= 0 && round_trip(fd);
		if (fd >= 0) {
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
			close(fd);
		}
		now = microseconds();
		if (good)
			took[n++] = (float)(now - before);
		else
			failed++;
	}
	summary(took, n, failed, (now - first) / 1e6);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(argv[2]);
	if (argc == 5) {
		struct sockaddr_in to = socket_address(argv[2], argv[3]);
		if (!strcmp(argv[1], "ping"))
			return ping(&to, atof(argv[4]));
		if (!strcmp(argv[1], "connect"))
			return reconnect(&to, atof(argv[4]));
	}
	fprintf(stderr, "usage: rr serve PORT | rr ping|connect ADDRESS PORT SECONDS\n");
	return 2;
}
