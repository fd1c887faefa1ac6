"""Reads what a CAS's operator has collected to judge evidence by: a directory's files into `Trust`.

Reading the directory is left to the caller, verifying what Intel and AMD signed to the moment of its use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fspf.attestation.certificates import load_certificates, load_crl
from fspf.attestation.claims import Collateral, Trust
from fspf.attestation.reading import key_id
from fspf.attestation.signatures import check_key, spki_of
from fspf.core.errors import AttestationError, UsageError

FOLDERS: Final = {
    "collateral": "*.json: Intel's collateral for one family of processors",
    "certificates": "*.pem, *.der: AMD's ASK, ASVK and ARK",
    "crls": "*.der: revocation lists of AMD's roots",
    "nodes": "*.pem: public keys of nodes that may measure processes",
    "aks": "*.pem: public keys of TPMs that were enrolled",
}


def trust_from(files: Mapping[str, bytes], *, stale_ns: int = 0) -> Trust:
    """Make a `Trust` of the files of a directory.

    Args:
        files: Path below the directory (such as `nodes/alpha.pem`) to content.
        stale_ns: For how long collateral and revocation lists count after the date of their next update.

    Raises:
        UsageError: A file is in no known folder, or is not what its folder is for.
    """
    found: dict[str, list[Any]] = {folder: [] for folder in FOLDERS}
    for path, content in sorted(files.items()):
        folder, _, name = path.partition("/")
        if folder not in FOLDERS or not name or "/" in name:
            known = ", ".join(f"{folder}/ ({what})" for folder, what in FOLDERS.items())
            raise UsageError(f"{path}: a file in one of these is expected: {known}")
        try:
            found[folder].append(_read(folder, content))
        except AttestationError as exc:
            raise UsageError(f"{path}: {exc}") from None
    return Trust(
        collateral=tuple(found["collateral"]),
        certificates=tuple(found["certificates"]),
        crls=tuple(found["crls"]),
        node_keys=frozenset(found["nodes"]),
        aks=frozenset(found["aks"]),
        stale_ns=stale_ns,
    )


def _read(folder: str, content: bytes) -> Any:
    if folder == "collateral":
        return parse_collateral(content)
    if folder == "certificates":
        load_certificates(content, "certificate")
        return content
    if folder == "crls":
        load_crl(content, "revocation list")
        return content
    try:
        return key_id(spki_of(check_key(load_pem_public_key(content), "key")))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AttestationError("key", "a public key in PEM is expected") from None


def parse_collateral(text: bytes) -> Collateral:
    """Read collateral as one JSON object, in the form that quote verification libraries exchange.

    Its fields are `tcb_info`, `qe_identity` (texts, exactly as signed), `tcb_info_signature`, `qe_identity_signature`,
    `pck_crl`, `root_ca_crl` (hex) and `tcb_info_issuer_chain` (PEM); others, such as more issuer chains, are not needed.

    Raises:
        AttestationError: A field is missing or of another form.
    """
    try:
        fields = json.loads(text)
        return Collateral(
            tcb_info=fields["tcb_info"].encode(),
            tcb_info_signature=bytes.fromhex(fields["tcb_info_signature"]),
            qe_identity=fields["qe_identity"].encode(),
            qe_identity_signature=bytes.fromhex(fields["qe_identity_signature"]),
            signing_chain=fields["tcb_info_issuer_chain"].encode(),
            pck_crls=(bytes.fromhex(fields["pck_crl"]),),
            root_crl=bytes.fromhex(fields["root_ca_crl"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise AttestationError("collateral", f"a JSON object of Intel's collateral is expected ({exc!r:.80})") from None


def split_signed(response: bytes, name: str) -> tuple[bytes, bytes]:
    """Return document and signature of an answer of Intel's service, `{"NAME": {…}, "signature": "…"}`.

    The signature is over the bytes of the value as they stand there, so they are cut out rather than parsed.

    Raises:
        AttestationError: It has another form.
    """
    pattern = rb'\s*\{\s*"' + name.encode() + rb'"\s*:\s*(\{.*\})\s*,\s*"signature"\s*:\s*"([0-9A-Fa-f]{128})"\s*\}\s*'
    match = re.fullmatch(pattern, response, re.DOTALL)
    if match is None:
        raise AttestationError("collateral", f"{name} with its signature is expected")
    return match[1], bytes.fromhex(match[2].decode())
