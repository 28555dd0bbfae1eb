#!/bin/sh
# A rule names a namespace by a label that it does not have.
# finds: policy-namespace-labels
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
  ingress: [{from: [{namespaceSelector: {matchLabels: {name: kube-system}}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
