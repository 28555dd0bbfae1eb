#!/bin/sh
# A peer's value stands under another key than the pods have it.
# finds: policy-labels
# kept: checks are not tuned by it
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
  ingress: [{from: [{podSelector: {matchLabels: {app.kubernetes.io/name: client}}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
