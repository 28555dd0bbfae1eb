/*
 * bulk: a stream in pieces of 512 KiB, each answered by one byte.
 *
 *     bulk serve PORT
 *     bulk send ADDRESS PORT SECONDS
 *
 * With both ends on one CPU the time of a piece is what its bytes cost: sending, every hop, receiving. Prints `summary`
 * of pair.h; 512 KiB * 8 / p50_us is Mbit/s on one CPU.
 */
#include "pair.h"

#define PIECE (512 << 10)
#define MOST 1000000
static float took[MOST];
static char bytes[64 << 10];

static _Noreturn void serve(const char *port)
{
	int listener = bound(SOCK_STREAM, port);

	if (listen(listener, 16))
		die("listen");
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		ssize_t n;
		long had = 0;
		if (fd < 0)
			continue;
		without_delay(fd);
		while ((n = recv(fd, bytes, sizeof bytes, 0)) > 0)
			for (had += n; had >= PIECE; had -= PIECE)
				send(fd, "k", 1, MSG_NOSIGNAL);
		close(fd);
	}
}

static void piece(int fd)
{
	char answer;
	long left = PIECE;

	while (left) {
		ssize_t n = send(fd, bytes, left < (long)sizeof bytes ? (size_t)left : sizeof bytes, MSG_NOSIGNAL);
		if (n <= 0)
			die("send");
		left -= n;
	}
	if (recv(fd, &answer, 1, 0) != 1)
		die("answer");
}

int main(int argc, char **argv)
{
	long n = 0;

	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(argv[2]);
	if (argc != 5 || strcmp(argv[1], "send")) {
		fprintf(stderr, "usage: bulk serve PORT | bulk send ADDRESS PORT SECONDS\n");
		return 2;
	}
	struct sockaddr_in to = socket_address(argv[2], argv[3]);
	int fd = connected(&to);
	if (fd < 0)
		die("connect");
	without_delay(fd);
	double warm = microseconds() + 2e5;
	while (microseconds() < warm)
		piece(fd);
	double first = microseconds(), now = first;
	while (now < first + atof(argv[4]) * 1e6 && n < MOST) {
		double before = now;
		piece(fd);
		now = microseconds();
		took[n++] = (float)(now - before);
	}
	summary(took, n, 0, (now - first) / 1e6);
	return 0;
}
