#!/bin/sh
# CoreDNS forwards a zone to the cluster's own DNS Service.
# finds: dns-loop
set -eu
. "${0%/*}/corefile.inc"
case "$1" in
break)
	add_to_corefile <<END
corp.example:53 {
    forward . 10.96.0.10
}
END
	;;
mend)
	restore_corefile
	;;
esac
