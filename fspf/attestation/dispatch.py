"""Verifies a piece of evidence of whatever kind.

Each kind has a module of its own; challenges and what is granted are left to `fspf.cas`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fspf.attestation import dcap, key, measured, snp, tpm
from fspf.attestation.claims import BINDING_LEN, Claims, Trust
from fspf.attestation.reading import Fields
from fspf.core.errors import AttestationError

KINDS: Final = ("key", "measured-process", "sev-snp", "sgx", "tdx", "tpm")


def verify(evidence: Mapping[str, Any], binding: bytes, trust: Trust, now_ns: int) -> Claims:
    """Check one piece of evidence, and return what it shows.

    Args:
        evidence: As it came, hostile: a JSON object with `type`.
        binding: What the evidence must cover: SHA-256 over the challenge's nonce and the session's public key.
        trust: Whom this CAS believes.
        now_ns: UTC ns since 1970, for the validity of certificates and lists.

    Raises:
        AttestationError: It is malformed, not authentic, or of another challenge.
    """
    assert len(binding) == BINDING_LEN
    fields = Fields("evidence", evidence)
    kind = fields.text("type")
    fields.kind = kind if kind in KINDS else "evidence"
    if kind == key.KIND:
        return key.verify(fields, binding)
    if kind == measured.KIND:
        return measured.verify(fields, binding, trust)
    if kind == tpm.KIND:
        return tpm.verify(fields, binding, trust)
    if kind == snp.KIND:
        return snp.verify(fields, binding, trust, now_ns)
    if kind in dcap.KINDS:
        return dcap.verify(fields, kind, binding, trust, now_ns)
    raise AttestationError("evidence.type", f"one of {', '.join(KINDS)} is expected, seen {kind!r:.40}")
