#!/bin/sh
# The node has a neighbour entry of a machine that is gone.
# finds: neighbour-stale
# kept: checks are not tuned by it
set -eu
case "$1" in
break)
	ip -n "$NODE" neigh replace "$CONTROL_ADDRESS" lladdr 02:00:00:00:00:99 dev fab0 nud permanent
	;;
mend)
	ip -n "$NODE" neigh del "$CONTROL_ADDRESS" dev fab0
	;;
esac
