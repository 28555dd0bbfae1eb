/*
 * airmesh-cni: the executable that a container runtime calls (CNI 1.1). It owns nothing: it hands the CNI_* variables
 * and stdin to the node's agent over a unix socket and prints the agent's answer, so a pod costs a tenth of a
 * millisecond of process start (with musl; glibc takes nearly one) instead of an interpreter's twenty.
 *
 * Socket: the top-level string "socket" of the configuration on stdin (the agent writes its own path there, so several
 * nodes can share one kernel), else DEFAULT_SOCKET. To the agent: each "CNI_X=value" ended by NUL, one more NUL, then
 * stdin as it came, then end of file. From the agent: one byte '0' or '1' (the exit code), a newline, the JSON.
 *
 * VERSION is answered here. Without an agent: STATUS says 50 (not available), every other verb 11 (try again later),
 * so a runtime repeats a DEL instead of forgetting it. Every buffer, wait and path is bounded.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/airmesh/cni.sock"
#define MAX_STDIN (64 << 10)
#define MAX_ENV (32 << 10)
#define MAX_ANSWER (256 << 10)
#define ANSWER_SECONDS 60 /* longer than the agent ever waits inside an ADD */

static char message[MAX_ENV + 1 + MAX_STDIN], answer[MAX_ANSWER];
static char version[16] = "1.0.0";
extern char **environ;

static int refuse(int code, const char *what)
{
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"airmesh-cni: %s\"}\n", version, code, what);
	return 1;
}

/* Skips a JSON string that begins at s (its opening quote); returns what follows the closing one, or NULL. */
static const char *skip_string(const char *s, const char *end)
{
	for (s++; s < end && *s != '"'; s++)
		if (*s == '\\')
			s++;
	return s < end ? s + 1 : NULL;
}

static const char *skip_space(const char *s, const char *end)
{
	while (s < end && (*s == ' ' || *s == '\t' || *s == '\n' || *s == '\r'))
		s++;
	return s;
}

/*
 * Copies the value of a top-level string member into out; leaves out alone when there is none, when it is escaped or
 * does not fit. The agent parses the document properly: this only finds the way to it.
 */
static void top_level_string(const char *json, size_t length, const char *name, char *out, size_t room)
{
	const char *end = json + length, *s = json;
	size_t wanted = strlen(name);
	int depth = 0;

	while (s && s < end) {
		if (*s == '{' || *s == '[')
			depth++;
		else if (*s == '}' || *s == ']')
			depth--;
		if (*s != '"') {
			s++;
			continue;
		}
		const char *key = s + 1, *after = skip_string(s, end);
		if (!after)
			return;
		s = skip_space(after, end);
		if (depth != 1 || s >= end || *s != ':')
			continue;
		s = skip_space(s + 1, end);
		if ((size_t)(after - 1 - key) != wanted || memcmp(key, name, wanted) || s >= end || *s != '"')
			continue;
		after = skip_string(s, end);
		if (!after)
			return;
		size_t n = (size_t)(after - s) - 2;
		if (n && n < room && !memchr(s + 1, '\\', n)) {
			memcpy(out, s + 1, n);
			out[n] = 0;
		}
		return;
	}
}

static int send_all(int fd, const char *from, size_t n)
{
	while (n) {
		ssize_t done = send(fd, from, n, MSG_NOSIGNAL);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return -1;
		from += done;
		n -= (size_t)done;
	}
	return 0;
}

/* Reads until end of file; returns the length, or -1 on an error or when it does not fit in room. */
static ssize_t read_all(int fd, char *to, size_t room)
{
	size_t n = 0;

	for (;;) {
		char extra;
		ssize_t got = n < room ? read(fd, to + n, room - n) : read(fd, &extra, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 || (got > 0 && n == room))
			return -1;
		if (!got)
			return (ssize_t)n;
		n += (size_t)got;
	}
}

static int dial(const char *path, int wait_seconds)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	struct timeval short_wait = {.tv_sec = 5}, long_wait = {.tv_sec = wait_seconds};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	memcpy(to.sun_path, path, strlen(path) + 1); /* path is no larger than sun_path */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &short_wait, sizeof short_wait);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &long_wait, sizeof long_wait);
	return connect(fd, (struct sockaddr *)&to, sizeof to) ? -1 : fd;
}

int main(void)
{
	const char *verb = getenv("CNI_COMMAND");
	char path[sizeof((struct sockaddr_un *)0)->sun_path] = DEFAULT_SOCKET;
	size_t head = 0;

	if (!verb || !*verb)
		return refuse(4, "CNI_COMMAND is not set; a container runtime sets it");
	for (char **e = environ; *e; e++) {
		size_t n = strlen(*e) + 1;
		if (strncmp(*e, "CNI_", 4))
			continue;
		if (head + n > MAX_ENV)
			return refuse(4, "the CNI_* variables are longer than 32 KiB in all");
		memcpy(message + head, *e, n);
		head += n;
	}
	message[head++] = 0;

	errno = 0;
	ssize_t body = read_all(0, message + head, MAX_STDIN);
	if (body < 0)
		return refuse(errno ? 5 : 6, "stdin cannot be read or is larger than 64 KiB");
	char spoken[sizeof version] = "";
	top_level_string(message + head, (size_t)body, "cniVersion", spoken, sizeof spoken);
	if (*spoken && strspn(spoken, "0123456789.") == strlen(spoken))
		strcpy(version, spoken);
	if (!strcmp(verb, "VERSION")) {
		printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n", version);
		return 0;
	}
	top_level_string(message + head, (size_t)body, "socket", path, sizeof path);

	int absent = strcmp(verb, "STATUS") ? 11 : 50;
	int fd = dial(path, ANSWER_SECONDS);
	if (fd < 0)
		return refuse(absent, "the node's airmesh agent does not answer; is the dataplane service running?");
	if (send_all(fd, message, head + (size_t)body) || shutdown(fd, SHUT_WR))
		return refuse(absent, "the node's airmesh agent did not take the request");
	ssize_t n = read_all(fd, answer, sizeof answer);
	if (n < 2 || (answer[0] != '0' && answer[0] != '1') || answer[1] != '\n')
		return refuse(absent, "the node's airmesh agent ended the call without an answer");
	if (fwrite(answer + 2, 1, (size_t)n - 2, stdout) != (size_t)n - 2 || fflush(stdout))
		return 1;
	return answer[0] == '1';
}
