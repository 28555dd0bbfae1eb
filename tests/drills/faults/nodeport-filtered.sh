#!/bin/sh
# A firewall in front of the other node drops a node port.
# finds: nodeport-filtered
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$ROUTER" nft 'add table inet operator; add chain inet operator drops { type filter hook forward priority 0; }; add rule inet operator drops tcp dport 30053 counter drop'
	kubectl apply -f - <<END
apiVersion: v1
kind: Service
metadata: {name: fault, namespace: kube-system}
spec:
  type: NodePort
  externalTrafficPolicy: Cluster
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, protocol: TCP, port: 53, nodePort: 30053}]
END
	;;
mend)
	nsenter --net="/run/netns/$ROUTER" nft delete table inet operator
	kubectl -n kube-system delete service fault
	;;
esac
