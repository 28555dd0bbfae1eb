"""What passes routes on behind ExaBGP's API: JSON of UPDATEs in, commands that announce routes out.

    exabgp_relay.py RECEIVER ASN REFUSED

It stands alone, since ExaBGP starts it: RECEIVER is the peer that gets the routes, ASN this speaker's number, REFUSED a
range whose routes are left out, as import policy asks for. A preference says nothing to an external peer.
"""

from __future__ import annotations

import json
import sys
from ipaddress import ip_network
from typing import Any


def commands(message: dict[str, Any], receiver: str, asn: str, refused: str) -> list[str]:
    """The commands that pass on what an UPDATE makes reachable."""
    update = message["neighbor"]["message"].get("update", {})
    attribute = update.get("attribute", {})
    words = [f"neighbor {receiver} announce attributes next-hop self origin {attribute.get('origin', 'igp')}"]
    words.append(f"as-path [ {asn} {' '.join(map(str, attribute.get('as-path', ())))} ]")
    if "community" in attribute:
        words.append(f"community [ {' '.join(':'.join(map(str, one)) for one in attribute['community'])} ]")
    if "large-community" in attribute:
        words.append(f"large-community [ {' '.join(':'.join(map(str, one)) for one in attribute['large-community'])} ]")
    found = []
    for hops in update.get("announce", {}).values():
        for prefixes in hops.values():
            texts = [one["nlri"] for one in prefixes if isinstance(one, dict) and "nlri" in one]
            kept = [text for text in texts if not text.startswith(refused)]
            if kept:
                found.append(f"{' '.join(words)} nlri {' '.join(kept)}")
    return found


def main() -> None:
    """Until ExaBGP ends."""
    receiver, asn, refused = sys.argv[1:]
    network = ip_network(refused)
    start = "10." if network.version == 4 else "fd"
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("type") == "update":
            for one in commands(message, receiver, asn, start):
                sys.stdout.write(one + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
