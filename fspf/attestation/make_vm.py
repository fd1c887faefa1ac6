"""Asks the machine for a report about itself: confidential VMs through the kernel's configfs-tsm, SGX through Gramine.

Verifying is left to `snp` and `dcap`. Fetching certificates that the machine does not hand out is left to its operator.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import struct
import uuid
from typing import Any, Final

from fspf.attestation import snp
from fspf.core.errors import UsageError

TSM: Final = "/sys/kernel/config/tsm/report"
GRAMINE: Final = "/dev/attestation"
_PROVIDERS: Final = {"sev_guest": "sev-snp", "tdx_guest": "tdx"}
_REPORT_DATA_LEN: Final = 64
_MAX_READ: Final = 1 << 20

# Entries of the certificate table that a hypervisor hands to its guests (GHCB): leaf first, as the verifier wants them.
_TABLE_ENTRY: Final = struct.Struct("<16sII")
_LEAVES: Final = ("63da758d-e664-4564-adc5-f4b93be8accd", "a8074bc2-a25a-483e-aae6-39c045a0b8a1")  # VCEK, VLEK
_ISSUERS: Final = ("4ab7b379-bbac-4fe4-a02f-05aef327c782", "c0b406a4-a803-4952-9743-3fb6014cd0ae")  # ASK or ASVK, ARK


def report(kind: str, binding: bytes, *, directory: str = TSM, certificates: tuple[bytes, ...] = ()) -> dict[str, Any]:
    """Return evidence of *kind* (`sev-snp` or `tdx`) from the kernel.

    Args:
        kind: Which is expected of this machine.
        binding: Of the challenge.
        directory: Where the kernel has its reports.
        certificates: VCEK or VLEK and what follows, for machines that hand out none.

    Raises:
        UsageError: This is no such machine, or it refuses.
    """
    place = os.path.join(directory, f"fspf-{secrets.token_hex(8)}")
    try:
        os.mkdir(place)
        try:
            _write(os.path.join(place, "inblob"), binding.ljust(_REPORT_DATA_LEN, b"\0"))
            found = _read(os.path.join(place, "outblob"))
            provider = _read(os.path.join(place, "provider")).decode(errors="replace").strip()
            table = b""
            with contextlib.suppress(OSError):  # only some providers have one
                table = _read(os.path.join(place, "auxblob"))
        finally:
            os.rmdir(place)
    except OSError as exc:
        raise UsageError(f"a confidential VM with {directory} is expected: {exc.strerror}") from None
    if _PROVIDERS.get(provider) != kind:
        raise UsageError(f"a machine of kind {kind} is expected, the kernel's provider is {provider!r:.40}")
    if kind == "tdx":
        return {"type": kind, "quote": _b64(found)}
    chain = [*certificates] or parse_table(table)
    return {"type": kind, "report": _b64(found[: snp.REPORT_LEN]), "certificates": [_b64(one) for one in chain]}


def enclave_quote(binding: bytes, *, directory: str = GRAMINE) -> dict[str, Any]:
    """Return `sgx` evidence from inside an enclave of Gramine.

    Raises:
        UsageError: This is none, or it refuses.
    """
    try:
        _write(os.path.join(directory, "user_report_data"), binding.ljust(_REPORT_DATA_LEN, b"\0"))
        return {"type": "sgx", "quote": _b64(_read(os.path.join(directory, "quote")))}
    except OSError as exc:
        raise UsageError(f"an enclave of Gramine with {directory} is expected: {exc.strerror}") from None


def parse_table(table: bytes) -> list[bytes]:
    """Return the certificates of the hypervisor's table, leaf first; what it does not have is left out.

    Raises:
        UsageError: It is malformed.
    """
    entries: dict[str, bytes] = {}
    offset = 0
    while offset + _TABLE_ENTRY.size <= len(table):
        name, start, length = _TABLE_ENTRY.unpack_from(table, offset)
        if not any(name):
            break
        if start + length > len(table):
            raise UsageError(
                f"a certificate within the table of {len(table)} bytes is expected, one ends at {start + length}"
            )
        # Both orders of the bytes of a GUID are seen.
        for form in (uuid.UUID(bytes_le=name), uuid.UUID(bytes=name)):
            entries[str(form)] = table[start : start + length]
        offset += _TABLE_ENTRY.size
    return [entries[name] for name in (*_LEAVES, *_ISSUERS) if name in entries]


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(_MAX_READ) or b""


def _write(path: str, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(data)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
