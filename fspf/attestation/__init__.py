"""Evidence of who a client is, parsed and verified as pure functions.

Challenges, tokens and what a policy grants are left to `fspf.cas`; the `make_*` modules produce evidence where it can be had.
"""

from __future__ import annotations

from fspf.attestation.claims import BINDING_LEN, Claims, Collateral, Trust
from fspf.attestation.dispatch import KINDS, verify
from fspf.attestation.matching import match
from fspf.attestation.reading import key_id
from fspf.core.errors import AttestationError

__all__ = [
    "BINDING_LEN",
    "KINDS",
    "AttestationError",
    "Claims",
    "Collateral",
    "Trust",
    "key_id",
    "match",
    "verify",
]
