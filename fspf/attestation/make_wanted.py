"""What evidence a client is to send, from its environment: which kinds, and what their makers need to know.

Making it is left to `fspf.attestation.make`; a command line's options for it are its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fspf.attestation.key import PrivateKey
from fspf.attestation.make import Options
from fspf.attestation.make_tpm import DEFAULT_AK
from fspf.core.errors import UsageError, WrongKeyError

KINDS: Final = "FSPF_CAS_EVIDENCE"  # kinds, separated by spaces or commas; without it, `key` where there is an identity
TPM_AK: Final = "FSPF_TPM_AK"
TPM_PCRS: Final = "FSPF_TPM_PCRS"
TPM_TCTI: Final = "FSPF_TPM_TCTI"
NODE_KEY: Final = "FSPF_NODE_KEY"  # a file
SNP_CERTIFICATES: Final = "FSPF_SNP_CERTIFICATES"  # a file
DEFAULT_PCRS: Final = "sha256:11"

_PCRS: Final = re.compile(r"(sha256|sha384):([0-9]{1,2}(?:,[0-9]{1,2})*)")
_MAX_FILE: Final = 1 << 16  # bytes


def wanted(environment: Mapping[str, str], identity: PrivateKey | None) -> tuple[list[str], Options]:
    """Return the kinds of evidence to send, and the options for making it.

    Args:
        environment: Of the process.
        identity: For `key`.

    Raises:
        UsageError: A variable makes no sense.
        WrongKeyError: The node's key cannot be read.
    """
    default = "key" if identity is not None else ""
    kinds = environment.get(KINDS, default).replace(",", " ").split()
    node_key = environment.get(NODE_KEY)
    certificates = environment.get(SNP_CERTIFICATES)
    return kinds, Options(
        key=identity,
        node_key=_private_key(node_key) if node_key and "measured-process" in kinds else None,
        pid=os.getpid(),
        tcti=environment.get(TPM_TCTI) or None,
        ak=environment.get(TPM_AK) or DEFAULT_AK,
        pcrs=parse_pcrs(environment.get(TPM_PCRS) or DEFAULT_PCRS),
        certificates=(_read(certificates),) if certificates and "sev-snp" in kinds else (),
    )


def parse_pcrs(text: str) -> dict[str, list[int]]:
    """Return bank to registers of a text such as `sha256:0,11+sha384:7`, as tpm2-tools write it.

    Raises:
        UsageError: It is another; or it has a register twice, which a policy cannot name.
    """
    found: dict[str, list[int]] = {}
    seen: set[int] = set()
    for part in text.split("+"):
        match = _PCRS.fullmatch(part)
        numbers = [int(number) for number in match[2].split(",")] if match else []
        if match is None or max(numbers) > 23:
            raise UsageError(f"registers such as sha256:0,11+sha384:7 (0 to 23) are expected, not {text!r:.60}")
        if seen & set(numbers) or len(set(numbers)) != len(numbers):
            raise UsageError("each register is expected once: a policy cannot name it twice")
        seen |= set(numbers)
        found.setdefault(match[1], []).extend(numbers)
    return {bank: sorted(numbers) for bank, numbers in found.items()}


def _private_key(path: str) -> PrivateKey:
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise WrongKeyError(f"{path}: a private key in PEM without a passphrase is expected") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise WrongKeyError(f"{path}: an Ed25519, P-256 or P-384 key is expected")
    return key


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from None
