#!/bin/sh
# No CoreDNS pod can start: its image is not there.
# finds: dns-servers-down
set -eu
case "$1" in
break)
	kubectl -n kube-system get deployment coredns -o 'jsonpath={.spec.template.spec.containers[0].image}' > "$STATE/coredns.image"
	kubectl -n kube-system set image deployment/coredns coredns=lab.local/absent:1
	# A Deployment keeps servers of its former image until one of the new runs: their ReplicaSet goes, and is not made again.
	kubectl -n kube-system delete replicasets -l k8s-app=kube-dns
	kubectl -n kube-system delete pods -l k8s-app=kube-dns --grace-period=0 --force
	;;
mend)
	kubectl -n kube-system set image deployment/coredns coredns="$(cat "$STATE/coredns.image")"
	kubectl -n kube-system rollout status deployment/coredns --timeout=50s
	;;
esac
