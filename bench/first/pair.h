/* What the two ends of every benchmark share: time, sockets over IPv4, and the summary of many durations. */
#ifndef BENCH_PAIR_H
#define BENCH_PAIR_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline double microseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static _Noreturn inline void die(const char *what)
{
	perror(what);
	exit(2);
}

static inline struct sockaddr_in socket_address(const char *address, const char *port)
{
	struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};

	if (!inet_aton(address, &where.sin_addr)) {
		fprintf(stderr, "%s: not an IPv4 address\n", address);
		exit(2);
	}
	return where;
}

static inline void without_delay(int fd)
{
	int one = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline void give_up_after(int fd, int seconds)
{
	struct timeval wait = {.tv_sec = seconds};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
}

static inline int bound(int kind, const char *port)
{
	int one = 1, fd = socket(AF_INET, kind, 0);
	struct sockaddr_in local = socket_address("0.0.0.0", port);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&local, sizeof local))
		die("bind");
	return fd;
}

static inline int connected(const struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	give_up_after(fd, 3);
	if (connect(fd, (const struct sockaddr *)to, sizeof *to)) {
		close(fd);
		return -1;
	}
	return fd;
}

static inline int ascending(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

/* {"count":..,"failed":..,"seconds":..,"p50_us":..,"p99_us":..}; sorts us. */
static inline void summary(float *us, long n, long failed, double seconds)
{
	if (!n) {
		fprintf(stderr, "nothing came back (%ld failed)\n", failed);
		exit(2);
	}
	qsort(us, (size_t)n, sizeof *us, ascending);
	printf("{\"count\":%ld,\"failed\":%ld,\"seconds\":%.4f,\"p50_us\":%.2f,\"p99_us\":%.2f}\n", n, failed, seconds,
	       (double)us[n / 2], (double)us[n * 99 / 100]);
}
#endif
