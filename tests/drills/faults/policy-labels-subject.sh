#!/bin/sh
# A policy's podSelector has two letters of the label changed.
# finds: policy-labels
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	break_pods <<END
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: fault}
spec:
  podSelector: {matchLabels: {app: wbe}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
