#!/bin/sh
# A policy allows egress to a peer, and not to name service.
# finds: dns-policy
set -eu
. "${0%/*}/pods.inc"
case "$1" in
break)
	break_pods <<END
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: fault}
spec:
  podSelector: {matchLabels: {app: client}}
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
END
	;;
mend)
	mend_pods
	;;
esac
