#!/bin/sh
# The ephemeral range has been made larger, over the node ports.
# finds: nodeport-ephemeral
set -eu
case "$1" in
break)
	nsenter --net="/run/netns/$NODE" sysctl -qw "net.ipv4.ip_local_port_range=30000 60999"
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
	nsenter --net="/run/netns/$NODE" sysctl -qw "net.ipv4.ip_local_port_range=32768 60999"
	kubectl -n kube-system delete service fault
	;;
esac
