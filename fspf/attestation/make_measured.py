"""Looks at a process the way `measured-process` evidence describes it: for the node, which signs what it saw.

The statement and its verification are in `fspf.attestation.measured`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from fspf.attestation import measured
from fspf.attestation.key import PrivateKey
from fspf.core.errors import UsageError


def measure(node_key: PrivateKey, binding: bytes, pid: int, volume_tag: str | None = None) -> dict[str, Any]:
    """Return evidence of what process *pid* executes, for its challenge.

    Args:
        node_key: The node's.
        binding: Of the process's challenge.
        pid: Of a process of this machine. It must not be able to change what is hashed: see docs/ATTESTATION.md.
        volume_tag: Hex of the root tag of its main volume, if it has one.

    Raises:
        UsageError: There is no such process, or it may not be looked at.
    """
    try:
        with open(f"/proc/{pid}/exe", "rb") as executable:
            digest = hashlib.file_digest(executable, "sha256").hexdigest()
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            arguments = cmdline.read().removesuffix(b"\0").split(b"\0")
    except OSError as exc:
        raise UsageError(f"process {pid} is expected to be there and readable: {exc.strerror}") from None
    return measured.make(node_key, binding, digest, arguments[1:], volume_tag)
