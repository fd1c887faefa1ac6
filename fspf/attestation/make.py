"""Makes the evidence that a client sends: one entry for the command line, the mount and the runtime.

Each kind has its maker in a module of its own; which kinds a service needs, its policy says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fspf.attestation import key
from fspf.attestation.key import PrivateKey
from fspf.attestation.make_measured import measure
from fspf.attestation.make_tpm import DEFAULT_AK, Tpm
from fspf.attestation.make_vm import GRAMINE, TSM, enclave_quote, report
from fspf.core.errors import UsageError

_PCRS: Mapping[str, Sequence[int]] = {"sha256": (11,)}


@dataclass(frozen=True, slots=True)
class Options:
    """What the makers need to know; only those of the kinds that are asked for.

    Attributes:
        key: For `key`: whose identity is shown.
        node_key: For `measured-process`: the node's.
        pid: For `measured-process`: who is measured.
        volume_tag: For `measured-process`: hex, of the main volume.
        tcti: For `tpm`: how tpm2-tools reach it; None leaves that to their environment.
        ak: For `tpm`: handle or context file of the attestation key.
        pcrs: For `tpm`: bank to register numbers.
        certificates: For `sev-snp`: VCEK or VLEK first, where the machine hands out none.
        tsm: For `sev-snp` and `tdx`: the kernel's directory.
        gramine: For `sgx`: Gramine's directory.
    """

    key: PrivateKey | None = None
    node_key: PrivateKey | None = None
    pid: int = 0
    volume_tag: str | None = None
    tcti: str | None = None
    ak: str = DEFAULT_AK
    pcrs: Mapping[str, Sequence[int]] = field(default_factory=lambda: dict(_PCRS))
    certificates: tuple[bytes, ...] = ()
    tsm: str = TSM
    gramine: str = GRAMINE


def make_evidence(kinds: Sequence[str], binding: bytes, options: Options) -> list[dict[str, Any]]:
    """Return one piece of evidence of each of *kinds*, for this challenge.

    Raises:
        UsageError: A kind is unknown, this machine cannot make it, or an option that it needs is missing.
    """
    return [_make(kind, binding, options) for kind in kinds]


def _make(kind: str, binding: bytes, options: Options) -> dict[str, Any]:
    if kind == "key":
        if options.key is None:
            raise UsageError("evidence of kind key needs an identity key")
        return key.make(options.key, binding)
    if kind == "measured-process":
        if options.node_key is None or options.pid <= 0:
            raise UsageError("evidence of kind measured-process needs a node key and the id of a process")
        return measure(options.node_key, binding, options.pid, options.volume_tag)
    if kind == "tpm":
        return Tpm(options.tcti, options.ak).quote(binding, options.pcrs)
    if kind in {"sev-snp", "tdx"}:
        return report(kind, binding, directory=options.tsm, certificates=options.certificates)
    if kind == "sgx":
        return enclave_quote(binding, directory=options.gramine)
    raise UsageError(f"evidence of kind key, measured-process, sev-snp, sgx, tdx or tpm is expected, not {kind!r:.40}")
