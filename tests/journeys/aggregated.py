"""An aggregated API server: one group over TLS, without resources. Run inside a pod's network namespace.

Arguments: the group and version (`drill.airmesh.io/v1`), the port, the folder of `tls.crt` and `tls.key`.
"""

from __future__ import annotations

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

group, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
RESOURCES = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": []}


class Answers(BaseHTTPRequestHandler):
    """The group's list of resources, whatever is asked."""

    def do_GET(self) -> None:
        """One answer."""
        body = json.dumps(RESOURCES).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is written."""


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
server = ThreadingHTTPServer(("", port), Answers)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
