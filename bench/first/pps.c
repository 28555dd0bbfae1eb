/*
 * pps: UDP datagrams of 64 bytes, in volleys of 64 that are answered by one datagram.
 *
 *     pps serve PORT
 *     pps send ADDRESS PORT SECONDS
 *
 * The answer to each volley keeps the sender from outrunning the receiver, so nothing is lost and with both ends on one
 * CPU the time of a volley is what its 64 packets (and one back) cost. A volley of which one is lost counts as failed.
 * Prints `summary` of pair.h for volleys; 64e6 / p50_us is packets per second on one CPU.
 */
#include "pair.h"

#define VOLLEY 64
#define SIZE 64
#define MOST 1000000
static float took[MOST];
static char bytes[SIZE];
static struct mmsghdr messages[VOLLEY];
static struct iovec one = {bytes, SIZE};

static _Noreturn void serve(const char *port)
{
	int fd = bound(SOCK_DGRAM, port);
	int room = 4 << 20;

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
	for (;;) {
		struct sockaddr_in from;
		socklen_t length = sizeof from;
		if (recvfrom(fd, bytes, SIZE, 0, (struct sockaddr *)&from, &length) != SIZE)
			continue;
		/* The last of a volley is marked: only then is there an answer. */
		if (bytes[0] == 'l')
			sendto(fd, bytes, SIZE, 0, (struct sockaddr *)&from, length);
	}
}

static int volley(int fd)
{
	int sent = 0;

	bytes[0] = 'm';
	while (sent < VOLLEY - 1) {
		int n = sendmmsg(fd, messages, (unsigned)(VOLLEY - 1 - sent), 0);
		if (n <= 0)
			return 0;
		sent += n;
	}
	bytes[0] = 'l';
	return send(fd, bytes, SIZE, 0) == SIZE && recv(fd, bytes, SIZE, 0) == SIZE;
}

int main(int argc, char **argv)
{
	long n = 0, failed = 0;

	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(argv[2]);
	if (argc != 5 || strcmp(argv[1], "send")) {
		fprintf(stderr, "usage: pps serve PORT | pps send ADDRESS PORT SECONDS\n");
		return 2;
	}
	struct sockaddr_in to = socket_address(argv[2], argv[3]);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		die("socket");
	give_up_after(fd, 1);
	for (int i = 0; i < VOLLEY; i++)
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &one, .msg_iovlen = 1};
	double warm = microseconds() + 1e5;
	while (microseconds() < warm)
		volley(fd);
	double first = microseconds(), now = first;
	while (now < first + atof(argv[4]) * 1e6 && n < MOST && failed < 5) {
		double before = now;
		int good = volley(fd);
		now = microseconds();
		if (good)
			took[n++] = (float)(now - before);
		else
			failed++;
	}
	summary(took, n, failed, (now - first) / 1e6);
	return 0;
}
