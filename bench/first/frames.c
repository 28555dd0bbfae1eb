/*
 * frames: UDP frames of 64 bytes that no socket sends and none receives: what it costs to forward a packet.
 *
 *     frames serve PORT
 *     frames send ADDRESS PORT SECONDS
 *
 * A packet socket sends volleys of 256 frames of one flow past this end's IP stack, and the other end's socket drops them
 * by a filter, so that no system call is among the costs of a packet but one for each 64. The flow is one that sockets of
 * both ends have begun: it is tracked and established. After each volley the other end is asked how many frames it has
 * dropped. A volley of which one is lost counts as failed; so nothing is still under way, and with both ends on one CPU the
 * time of a volley is all that its frames cost. Prints `summary` of pair.h for volleys; 256e6 / p50_us is frames a second.
 */
#include "pair.h"
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <netpacket/packet.h>
#include <sys/ioctl.h>

#define VOLLEY 256
#define BATCH 64
#define SIZE 64
#define MOST 1000000
#define LINK "eth0"
#define ASKS 'a'
#define FRAME 'f'

struct frame {
	struct ether_header link;
	struct iphdr ip;
	struct udphdr udp;
	char payload[SIZE - sizeof(struct ether_header) - sizeof(struct iphdr) - sizeof(struct udphdr)];
} __attribute__((packed));

static float took[MOST];
static struct mmsghdr messages[BATCH];
static struct frame frame;
static struct iovec one = {&frame, sizeof frame};

static _Noreturn void serve(const char *port)
{
	int fd = bound(SOCK_DGRAM, port);
	/* The first byte behind the UDP header: of a frame it means "drop". */
	struct sock_filter steps[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, sizeof(struct udphdr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FRAME, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, 0xffff),
	};
	struct sock_fprog filter = {4, steps};

	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter))
		die("SO_ATTACH_FILTER");
	for (;;) {
		struct sockaddr_in from;
		socklen_t length = sizeof from, size = sizeof(__u32) * SK_MEMINFO_VARS;
		__u32 memory[SK_MEMINFO_VARS];
		char byte;
		if (recvfrom(fd, &byte, 1, 0, (struct sockaddr *)&from, &length) != 1)
			continue;
		if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size))
			die("SO_MEMINFO");
		sendto(fd, &memory[SK_MEMINFO_DROPS], sizeof(__u32), 0, (struct sockaddr *)&from, length);
	}
}

/* How many frames the other end has dropped; -1 when it does not say. */
static long dropped(int fd)
{
	char byte = ASKS;
	__u32 count;

	if (send(fd, &byte, 1, 0) != 1 || recv(fd, &count, sizeof count, 0) != sizeof count)
		return -1;
	return count;
}

/* Whom the link sends to what is not on it: the one neighbour that it has. */
static void neighbour(unsigned char *mac)
{
	char line[256], device[64], address[32];
	unsigned int octet[6];
	FILE *table = fopen("/proc/self/net/arp", "r");

	while (table && fgets(line, sizeof line, table))
		if (sscanf(line, "%*s %*s %*s %31s %*s %63s", address, device) == 2 && !strcmp(device, LINK) &&
		    sscanf(address, "%x:%x:%x:%x:%x:%x", octet, octet + 1, octet + 2, octet + 3, octet + 4, octet + 5) == 6) {
			for (int i = 0; i < 6; i++)
				mac[i] = (unsigned char)octet[i];
			fclose(table);
			return;
		}
	fprintf(stderr, "no neighbour on " LINK "\n");
	exit(2);
}

static unsigned short checksum(const void *head, size_t size)
{
	const unsigned short *word = head;
	unsigned int sum = 0;

	for (size_t i = 0; i < size / 2; i++)
		sum += word[i];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (unsigned short)~sum;
}

/* A frame as the socket's own datagrams are: a UDP checksum of zero says that there is none. */
static void fill(int fd, const struct sockaddr_in *to)
{
	struct sockaddr_in from;
	struct ifreq request = {.ifr_name = LINK};
	socklen_t length = sizeof from;

	if (getsockname(fd, (struct sockaddr *)&from, &length) || ioctl(fd, SIOCGIFHWADDR, &request))
		die(LINK);
	neighbour(frame.link.ether_dhost);
	memcpy(frame.link.ether_shost, request.ifr_hwaddr.sa_data, ETHER_ADDR_LEN);
	frame.link.ether_type = htons(ETHERTYPE_IP);
	frame.ip = (struct iphdr){.version = 4,
				  .ihl = 5,
				  .ttl = 64,
				  .protocol = IPPROTO_UDP,
				  .tot_len = htons(sizeof frame - sizeof frame.link),
				  .saddr = from.sin_addr.s_addr,
				  .daddr = to->sin_addr.s_addr};
	frame.ip.check = checksum(&frame.ip, sizeof frame.ip);
	frame.udp.source = from.sin_port;
	frame.udp.dest = to->sin_port;
	frame.udp.len = htons(sizeof frame - sizeof frame.link - sizeof frame.ip);
	frame.payload[0] = FRAME;
}

/* A packet socket that hands frames to the link, past its queue. It is not bound, so it receives nothing. */
static int packets(void)
{
	static struct sockaddr_ll link = {.sll_family = AF_PACKET};
	int fd = socket(AF_PACKET, SOCK_RAW, 0), yes = 1;

	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof yes))
		die("packet socket");
	link.sll_protocol = htons(ETHERTYPE_IP);
	link.sll_ifindex = (int)if_nametoindex(LINK);
	for (int i = 0; i < BATCH; i++)
		messages[i].msg_hdr = (struct msghdr){
			.msg_name = &link, .msg_namelen = sizeof link, .msg_iov = &one, .msg_iovlen = 1};
	return fd;
}

static int volley(int out)
{
	int sent = 0;

	while (sent < VOLLEY) {
		int n = sendmmsg(out, messages, BATCH, 0);
		if (n <= 0)
			return 0;
		sent += n;
	}
	return sent;
}

int main(int argc, char **argv)
{
	long n = 0, failed = 0;

	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(argv[2]);
	if (argc != 5 || strcmp(argv[1], "send")) {
		fprintf(stderr, "usage: frames serve PORT | frames send ADDRESS PORT SECONDS\n");
		return 2;
	}
	struct sockaddr_in to = socket_address(argv[2], argv[3]);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), out = packets();
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		die("socket");
	give_up_after(fd, 1);
	for (int i = 0; i < 4; i++)
		dropped(fd);
	fill(fd, &to);
	double warm = microseconds() + 1e5;
	while (microseconds() < warm) {
		volley(out);
		dropped(fd);
	}
	long had = dropped(fd);
	double first = microseconds(), now = first;
	while (now < first + atof(argv[4]) * 1e6 && n < MOST && failed < 5) {
		double before = now;
		long sent = volley(out), has = dropped(fd);
		now = microseconds();
		if (sent == VOLLEY && has == had + sent)
			took[n++] = (float)(now - before);
		else
			failed++;
		had = has;
	}
	summary(took, n, failed, (now - first) / 1e6);
	return 0;
}
