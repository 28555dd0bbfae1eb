#!/bin/sh
# kube-proxy was taken away and has left its rules on the node.
# finds: service-kube-proxy
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" nft -f - <<END
add table ip nat
add chain ip nat KUBE-SEP-FAULT
add rule ip nat KUBE-SEP-FAULT ip saddr 192.0.2.1 counter dnat to 192.0.2.2
add chain ip nat KUBE-SVC-FAULT
add rule ip nat KUBE-SVC-FAULT jump KUBE-SEP-FAULT
add chain ip nat KUBE-SERVICES { type nat hook prerouting priority -100; }
add rule ip nat KUBE-SERVICES ip daddr 192.0.2.3 jump KUBE-SVC-FAULT
END
	;;
mend)
	nsenter --net="/run/netns/$NODE" nft -f - <<END
delete chain ip nat KUBE-SERVICES
delete chain ip nat KUBE-SVC-FAULT
delete chain ip nat KUBE-SEP-FAULT
delete table ip nat
END
	;;
esac
