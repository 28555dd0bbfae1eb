#!/bin/sh
# The routing agent of the node hangs: its routes stay as they were.
# finds: agent-silent
set -eu
case "$1" in
break)
	kill -STOP "$ROUTING_PID"
	;;
mend)
	kill -CONT "$ROUTING_PID"
	;;
esac
