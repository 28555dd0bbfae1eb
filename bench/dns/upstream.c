/*
 * upstream: a resolver at a distance: answers over UDP and TCP, each answer a fixed time after its question. CoreDNS asks
 * over TCP for what it fetches ahead (plugin/cache, prefetch).
 *
 *     upstream ADDRESS PORT DELAY_US TTL
 *
 * Names below `example` have an address of each family, kept for TTL seconds; no other name exists, and that is kept
 * for 30 s (the SOA's MINIMUM, RFC 2308). It answers as many questions at once as there are, up to MOST.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096
#define HEADER 12
#define LONGEST 512

struct pending {
	struct sockaddr_in to;
	long long at;
	size_t length;
	unsigned char message[LONGEST];
};

static struct pending queue[MOST];
static unsigned long first, last;
static long long delay;
static uint32_t ttl;

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static unsigned char *put16(unsigned char *at, unsigned value)
{
	*at++ = (unsigned char)(value >> 8);
	*at++ = (unsigned char)value;
	return at;
}

static unsigned char *put32(unsigned char *at, uint32_t value)
{
	return put16(put16(at, value >> 16), value & 0xffff);
}

/* Length of the question's name and whether it is below `example`; 0 where there is no whole name. */
static size_t read_name(const unsigned char *name, size_t room, int *exists)
{
	size_t at = 0, before = 0;

	while (at < room && name[at]) {
		if (name[at] > 63)
			return 0;
		before = at;
		at += name[at] + 1u;
	}
	if (at >= room)
		return 0;
	*exists = before > 0 && name[before] == 7 && !strncasecmp((const char *)name + before + 1, "example", 7);
	return at + 1;
}

static unsigned char *put_soa(unsigned char *at)
{
	static const unsigned char names[] = "\2ns\7example\0\4host\7example";

	*at++ = 0;
	at = put32(put16(put16(at, 6), 1), 30);
	at = put16(at, sizeof names + 20);
	memcpy(at, names, sizeof names);
	at += sizeof names;
	for (int i = 0; i < 5; i++)
		at = put32(at, 30);
	return at;
}

static unsigned char *put_address(unsigned char *at, unsigned kind, uint32_t ttl)
{
	static const unsigned char six[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = 7};
	static const unsigned char four[4] = {198, 51, 100, 7};

	at = put32(put16(put16(put16(at, 0xc000 | HEADER), kind), 1), ttl);
	at = put16(at, kind == 1 ? sizeof four : sizeof six);
	memcpy(at, kind == 1 ? four : six, kind == 1 ? sizeof four : sizeof six);
	return at + (kind == 1 ? sizeof four : sizeof six);
}

/* The answer in place of the question; its length, 0 for what is no question. */
static size_t answer(unsigned char *message, size_t length)
{
	int exists = 0;

	if (length < HEADER + 5 || message[2] & 0x80 || message[4] || message[5] != 1)
		return 0;
	size_t name = read_name(message + HEADER, length - HEADER - 4, &exists);
	if (!name || HEADER + name + 4 + 80 > LONGEST)
		return 0;
	unsigned kind = message[HEADER + name] * 256u + message[HEADER + name + 1];
	unsigned char *end = message + HEADER + name + 4;
	int known = exists && (kind == 1 || kind == 28);
	put16(message + 2, 0x8180 | (exists ? 0 : 3));
	put16(message + 6, known);
	put16(message + 8, !known);
	put16(message + 10, 0);
	end = known ? put_address(end, kind, ttl) : put_soa(end);
	return (size_t)(end - message);
}

static void receive(int fd)
{
	while (last - first < MOST) {
		struct pending *one = &queue[last % MOST];
		socklen_t size = sizeof one->to;
		ssize_t n = recvfrom(fd, one->message, LONGEST, MSG_DONTWAIT, (struct sockaddr *)&one->to, &size);

		if (n < 0)
			return;
		one->at = now_ns() + delay;
		one->length = answer(one->message, (size_t)n);
		last += one->length > 0;
	}
}

/* One connection: a question, a moment, its answer (RFC 7766). */
static void *converse(void *given)
{
	int fd = (int)(intptr_t)given;
	unsigned char message[2 + LONGEST];

	while (recv(fd, message, 2, MSG_WAITALL) == 2) {
		size_t length = message[0] * 256u + message[1];
		struct timespec wait = {.tv_sec = delay / 1000000000LL, .tv_nsec = delay % 1000000000LL};
		if (length > LONGEST || recv(fd, message + 2, length, MSG_WAITALL) != (ssize_t)length)
			break;
		length = answer(message + 2, length);
		nanosleep(&wait, NULL);
		put16(message, (unsigned)length);
		if (!length || send(fd, message, length + 2, MSG_NOSIGNAL) < 0)
			break;
	}
	close(fd);
	return NULL;
}

static void *accept_all(void *listening)
{
	for (;;) {
		int fd = accept(*(int *)listening, NULL, NULL);
		pthread_t thread;

		if (fd >= 0 && !pthread_create(&thread, NULL, converse, (void *)(intptr_t)fd))
			pthread_detach(thread);
		else if (fd >= 0)
			close(fd);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "upstream ADDRESS PORT DELAY_US TTL\n");
		return 2;
	}
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
	int fd = socket(AF_INET, SOCK_DGRAM, 0), listening = socket(AF_INET, SOCK_STREAM, 0);
	pthread_t accepting;

	delay = atoll(argv[3]) * 1000;
	ttl = (uint32_t)atoi(argv[4]);

	if (inet_pton(AF_INET, argv[1], &at.sin_addr) != 1 || bind(fd, (struct sockaddr *)&at, sizeof at)) {
		perror("upstream");
		return 1;
	}
	if (bind(listening, (struct sockaddr *)&at, sizeof at) || listen(listening, 128) ||
	    pthread_create(&accepting, NULL, accept_all, &listening)) {
		perror("upstream");
		return 1;
	}
	for (;;) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		long long left = last == first ? 1000000000LL : queue[first % MOST].at - now_ns();
		struct timespec wait = {.tv_sec = 0, .tv_nsec = left < 0 ? 0 : left > 999999999 ? 999999999 : left};

		if (last - first < MOST)
			ppoll(&ready, 1, &wait, NULL);
		else
			usleep(100);
		receive(fd);
		for (long long now = now_ns(); first < last && queue[first % MOST].at <= now; first++) {
			struct pending *one = &queue[first % MOST];
			sendto(fd, one->message, one->length, 0, (struct sockaddr *)&one->to, sizeof one->to);
		}
	}
}
