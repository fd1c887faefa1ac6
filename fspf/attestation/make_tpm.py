"""Asks a TPM 2.0 for quotes, through the programs of tpm2-tools.

Verifying them is left to `fspf.attestation.tpm`; that an attestation key lives in a real TPM is for whoever enrolls it.
"""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fspf.attestation import tpm
from fspf.attestation.reading import key_id
from fspf.attestation.signatures import spki_of
from fspf.core.errors import UsageError

DEFAULT_AK: Final = "0x81010101"  # a persistent handle of the range that owners may use
_TIMEOUT: Final = 60  # seconds; a slow TPM needs some for an RSA key
_ATTRIBUTES: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
_SIZES: Final = {"sha256": 32, "sha384": 48, "sha512": 64}


class Tpm:
    """A TPM and the attestation key in it."""

    def __init__(self, tcti: str | None = None, ak: str = DEFAULT_AK) -> None:
        """Args:
        tcti: How the tools reach the TPM, such as `device:/dev/tpmrm0`; None leaves it to them and their environment.
        ak: Handle of the attestation key, or path of its context file.
        """
        self._environment = {**os.environ, "TPM2TOOLS_TCTI": tcti} if tcti else dict(os.environ)
        self.ak = ak

    def create_ak(self) -> None:
        """Make an attestation key (P-256) below the endorsement hierarchy and keep it at the handle.

        It is derived from the TPM's seed: made again in the same TPM, it is the same key.
        """
        with _scratch() as scratch:
            context = str(scratch / "ak")
            self._tool("createprimary", "-Q", "-C", "e", "-g", "sha256", "-G", "ecc256:ecdsa-sha256:null", "-a", _ATTRIBUTES, "-c", context)  # fmt: skip
            self._tool("evictcontrol", "-Q", "-C", "o", "-c", context, self.ak)
            self._flush()

    def ak_public(self) -> bytes:
        """Return the TPM2B_PUBLIC of the attestation key."""
        with _scratch() as scratch:
            self._tool("readpublic", "-Q", "-c", self.ak, "-f", "tss", "-o", str(scratch / "public"))
            self._flush()
            return (scratch / "public").read_bytes()

    def ak_id(self) -> str:
        """Return the key id of the attestation key, as a policy names it."""
        return key_id(spki_of(tpm.parse_public(self.ak_public()).key))

    def quote(self, binding: bytes, pcrs: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return evidence of the values of registers, for this challenge.

        Args:
            binding: Of the challenge.
            pcrs: Bank (`sha256`) to numbers.

        Raises:
            UsageError: The tools are missing, or the TPM refuses.
            AttestationError: The key is none that a verifier would believe.
        """
        chosen = {bank: sorted(set(numbers)) for bank, numbers in pcrs.items() if numbers}
        if not chosen or any(bank not in _SIZES for bank in chosen):
            raise UsageError(f"registers of the banks {', '.join(_SIZES)} are expected")
        selection = "+".join(f"{bank}:{','.join(map(str, numbers))}" for bank, numbers in chosen.items())
        public = self.ak_public()
        scheme, hash_name = tpm.parse_public(public).scheme or (None, "sha256")
        how = ["-g", hash_name, *(["--scheme", scheme.lower()] if scheme else [])]
        with _scratch() as scratch:
            attest, signature, values = scratch / "attest", scratch / "signature", scratch / "values"
            self._tool(
                "quote", "-Q", "-c", self.ak, "-l", selection, "-q", binding.hex(), "-m", str(attest), "-s", str(signature),
                "-o", str(values), "-F", "values", *how,
            )  # fmt: skip
            self._flush()
            return {
                "type": tpm.KIND,
                "public": _b64(public),
                "attest": _b64(attest.read_bytes()),
                "signature": _b64(signature.read_bytes()),
                "pcrs": _split(values.read_bytes(), chosen),
            }

    def _flush(self) -> None:
        """Give back the places of keys that the tools loaded: without a resource manager they stay, and there are three."""
        self._tool("flushcontext", "-t", check=False)

    def _tool(self, name: str, *arguments: str, check: bool = True) -> bytes:
        try:
            done = subprocess.run(
                [f"tpm2_{name}", *arguments], env=self._environment, capture_output=True, timeout=_TIMEOUT, check=False
            )
        except FileNotFoundError:
            raise UsageError(f"the program tpm2_{name} is expected: install tpm2-tools") from None
        except subprocess.TimeoutExpired:
            raise UsageError(f"tpm2_{name} is expected to answer within {_TIMEOUT} s, it did not") from None
        if check and done.returncode:
            lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("ERROR")]
            why = lines[0] if lines else f"exit code {done.returncode}"
            raise UsageError(f"tpm2_{name} is expected to succeed: {why:.200}")
        return done.stdout


def _split(values: bytes, chosen: Mapping[str, Sequence[int]]) -> dict[str, dict[str, str]]:
    """Return the registers that tpm2_quote wrote one after the other, in the order in which they were asked for."""
    found: dict[str, dict[str, str]] = {}
    offset = 0
    for bank, numbers in chosen.items():
        size = _SIZES[bank]
        for number in numbers:
            found.setdefault(bank, {})[str(number)] = values[offset : offset + size].hex()
            offset += size
    if offset != len(values):
        raise UsageError(f"{offset} bytes of registers are expected, the TPM has {len(values)}: is the bank active?")
    return found


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fspf-tpm-") as directory:
        yield Path(directory)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
