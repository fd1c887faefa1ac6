"""`fspf cas tpm`: the attestation key of this machine's TPM, and what a policy would have to say to let the machine in.

Quotes are made by `fspf.attestation.make_tpm`; attesting to a CAS is left to the commands that need it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.options import add_common, nonempty
from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console

_DEFAULT_PCRS: Final = "sha256:11"
_PCRS: Final = re.compile(r"(sha256|sha384):([0-9]{1,2}(?:,[0-9]{1,2})*)")


def add_actions(actions: Any) -> None:
    """Add `tpm` to the actions of `fspf cas`."""
    tpm = actions.add_parser(
        "tpm",
        help="show this machine's attestation key and registers",
        description="Show the key id of this TPM's attestation key and the values of registers, as a policy names them. Uses tpm2-tools.",
    )
    tpm.add_argument("--create", action="store_true", help="make the attestation key first")
    tpm.add_argument(
        "--ak", metavar="HANDLE", type=nonempty, help="handle or context file of the key (default: 0x81010101)"
    )
    tpm.add_argument(
        "--tcti", metavar="TCTI", type=nonempty, help="how tpm2-tools reach the TPM (default: their choice)"
    )
    tpm.add_argument(
        "--pcrs",
        metavar="BANK:N,…",
        action="append",
        type=nonempty,
        help=f"registers; repeatable (default: {_DEFAULT_PCRS})",
    )
    add_common(tpm)


def run(args: Namespace, console: Console) -> int:
    """Do what was asked."""
    from fspf.attestation import BINDING_LEN, Trust, verify
    from fspf.attestation.make_tpm import DEFAULT_AK, Tpm

    pcrs = _parse(args.pcrs or [_DEFAULT_PCRS])
    tpm = Tpm(args.tcti, args.ak or DEFAULT_AK)
    if args.create:
        tpm.create_ak()
    # What is shown went the way that it will go at the CAS: a machine that cannot be verified shows it here.
    binding = bytes(BINDING_LEN)
    claims = verify(tpm.quote(binding, pcrs), binding, Trust(), 0)
    registers = {bank: {str(number): claims.values["pcrs"][bank, number] for number in pcrs[bank]} for bank in pcrs}
    console.document({"ak": claims.values["ak"], "ak_name": claims.values["ak_name"], "pcrs": registers})
    console.line("tpm:")
    console.line(f"  ak: {claims.values['ak']}")
    console.line("  pcrs:")
    for values in registers.values():
        for number, value in values.items():
            console.line(f'    {number}: "{value}"')
    return 0


def _parse(texts: list[str]) -> dict[str, list[int]]:
    """Return the registers of each bank; a policy names each number once."""
    found: dict[str, list[int]] = {}
    seen: set[int] = set()
    for text in texts:
        match = _PCRS.fullmatch(text)
        numbers = [int(number) for number in match[2].split(",")] if match else []
        if match is None or max(numbers) > 23:
            raise UsageError(
                f"registers such as sha256:0,11 (banks sha256 and sha384, 0 to 23) are expected, not {text!r:.60}"
            )
        if seen & set(numbers) or len(set(numbers)) != len(numbers):
            raise UsageError("each register is expected once: a policy cannot name it twice")
        seen |= set(numbers)
        found.setdefault(match[1], []).extend(numbers)
    return {bank: sorted(numbers) for bank, numbers in found.items()}
