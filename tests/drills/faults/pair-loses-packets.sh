#!/bin/sh
# The network between the two nodes loses a sixth of the packets that pods send each other.
# finds: pair-loses-packets
set -eu
case "$1" in
break)
	kubectl apply -f - <<END
apiVersion: v1
kind: Namespace
metadata: {name: fault}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: fault}
spec:
  nodeName: $PEER_NAME
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: "lab.local/shop:1", args: [--tcp, "9000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: fault}
spec:
  nodeName: $NODE_NAME
  terminationGracePeriodSeconds: 0
  containers: [{name: client, image: "lab.local/shop:1", args: [--http, "8080"]}]
END
	kubectl -n fault wait --for=condition=Ready --timeout=60s pod/web pod/client
	web=$(kubectl -n fault get pod web -o 'jsonpath={.status.podIP}')
	kubectl -n fault exec client -- shop talk --flows 16 --interval 20ms --for 10m "$web:9000" > /dev/null 2>&1 &
	echo $! > "$STATE/talk.pid"
	nsenter --net="/run/netns/$ROUTER" nft 'add table inet loses; add chain inet loses forward { type filter hook forward priority 0; }; add rule inet loses forward udp dport 4789 numgen random mod 6 < 1 drop'
	;;
mend)
	nsenter --net="/run/netns/$ROUTER" nft delete table inet loses
	kill "$(cat "$STATE/talk.pid")" || true
	rm "$STATE/talk.pid"
	kubectl delete namespace fault --wait=true --ignore-not-found
	;;
esac
