#!/bin/sh
# A policy of kube-system isolates CoreDNS and lets its own namespace in alone.
# finds: dns-policy
# kept: checks are not tuned by it
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	break_pods <<END
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: fault, namespace: kube-system}
spec:
  podSelector: {}
  ingress: [{from: [{podSelector: {}}]}]
END
	;;
mend)
	kubectl -n kube-system delete networkpolicy fault
	mend_pods
	;;
esac
