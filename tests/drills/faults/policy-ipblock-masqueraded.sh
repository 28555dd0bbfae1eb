#!/bin/sh
# A policy allows the outside host by its address, and it comes by the first node to a pod of the second.
# finds: policy-ipblock-masqueraded
set -eu
case "$1" in
break)
	client=$(nsenter --net="/run/netns/$OUTSIDE" ip -4 -o addr show scope global | awk '{split($4, parts, "/"); print parts[1]; exit}')
	kubectl apply -f - <<END
apiVersion: v1
kind: Namespace
metadata: {name: fault}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: fault, labels: {app: web}}
spec:
  nodeName: $PEER_NAME
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: "lab.local/shop:1", args: [--http, "8080"]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: fault}
spec:
  type: NodePort
  externalTrafficPolicy: Cluster
  selector: {app: web}
  ports: [{name: http, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30054}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-outside, namespace: fault}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{ipBlock: {cidr: $client/32}}], ports: [{protocol: TCP, port: 8080}]}]
END
	(while :; do nsenter --net="/run/netns/$OUTSIDE" "$PYTHON" -c "import socket; s = socket.socket(); s.settimeout(0.3); s.connect_ex(('$NODE_ADDRESS', 30054))"; done) > /dev/null 2>&1 &
	echo $! > "$STATE/client.pid"
	;;
mend)
	kill "$(cat "$STATE/client.pid")"
	kubectl delete namespace fault --wait=true --ignore-not-found
	;;
esac
