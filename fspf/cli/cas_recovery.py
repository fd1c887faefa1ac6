"""`fspf cas recovery`: approve, offline, that an older store of a CAS is the newest that there is.

What an approval lets in is decided in `fspf.cas.counter`, whether enough have approved in `fspf.cas.recovery`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.options import add_common, nonempty
from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console

_STATE: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


def add_actions(actions: Any) -> None:
    """Add `recovery` to the actions of `fspf cas`."""
    recovery = actions.add_parser(
        "recovery",
        help="approve that an older store is the newest there is",
        description="Sign one recovery of a CAS whose store does not fit its counter. The numbers are those that `fspf cas serve` named when it "
        "refused; the approval fits no other copy.",
    )
    recovery.add_argument("--stored", metavar="N", type=int, required=True, help="the store's counter")
    recovery.add_argument("--outside", metavar="N", type=int, required=True, help="the outside counter")
    recovery.add_argument("--state", metavar="HEX", type=nonempty, required=True, help="the state's 16 hex digits")
    recovery.add_argument("--reason", metavar="TEXT", type=nonempty, required=True, help="for the audit log")
    recovery.add_argument(
        "--key", metavar="FILE", type=nonempty, required=True, help="private key in PEM of an approver"
    )
    recovery.add_argument("-o", "--output", metavar="FILE", type=nonempty, required=True, help="file to make")
    add_common(recovery)


def run(args: Namespace, console: Console) -> int:
    """Sign it."""
    from fspf.cas.counter import Recovery
    from fspf.cas.identity import read_identity
    from fspf.cas.recovery import approve
    from fspf.cli.cas import write_new_file

    if not _STATE.fullmatch(args.state) or args.stored < 0 or args.outside < 0:
        raise UsageError("counters are numbers and a state has 16 hex digits, as the refusal names them")
    statement = Recovery(args.stored, args.outside, args.state, args.reason)
    write_new_file(args.output, approve(statement, read_identity(args.key)).encode("ascii"))
    console.document({"output": args.output, "stored": args.stored, "outside": args.outside, "state": args.state})
    console.line(f"approved: the store at counter {args.stored}, state {args.state}, is the newest there is")
    return 0
