#!/bin/sh
# A policy has egress rules, and policyTypes lists Ingress alone.
# finds: policy-types
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	break_pods <<END
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: fault}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{}]
  egress: [{to: [{podSelector: {}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
