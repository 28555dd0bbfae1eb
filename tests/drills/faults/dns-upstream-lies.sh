#!/bin/sh
# The resolver of all external names invents an address for names that nobody has.
# finds: dns-upstream-lies
set -eu
. "${0%/*}/corefile.inc"
liar() { cat <<END
apiVersion: v1
kind: Namespace
metadata: {name: fault}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: liar, namespace: fault}
data:
  Corefile: |
    .:53 {
        template IN A . {
            answer "{{ .Name }} 60 IN A 203.0.113.66"
        }
        template IN NS . {
            answer "{{ .Name }} 60 IN NS ns.example."
        }
    }
---
apiVersion: v1
kind: Pod
metadata: {name: liar, namespace: fault}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: Default
  containers:
  - {name: liar, image: "lab.local/coredns:1", args: [-conf, /etc/coredns/Corefile],
     volumeMounts: [{name: corefile, mountPath: /etc/coredns}]}
  volumes: [{name: corefile, configMap: {name: liar}}]
END
}
case "$1" in
break)
	liar | kubectl apply -f -
	kubectl -n fault wait --for=condition=Ready pod/liar --timeout=60s
	address=$(kubectl -n fault get pod liar -o 'jsonpath={.status.podIP}')
	corefile > "$STATE/Corefile.before"
	awk -v "to=$address" '{ print } /^\.:53 [{]/ { print "    forward . " to }' "$STATE/Corefile.before" > "$STATE/Corefile"
	write_corefile "$STATE/Corefile"
	;;
mend)
	restore_corefile
	kubectl delete namespace fault --wait=true --ignore-not-found
	;;
esac
