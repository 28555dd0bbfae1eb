#!/bin/sh
# The network between the nodes takes packets of 1,400 bytes.
# finds: path-mtu-small
# kept: checks are not tuned by it
set -eu
case "$1" in
break)
	"$PYTHON" -m lab fabric mtu 1400 --name "$LAB"
	;;
mend)
	"$PYTHON" -m lab fabric mtu 1500 --name "$LAB"
	# What the router has said is remembered for ten minutes.
	nsenter --net="/run/netns/$NODE" ip route flush cache
	nsenter --net="/run/netns/$PEER" ip route flush cache
	;;
esac
