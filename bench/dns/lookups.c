/*
 * lookups: names looked up as a program of a pod does it, one after the other, by the resolver of its C library.
 *
 *     lookups COUNT INTERVAL_US NAMES FRESH_PER_MILLE SEED
 *
 * A lookup is getaddrinfo() for both families, with /etc/resolv.conf as it is. COUNT of them begin INTERVAL_US apart, or
 * when the one before has ended. Of 1,000 about FRESH_PER_MILLE ask for a name that nobody has asked for, the others for
 * one of NAMES names. Compiled with gcc it is a client of glibc, with musl-gcc one of musl.
 *
 * Prints {"failed": N, "us": [...]}: microseconds of each lookup that found an address.
 */
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void sleep_until(long long at)
{
	struct timespec when = {.tv_sec = at / 1000000000LL, .tv_nsec = at % 1000000000LL};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL))
		;
}

int main(int argc, char **argv)
{
	if (argc != 6) {
		fprintf(stderr, "lookups COUNT INTERVAL_US NAMES FRESH_PER_MILLE SEED\n");
		return 2;
	}
	long count = atol(argv[1]), interval = atol(argv[2]), names = atol(argv[3]), fresh = atol(argv[4]);
	unsigned seed = (unsigned)atol(argv[5]), state = seed;
	const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
	long failed = 0, answered = 0;
	long long begin = now_ns();

	printf("{\"us\": [");
	for (long i = 0; i < count; i++) {
		char name[64];
		struct addrinfo *found = NULL;

		if (rand_r(&state) % 1000 < fresh)
			snprintf(name, sizeof name, "f%u-%ld.cdn.example", seed, i);
		else
			snprintf(name, sizeof name, "n%ld.api.example", rand_r(&state) % names);
		sleep_until(begin + i * interval * 1000);
		long long start = now_ns();
		int wrong = getaddrinfo(name, "443", &hints, &found);
		long long took = now_ns() - start;
		if (wrong) {
			failed++;
			continue;
		}
		freeaddrinfo(found);
		printf("%s%.1f", answered++ ? ", " : "", took / 1000.0);
	}
	printf("], \"failed\": %ld}\n", failed);
	return 0;
}
