/*
 * loopback: the CNI plugin that containerd runs for every sandbox before the real network, whatever that is.
 *
 * It brings `lo` up in CNI_NETNS (ADD), checks that it is up (CHECK), and has nothing to undo (DEL). On a
 * real node it comes with the distribution's containernetworking-plugins; a lab brings its own so that a
 * machine needs no other CNI plugin. Errors are answered as the CNI specification 1.1.0 wants them: a JSON
 * object on stdout with its code, exit status 1. The kernel gives lo its addresses when it goes up.
 * Build: cc -static -O2 loopback.c -o loopback
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CODE_INVALID_ENVIRONMENT = 4, CODE_IO = 5, CODE_NOT_UP = 100 };

static char version[16] = "0.3.1";

/* The configuration on stdin is small and ours to trust only for one field: the version to answer in. */
static void read_version(void)
{
	char text[65536];
	size_t length = fread(text, 1, sizeof text - 1, stdin);
	char *at;

	text[length] = '\0';
	at = strstr(text, "\"cniVersion\"");
	if (at && sscanf(at + strlen("\"cniVersion\""), " : \"%15[0-9.]\"", version) != 1)
		strcpy(version, "0.3.1");
}

static int refuse(int code, const char *message)
{
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\"}\n", version, code, message);
	return 1;
}

static int enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int failed = fd < 0 || setns(fd, CLONE_NEWNET);

	if (fd >= 0)
		close(fd);
	return failed;
}

int main(void)
{
	const char *command = getenv("CNI_COMMAND"), *netns = getenv("CNI_NETNS");
	struct ifreq request = { .ifr_name = "lo" };
	int fd;

	read_version();
	if (!command)
		return refuse(CODE_INVALID_ENVIRONMENT, "CNI_COMMAND is not set");
	if (!strcmp(command, "VERSION")) {
		printf("{\"cniVersion\":\"%s\",\"supportedVersions\":"
		       "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n", version);
		return 0;
	}
	if (strcmp(command, "ADD") && strcmp(command, "CHECK"))
		return 0; /* DEL, GC, STATUS: nothing is kept */
	if (!netns || enter(netns))
		return refuse(CODE_INVALID_ENVIRONMENT, "CNI_NETNS names no network namespace");
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
		return refuse(CODE_IO, "cannot read the flags of lo");
	if (!strcmp(command, "CHECK"))
		return request.ifr_flags & IFF_UP ? 0 : refuse(CODE_NOT_UP, "lo is not up");
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		return refuse(CODE_IO, "cannot set lo up");
	printf("{\"cniVersion\":\"%s\",\"interfaces\":[{\"name\":\"lo\",\"mac\":\"00:00:00:00:00:00\",\"sandbox\":\"%s\"}],"
	       "\"ips\":[{%s\"interface\":0,\"address\":\"127.0.0.1/8\"},{%s\"interface\":0,\"address\":\"::1/128\"}],\"dns\":{}}\n",
	       version, netns, version[0] == '0' ? "\"version\":\"4\"," : "", version[0] == '0' ? "\"version\":\"6\"," : "");
	return 0;
}
