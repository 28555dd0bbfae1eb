/* All programs of a node, compiled as one piece. */
#include "pod.c"
#include "uplink.c"
#include "tunnel.c"
#include "sock.c"
#include "gc.c"
