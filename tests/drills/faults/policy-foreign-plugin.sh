#!/bin/sh
# Calico was here before, and its chains still drop.
# finds: policy-foreign-plugin
# kept: checks are not tuned by it
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" nft -f - <<END
add table ip filter
add chain ip filter cali-FORWARD { type filter hook forward priority 0; }
add rule ip filter cali-FORWARD ip saddr 192.0.2.1 counter drop
END
	;;
mend)
	nsenter --net="/run/netns/$NODE" nft delete table ip filter
	;;
esac
