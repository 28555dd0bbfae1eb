/*
 * spawner: runs one program once per line of a table and tells how long each run took, from the call that starts it to
 * the wait that ends it. So that nothing interpreted is in the measured path.
 *
 *     spawner TABLE PARALLEL PAUSE STDIN STDOUT PROGRAM [ARGUMENT...]
 *
 * TABLE: a line a run, "NAME=value" separated by tabs, added to the environment. PARALLEL: how many at once. PAUSE:
 * milliseconds of rest before each start. STDIN: a file given to each; STDOUT: a file that all append to. Prints {"failed":N,"wall_us":T,"us":[...]}, in lines' order.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_RUNS 4096
#define MAX_LINE 4096

extern char **environ;
static char *lines[MAX_RUNS];
static double begun[MAX_RUNS], took[MAX_RUNS];
static pid_t pids[MAX_RUNS];

static double microseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static int read_table(const char *path)
{
	static char line[MAX_LINE];
	FILE *file = fopen(path, "r");
	int n = 0;

	if (!file)
		die(path);
	while (n < MAX_RUNS && fgets(line, sizeof line, file)) {
		line[strcspn(line, "\n")] = 0;
		if (!(lines[n++] = strdup(line)))
			die("memory");
	}
	fclose(file);
	return n;
}

static void start(int i, const char *in, const char *out, char **argv)
{
	posix_spawn_file_actions_t files;
	char *rest = lines[i], *pair;

	while ((pair = strsep(&rest, "\t")))
		if (putenv(pair))
			die("putenv");
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, in, O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&files, 1, out, O_WRONLY | O_CREAT | O_APPEND, 0600);
	begun[i] = microseconds();
	if (posix_spawn(&pids[i], argv[0], &files, NULL, argv, environ))
		die(argv[0]);
	posix_spawn_file_actions_destroy(&files);
}

int main(int argc, char **argv)
{
	int runs, parallel, started = 0, done = 0, failed = 0;

	if (argc < 7) {
		fprintf(stderr, "usage: spawner TABLE PARALLEL PAUSE STDIN STDOUT PROGRAM [ARGUMENT...]\n");
		return 2;
	}
	runs = read_table(argv[1]);
	parallel = atoi(argv[2]);
	double first = microseconds();
	while (done < runs) {
		int status;
		while (started < runs && started - done < parallel) {
			usleep((useconds_t)atoi(argv[3]) * 1000);
			start(started++, argv[4], argv[5], argv + 6);
		}
		pid_t ended = wait(&status);
		double now = microseconds();
		for (int i = 0; i < started; i++)
			if (pids[i] == ended)
				took[i] = now - begun[i];
		failed += !WIFEXITED(status) || WEXITSTATUS(status);
		done++;
	}
	printf("{\"failed\":%d,\"wall_us\":%.1f,\"us\":[", failed, microseconds() - first);
	for (int i = 0; i < runs; i++)
		printf("%s%.1f", i ? "," : "", took[i]);
	printf("]}\n");
	return 0;
}
