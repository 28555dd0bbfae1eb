"""Errors that end a BGP session: the codes of NOTIFICATION messages, their names, and the exception that carries one.

Numbers and names are those of IANA's registry "BGP Error (Notification) Codes".
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """What a NOTIFICATION is about (RFC 4271 4.5, RFC 7313, RFC 9687)."""

    HEADER = 1
    OPEN = 2
    UPDATE = 3
    HOLD_TIMER = 4
    STATE_MACHINE = 5
    CEASE = 6
    ROUTE_REFRESH = 7
    SEND_HOLD_TIMER = 8


class Cease(IntEnum):
    """Why a speaker ends a session that has no error (RFC 4486, RFC 8538, RFC 9384)."""

    MAXIMUM_PREFIXES = 1
    ADMINISTRATIVE_SHUTDOWN = 2
    PEER_DECONFIGURED = 3
    ADMINISTRATIVE_RESET = 4
    CONNECTION_REJECTED = 5
    CONFIGURATION_CHANGE = 6
    CONNECTION_COLLISION = 7
    OUT_OF_RESOURCES = 8
    HARD_RESET = 9
    BFD_DOWN = 10


class UpdateError(IntEnum):
    """What is wrong with an UPDATE (RFC 4271 6.3)."""

    MALFORMED_ATTRIBUTE_LIST = 1
    UNRECOGNIZED_WELL_KNOWN = 2
    MISSING_WELL_KNOWN = 3
    ATTRIBUTE_FLAGS = 4
    ATTRIBUTE_LENGTH = 5
    INVALID_ORIGIN = 6
    INVALID_NEXT_HOP = 8
    OPTIONAL_ATTRIBUTE = 9
    INVALID_NETWORK = 10
    MALFORMED_AS_PATH = 11


CODES = {
    1: "Message Header Error",
    2: "OPEN Message Error",
    3: "UPDATE Message Error",
    4: "Hold Timer Expired",
    5: "Finite State Machine Error",
    6: "Cease",
    7: "ROUTE-REFRESH Message Error",
    8: "Send Hold Timer Expired",
}
"""Name of each error code."""

SUBCODES = {
    (1, 1): "Connection Not Synchronized",
    (1, 2): "Bad Message Length",
    (1, 3): "Bad Message Type",
    (2, 1): "Unsupported Version Number",
    (2, 2): "Bad Peer AS",
    (2, 3): "Bad BGP Identifier",
    (2, 4): "Unsupported Optional Parameter",
    (2, 5): "Authentication Failure",
    (2, 6): "Unacceptable Hold Time",
    (2, 7): "Unsupported Capability",
    (2, 11): "Role Mismatch",
    (3, 1): "Malformed Attribute List",
    (3, 2): "Unrecognized Well-known Attribute",
    (3, 3): "Missing Well-known Attribute",
    (3, 4): "Attribute Flags Error",
    (3, 5): "Attribute Length Error",
    (3, 6): "Invalid ORIGIN Attribute",
    (3, 7): "AS Routing Loop",
    (3, 8): "Invalid NEXT_HOP Attribute",
    (3, 9): "Optional Attribute Error",
    (3, 10): "Invalid Network Field",
    (3, 11): "Malformed AS_PATH",
    (5, 1): "Unexpected Message in OpenSent State",
    (5, 2): "Unexpected Message in OpenConfirm State",
    (5, 3): "Unexpected Message in Established State",
    (6, 1): "Maximum Number of Prefixes Reached",
    (6, 2): "Administrative Shutdown",
    (6, 3): "Peer De-configured",
    (6, 4): "Administrative Reset",
    (6, 5): "Connection Rejected",
    (6, 6): "Other Configuration Change",
    (6, 7): "Connection Collision Resolution",
    (6, 8): "Out of Resources",
    (6, 9): "Hard Reset",
    (6, 10): "BFD Down",
    (7, 1): "Invalid Message Length",
}
"""Name of each error subcode, by code and subcode."""


class MessageError(Exception):
    """A message that ends the session: the NOTIFICATION to send, and why in a sentence."""

    def __init__(self, code: int, subcode: int, reason: str, content: bytes = b"") -> None:
        super().__init__(f"{code}/{subcode}: {reason}")
        self.code = code
        self.subcode = subcode
        self.content = content
        """Data field of the NOTIFICATION."""
        self.reason = reason


def error_name(code: int, subcode: int) -> str:
    """Code and subcode in words, or as numbers where the registry has none."""
    name = CODES.get(code, f"Error {code}")
    if subcode == 0:
        return name
    return f"{name}: {SUBCODES.get((code, subcode), f'Subcode {subcode}')}"


class Malformed(Exception):
    """An attribute that is wrong and ends no session (RFC 7606): its prefixes are withdrawn, or it is left out.

    ``subcode`` is the UPDATE error to send where there is nothing to withdraw (RFC 7606 5.2).
    """

    def __init__(self, subcode: UpdateError, reason: str, *, withdrawn: bool = True) -> None:
        super().__init__(reason)
        self.subcode = subcode
        self.reason = reason
        self.withdrawn = withdrawn


def ignored(reason: str, subcode: UpdateError = UpdateError.OPTIONAL_ATTRIBUTE) -> Malformed:
    """An attribute that is left out alone ("attribute discard", RFC 7606 2)."""
    return Malformed(subcode, reason, withdrawn=False)
