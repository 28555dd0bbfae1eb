"""The published language of airmesh: every message, key, bucket, subject and drop reason, and nothing that acts.

The other layers (``kit``, ``chassis``, ``services``, ``cli``, ``lab``) import from here; this package imports only the
standard library, msgspec and itself. A core may import the message types, never ``proto.codec`` (the wire) nor
``proto.subjects`` (the bus).
"""
