#!/bin/sh
# The Corefile has a stub domain whose server is gone.
# finds: dns-upstream-silent
set -eu
. "${0%/*}/corefile.inc"
case "$1" in
break)
	add_to_corefile <<END
corp.example:53 {
    forward . 203.0.113.9
}
END
	;;
mend)
	restore_corefile
	;;
esac
