#!/bin/sh
# The link between the two nodes loses a sixth of the packets that pods send over it.
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
	nsenter --net="/run/netns/$PEER" nft 'add table netdev fabric; add chain netdev fabric loss { type filter hook ingress device fab0 priority 0; }; add rule netdev fabric loss udp dport 4789 numgen random mod 6 < 1 drop'
	;;
mend)
	nsenter --net="/run/netns/$PEER" nft delete table netdev fabric
	kill "$(cat "$STATE/talk.pid")" || true
	rm "$STATE/talk.pid"
	kubectl delete namespace fault --wait=true --ignore-not-found
	;;
esac
