/* All programs of a node, compiled as one piece. */
#include "pod.c"
#include "uplink.c"
#include "sock.c"
#include "gc.c"
