#!/bin/sh
# Somebody forgot a brace in the Corefile.
# finds: dns-corefile
# kept: checks are not tuned by it
set -eu
. "${0%/*}/corefile.inc"
case "$1" in
break)
	add_to_corefile <<END
corp.example:53 {
    forward . 203.0.113.9
END
	;;
mend)
	restore_corefile
	;;
esac
