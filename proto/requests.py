"""Requests and their replies (NATS micro endpoints, queue group per service).

Each subject is in ``proto.subjects``. A reply is always a :class:`Reply`: either ``ok`` with the body that the request
names, or a refusal with a stable code and one sentence that names the field and the remedy.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.addresses import Block, Claim, OwnerRecord, PoolVerdict
from proto.admission import Admission, AdmissionRequest
from proto.bgp import BgpRoutes, BgpRoutesRequest, BgpSessions, BgpSessionsRequest
from proto.bgp_capture import BgpCapture, BgpCaptureRequest
from proto.dns import DnsChangeAnswer, DnsChangeRequest
from proto.dns_pods import PodDnsReport, PodDnsRequest
from proto.findings import DoctorRequest, Findings
from proto.net import Address
from proto.objects import IPPool, Owner
from proto.pairs import Pairs, PairsRequest
from proto.probes import ProbeAnswer, ProbeRequest
from proto.subjects import (
    BGP,
    BGP_CAPTURE,
    BGP_ROUTES,
    CLUSTER_ADMIT,
    DNS_CHANGE,
    DNS_PODS,
    FINDINGS,
    IPAM_BLOCK,
    IPAM_CLAIM,
    IPAM_RELEASE,
    IPAM_REPORT,
    IPAM_SHOW,
    PAIRS,
    POLICY_EXPLAIN,
    POLICY_MATRIX,
    PROBES,
    SPANS,
)
from proto.traces import Spans, SpansRequest


class Reply(msgspec.Struct, frozen=True):
    """Every reply's frame; ``body`` is the encoded message that the request's docstring names, empty on refusal."""

    ok: bool
    body: bytes = b""
    code: str = ""
    """E.g. ``pool-exhausted``, ``not-synced``, ``held-elsewhere``, ``malformed``, ``not-found``."""
    message: str = ""
    retry: bool = False
    """Trying the same again later can succeed."""


class BlockRequest(msgspec.Struct, frozen=True):
    """``airmesh.v1.ipam.block`` → :class:`BlockGrant`: one more block of this family for a node.

    Idempotent by ``nonce``: asked twice with the same nonce, the same block is answered.
    """

    node: str
    node_uid: str
    family: Literal[4, 6]
    nonce: str


class BlockGrant(msgspec.Struct, frozen=True):
    """The block that is the node's from now on."""

    block: Block


class BlockReportRequest(msgspec.Struct, frozen=True):
    """``airmesh.v1.ipam.report`` → :class:`BlockReportAnswer`: all blocks and claims that a node holds by its journal.

    Sent at start and whenever the epoch of ``blocks`` changes; ipam gives nothing away before every Node has sent one.
    """

    node: str
    node_uid: str
    blocks: tuple[Block, ...]
    claims: tuple[Claim, ...] = ()


class BlockReportAnswer(msgspec.Struct, frozen=True):
    """Blocks the node may go on using; what it reported and is not here has another holder and must be given up."""

    blocks: tuple[Block, ...]


class ClaimRequest(msgspec.Struct, frozen=True):
    """``airmesh.v1.ipam.claim`` → :class:`ClaimGrant`: the owner's kept address, for this pod on this node."""

    owner: Owner
    family: Literal[4, 6]
    node: str
    pod_uid: str
    container: str
    interface: str
    nonce: str
    address: Address | None = None
    """A fixed address that an annotation asks for."""


class ClaimGrant(msgspec.Struct, frozen=True):
    """The claim as it stands now, held by the asking pod."""

    claim: Claim


class ClaimRelease(msgspec.Struct, frozen=True):
    """``airmesh.v1.ipam.release`` → empty body: the holder is gone; compare-and-set on every field.

    A claim that another container holds by now is left alone (and that is success).
    """

    address: Address
    container: str
    interface: str
    nonce: str


class IpamShow(msgspec.Struct, frozen=True):
    """``airmesh.v1.ipam.show`` → :class:`IpamState`."""

    summary: bool = False
    """Only pools, who is waited for and what is wrong: no blocks, owners and claims, which grow with the cluster."""


class IpamState(msgspec.Struct, frozen=True):
    """For a person: pools, blocks and their holders, kept addresses."""

    pools: tuple[IPPool, ...]
    blocks: tuple[Block, ...]
    owners: tuple[OwnerRecord, ...]
    claims: tuple[Claim, ...]
    waiting_for: tuple[str, ...] = ()
    """Nodes that have not yet said what they hold: nothing is given away until they have."""
    problems: tuple[str, ...] = ()
    """E.g. overlapping pools, each one sentence with its remedy."""
    verdicts: tuple[PoolVerdict, ...] = ()
    """What becomes of each of ``pools``."""


class ExplainRequest(msgspec.Struct, frozen=True):
    """``airmesh.v1.policy.explain`` → :class:`Explanation`.

    ``source`` and ``destination`` are ``namespace/pod``, or an address.
    """

    source: str
    destination: str
    port: int
    protocol: int = 6


class Explanation(msgspec.Struct, frozen=True):
    """The verdict of the same code that compiles, with its reasons in order."""

    allowed: bool
    egress_allowed: bool
    ingress_allowed: bool
    reasons: tuple[str, ...]
    source_identity: int
    destination_identity: int
    revision: str


class ExplainMany(msgspec.Struct, frozen=True):
    """``airmesh.v1.policy.matrix`` → :class:`Explanations`: many questions at once (at most 4,096)."""

    questions: tuple[ExplainRequest, ...]


class Explanations(msgspec.Struct, frozen=True):
    """Answers in the order of the questions."""

    answers: tuple[Explanation, ...]


REQUESTS_BY_SUBJECT: dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct] | None]] = {
    IPAM_BLOCK: (BlockRequest, BlockGrant),
    IPAM_REPORT: (BlockReportRequest, BlockReportAnswer),
    IPAM_CLAIM: (ClaimRequest, ClaimGrant),
    IPAM_RELEASE: (ClaimRelease, None),
    IPAM_SHOW: (IpamShow, IpamState),
    DNS_CHANGE: (DnsChangeRequest, DnsChangeAnswer),
    POLICY_EXPLAIN: (ExplainRequest, Explanation),
    POLICY_MATRIX: (ExplainMany, Explanations),
    CLUSTER_ADMIT: (AdmissionRequest, Admission),
    SPANS: (SpansRequest, Spans),
    PAIRS: (PairsRequest, Pairs),
    BGP: (BgpSessionsRequest, BgpSessions),
    BGP_ROUTES: (BgpRoutesRequest, BgpRoutes),
    BGP_CAPTURE: (BgpCaptureRequest, BgpCapture),
    FINDINGS: (DoctorRequest, Findings),
    DNS_PODS: (PodDnsRequest, PodDnsReport),
    PROBES: (ProbeRequest, ProbeAnswer),
}
"""Subject (without the node that asks) → the question, and the body of the answer's :class:`Reply`; None: empty."""
