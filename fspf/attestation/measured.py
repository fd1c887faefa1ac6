"""Evidence `measured-process`: a node says what a process executes. Maker of the statement and verifier.

For development: it is as good as the node's kernel and the file that its key lies in. Looking at a process is left to
`fspf.attestation.make_measured`, refusing it in hardware mode to `fspf.attestation.matching`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from fspf.attestation.claims import Claims, Trust
from fspf.attestation.key import PrivateKey, sign
from fspf.attestation.reading import Fields, key_id
from fspf.attestation.signatures import check_signature, load_key, spki_of
from fspf.core.errors import AttestationError

KIND: Final = "measured-process"
_LABEL: Final = b"fspf measured process 1\0"
_NO_TAG: Final = bytes(16)


def verify(fields: Fields, binding: bytes, trust: Trust) -> Claims:
    """Check that a node that *trust* knows made the statement for this challenge.

    Raises:
        AttestationError: Another node's key, another challenge, or an altered statement.
    """
    fields.only("node", "executable", "arguments", "volume_tag", "signature")
    spki = fields.data("node")
    key = load_key(spki, f"{KIND}.node")
    node = key_id(spki)
    if node not in trust.node_keys:
        known = (
            f"one of {len(trust.node_keys)} known nodes" if trust.node_keys else "a known node, and this CAS knows none"
        )
        raise AttestationError(f"{KIND}.node", f"the key of {known} is expected, seen {node}")
    executable = fields.hex("executable", 32)
    arguments = fields.data_list("arguments")
    volume_tag = fields.hex("volume_tag", 16) if fields.has("volume_tag") else None
    message = _statement(binding, executable, arguments, volume_tag)
    check_signature(key, fields.data("signature"), message, f"{KIND}.signature")
    values = {
        "node": node,
        "executable": executable,
        "arguments": tuple(argument.decode("utf-8", "surrogateescape") for argument in arguments),
        "volume_tag": volume_tag,
    }
    return Claims(KIND, values)


def make(
    node_key: PrivateKey, binding: bytes, executable: str, arguments: Sequence[bytes], volume_tag: str | None = None
) -> dict[str, Any]:
    """Return the evidence that a process executes this.

    Args:
        node_key: The node's, not the process's.
        binding: Of the process's challenge.
        executable: Hex SHA-256 of the file.
        arguments: The command line, from argv[1].
        volume_tag: Hex of the root tag of its main volume, if it has one.
    """
    return {
        "type": KIND,
        "node": base64.b64encode(spki_of(node_key.public_key())).decode(),
        "executable": executable,
        "arguments": [base64.b64encode(argument).decode() for argument in arguments],
        "volume_tag": volume_tag,
        "signature": base64.b64encode(
            sign(node_key, _statement(binding, executable, arguments, volume_tag))
        ).decode(),
    }  # fmt: skip


def _statement(binding: bytes, executable: str, arguments: Sequence[bytes], volume_tag: str | None) -> bytes:
    """Return the signed bytes. All but the arguments have one length each, and those are counted, measured and hashed."""
    listed = b"".join(len(argument).to_bytes(4, "big") + argument for argument in arguments)
    digest = hashlib.sha256(len(arguments).to_bytes(4, "big") + listed).digest()
    tag = b"\1" + bytes.fromhex(volume_tag) if volume_tag is not None else b"\0" + _NO_TAG
    return _LABEL + binding + bytes.fromhex(executable) + digest + tag
