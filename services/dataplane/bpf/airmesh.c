/* All programs of a node, compiled as one piece. */
#include "datapath.c"
#include "sock.c"
