"""What verification starts from and what comes out of it: `Trust` and `Claims`.

Both are values; verifying is done by one module per kind of evidence, comparing with a policy by `fspf.attestation.matching`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

BINDING_LEN: Final = 32  # bytes: SHA-256 over the challenge's nonce and the session's public key

UP_TO_DATE: Final = "UpToDate"

# SHA-256 of the DER certificates of the makers' roots.
INTEL_ROOTS: Final = frozenset({"44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"})
AMD_ROOTS: Final = frozenset({
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",  # ARK-Milan
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",  # ARK-Genoa
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",  # ARK-Turin
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claims:
    """What one piece of evidence showed. Authentic, and bound to this challenge; whether it is enough is another question.

    Attributes:
        type: Kind of evidence, as on the wire.
        values: What the factors of a policy compare with, under their names there; bytes as lower-case hex.
        status: The maker's judgement of the platform, `UpToDate` where there is none.
        advisories: Security advisories that apply to the platform.
        debug: Its operator can look inside.
        expires_ns: Until when the certificates and lists used hold; None where there are none.
    """

    type: str
    values: Mapping[str, Any]
    status: str = UP_TO_DATE
    advisories: frozenset[str] = frozenset()
    debug: bool = False
    expires_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Collateral:
    """What Intel signs about one family of processors: needed to judge an SGX or TDX quote. Nothing of it is verified yet.

    Attributes:
        tcb_info, qe_identity: The signed JSON, byte for byte.
        tcb_info_signature, qe_identity_signature: 64 bytes, r and s.
        signing_chain: PEM of the TCB signing certificate and the root.
        pck_crls: DER, of the Processor CA, the Platform CA or both.
        root_crl: DER.
    """

    tcb_info: bytes
    tcb_info_signature: bytes
    qe_identity: bytes
    qe_identity_signature: bytes
    signing_chain: bytes
    pck_crls: tuple[bytes, ...]
    root_crl: bytes


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a CAS believes, and what its operator has collected for it.

    Attributes:
        intel_roots, amd_roots: Hex SHA-256 of root certificates.
        collateral: Intel's statements, for the processors that are in use.
        certificates: DER or PEM of intermediate certificates that clients need not send (AMD's ASK, ASVK and ARK).
        crls: DER of revocation lists of AMD's roots.
        node_keys: Key ids of the nodes whose `measured-process` statements count.
        aks: Key ids of TPM attestation keys that were enrolled; a policy may name others.
        stale_ns: For how long collateral and revocation lists are used after the date of their next update.
    """

    intel_roots: frozenset[str] = INTEL_ROOTS
    amd_roots: frozenset[str] = AMD_ROOTS
    collateral: tuple[Collateral, ...] = ()
    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    node_keys: frozenset[str] = field(default_factory=frozenset)
    aks: frozenset[str] = field(default_factory=frozenset)
    stale_ns: int = 0
