"""`fspf cas tpm`: the attestation key of this machine's TPM, and what a policy would have to say to let the machine in.

Quotes are made by `fspf.attestation.make_tpm`; attesting to a CAS is left to the commands that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fspf.cli.options import add_common, nonempty

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console


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
        "--pcrs", metavar="BANK:N,…", type=nonempty, help="registers, such as sha256:0,11+sha384:7 (default: sha256:11)"
    )
    add_common(tpm)


def run(args: Namespace, console: Console) -> int:
    """Do what was asked."""
    from fspf.attestation import BINDING_LEN, Trust, verify
    from fspf.attestation.make_tpm import DEFAULT_AK, Tpm
    from fspf.attestation.make_wanted import DEFAULT_PCRS, parse_pcrs

    pcrs = parse_pcrs(args.pcrs or DEFAULT_PCRS)
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
