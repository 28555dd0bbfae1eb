#!/bin/sh
# The DNS Service's selector was changed: it selects no CoreDNS pod.
# finds: dns-service-selector
# kept: checks are not tuned by it
set -eu
select() { kubectl -n kube-system patch service kube-dns -p "{\"spec\":{\"selector\":{\"k8s-app\":\"$1\"}}}"; }
case "$1" in
break)
	select coredns
	;;
mend)
	select kube-dns
	;;
esac
