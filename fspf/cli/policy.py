"""`fspf policy check|plan|sign|create|update|read|list|approve|delete`: policies of a CAS server.

What a policy means and who may change it is decided in `fspf.policy` and by the server; `check`, `sign` and `plan OLD NEW` need none.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

from fspf.cli.console import printable, quoted
from fspf.cli.options import add_common, connected, nonempty, passphrase_source
from fspf.core.errors import ConflictError, PolicyError, UsageError, WrongKeyError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from fspf.cli.console import Console
    from fspf.policy.approval import Approval, Statement
    from fspf.policy.model import Policy

_MAX_READ: Final = 1 << 20  # bytes of a file
_HASH_LEN: Final = 64


class Server(Protocol):
    """A CAS that has policies."""

    def call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Make a request and return the JSON document that comes back."""


def add_parser(commands: Any) -> None:
    """Add the command and its actions."""
    parser = commands.add_parser(
        "policy", description="Check, compare, sign and change policies. docs/POLICY.md describes them."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")

    check = actions.add_parser(
        "check",
        help="check a policy without a CAS",
        description="Say what is wrong with a policy, with line and column.",
    )
    check.add_argument("files", metavar="FILE", nargs="+", type=nonempty, help="policies; - is stdin")
    check.add_argument("--strict", action="store_true", help="what is only doubtful is an error, too")

    plan = actions.add_parser(
        "plan",
        help="show what a policy would change",
        description="Show who gains or loses what, compared with the policy in the CAS or with another file.",
    )
    plan.add_argument(
        "files", metavar="FILE", nargs="+", type=nonempty, help="the new policy; or the old one and the new one"
    )

    sign = actions.add_parser(
        "sign",
        help="approve a change by a signature, offline",
        description="Write an approval of one change of one policy. Needs no CAS.",
    )
    sign.add_argument(
        "file", metavar="FILE", type=nonempty, nargs="?", help="the new policy; none to approve a deletion or reading"
    )
    sign.add_argument(
        "--key", metavar="FILE", required=True, type=nonempty, help="private key in PEM: Ed25519, P-256 or P-384"
    )
    sign.add_argument(
        "--action",
        dest="what",
        choices=["create", "update", "delete", "read"],
        help="default: update if there is a predecessor, else create",
    )
    sign.add_argument("--predecessor", metavar="HASH", help="hash of the version that is there now")
    sign.add_argument("--name", metavar="NAME", type=nonempty, help="the policy, for a deletion or reading")
    sign.add_argument("--reject", action="store_true", help="say no instead: counts where there is a veto")
    sign.add_argument("-o", "--output", metavar="FILE", type=nonempty, help="where to write it (default: stdout)")

    create = actions.add_parser("create", help="create a policy", description="Create a policy.")
    update = actions.add_parser(
        "update",
        help="replace a policy",
        description="Replace a policy. Without a predecessor in the file, that of the CAS is filled in.",
    )
    delete = actions.add_parser(
        "delete",
        help="delete a policy",
        description="Delete a policy and its secrets. Its volumes can be used by nobody afterwards.",
    )
    for action in (create, update):
        action.add_argument("file", metavar="FILE", type=nonempty, help="the policy; - is stdin")
    delete.add_argument("name", metavar="NAME", type=nonempty)
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.add_argument("--predecessor", metavar="HASH", help="only if this is the version that is there")
    for action in (create, update, delete):
        action.add_argument(
            "--approval",
            metavar="FILE",
            action="append",
            default=[],
            help="what `fspf policy sign` wrote; may be repeated",
        )
        action.add_argument(
            "--propose",
            action="store_true",
            help="if approvals are missing, let it wait for them",
        )

    read = actions.add_parser(
        "read",
        help="show a policy",
        description="Write a policy's text to stdout; no value that the CAS made is in it.",
    )
    read.add_argument("name", metavar="NAME", type=nonempty, help="a policy, or the hash of a version")
    read.add_argument("--pending", action="store_true", help="show what waits for approvals instead")

    names = actions.add_parser(
        "list", help="name the policies that you may read", description="Name the policies that you may read."
    )
    names.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only those whose name begins so")

    approve = actions.add_parser(
        "approve",
        help="approve a proposal",
        description="Send approvals of a proposal; the last one that is needed brings it into force.",
    )
    approve.add_argument("name", metavar="NAME", type=nonempty)
    approve.add_argument(
        "proposal",
        metavar="HASH",
        type=nonempty,
        help="as `fspf policy read --pending NAME` shows it, or its first digits",
    )
    how = approve.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--approval", metavar="FILE", action="append", default=[], help="what `fspf policy sign` wrote; may be repeated"
    )
    how.add_argument("--key", metavar="FILE", type=nonempty, help="sign it now, after showing what changes")
    how.add_argument("--in-person", action="store_true", help="agree as whoever makes the request")
    how.add_argument("--withdraw", action="store_true", help="take back a proposal of your own")
    approve.add_argument("--reject", action="store_true", help="with --key: say no")
    approve.add_argument("--yes", action="store_true", help="with --key: do not ask")

    for action in (check, plan, sign, create, update, delete, read, names, approve):
        add_common(action)


def run(args: Namespace, console: Console) -> int:
    """Do what was asked."""
    actions = {
        "check": _check, "plan": _plan, "sign": _sign, "create": _create, "update": _update, "delete": _delete, "read": _read,
        "list": _list, "approve": _approve,
    }  # fmt: skip
    return actions[args.action](args, console)


# -- without a CAS


def _check(args: Namespace, console: Console) -> int:
    from fspf.policy.semantics import warnings

    documents = []
    doubtful = 0
    for file in args.files:
        policy = _parse(file, _read_file(file))
        found = list(warnings(policy))
        doubtful += len(found)
        documents.append({
            "file": file, "name": policy.name, "hash": policy.hash, "predecessor": policy.predecessor,
            "warnings": [{"line": place.line, "column": place.column, "message": message} for place, message in found],
        })  # fmt: skip
        for place, message in found:
            console.warn(
                f"{printable(file)}:{place.line}:{place.column}: {message}"
                if place.line
                else f"{printable(file)}: {message}"
            )
        console.line(f"{printable(file)}: policy {policy.name} {policy.hash}")
    console.document({"policies": documents})
    if args.strict and doubtful:
        console.give_up("PolicyError", f"{doubtful} things are doubtful", PolicyError.exit_code)
        return PolicyError.exit_code
    return 0


def _plan(args: Namespace, console: Console) -> int:
    from fspf.policy.plan import plan

    if len(args.files) > 2:
        raise UsageError("one policy is compared with the CAS, or two with each other")
    if len(args.files) == 2:
        old, new = (_parse(file, _read_file(file)) for file in args.files)
        found = plan(old, new)
        members, text = found.members(), found.text
    else:
        (file,) = args.files
        data = _read_file(file)
        _parse(file, data)
        with _server(args) as server:
            members = dict(server.call("POST", "/v1/policy-plan", {"document": data.decode("utf-8")}))
        text = members.pop("text")
    console.document(members)
    console.line(_shown(text.rstrip("\n")))
    return 0


def _sign(args: Namespace, console: Console) -> int:
    from fspf.policy.approval import Verdict, make_approval

    statement = _statement_to_sign(args)
    approval = make_approval(statement, _private_key(args), Verdict.REJECT if args.reject else Verdict.APPROVE)
    document = approval.members()
    encoded = json.dumps(document, indent=2) + "\n"
    if args.output is not None:
        _write_file(args.output, encoded.encode("ascii"))
        console.document({"output": args.output, **document})
    else:
        console.write(encoded.encode("ascii"))
    console.note(f"key {approval.key_id[:16]} says {approval.verdict} to: {statement}")
    return 0


def _statement_to_sign(args: Namespace) -> Statement:
    from fspf.policy.approval import Action, Statement
    from fspf.policy.edit import with_predecessor

    if args.what in {"delete", "read"} or args.file is None:
        if (
            args.file is not None
            or args.name is None
            or args.predecessor is None
            or args.what not in {"delete", "read"}
        ):
            raise UsageError(
                "to sign a deletion or reading, give --action, --name and --predecessor; to sign a policy, give its file"
            )
        return Statement(Action(args.what), args.name, _hash(args.predecessor))
    data = _read_file(args.file)
    if args.predecessor is not None:
        data = with_predecessor(data, _hash(args.predecessor))
    policy = _parse(args.file, data)
    if args.predecessor is not None and policy.predecessor != args.predecessor:
        raise UsageError(f"{quoted(args.file)} says that its predecessor is {policy.predecessor}")
    what = args.what or ("create" if policy.predecessor is None else "update")
    if what == "update" and policy.predecessor is None:
        raise UsageError("an update has a predecessor: give --predecessor, or write it into the policy")
    return Statement(Action(what), policy.name, policy.predecessor or "", policy.hash)


# -- with one


def _create(args: Namespace, console: Console) -> int:
    data = _read_file(args.file)
    policy = _parse(args.file, data)
    body = {"document": data.decode("utf-8"), "approvals": _approvals(args.approval), "propose": args.propose}
    with _server(args) as server:
        outcome = server.call("POST", "/v1/policies", body)
    return _report(console, f"policy {policy.name} created", outcome)


def _update(args: Namespace, console: Console) -> int:
    from fspf.policy.edit import with_predecessor

    data = _read_file(args.file)
    policy = _parse(args.file, data)
    with _server(args) as server:
        if policy.predecessor is None:
            current = server.call("POST", f"{_path(policy.name)}/read", {})
            data = with_predecessor(data, _hash(current["hash"]))
            policy = _parse(args.file, data)
        body = {"document": data.decode("utf-8"), "approvals": _approvals(args.approval), "propose": args.propose}
        outcome = server.call("PUT", _path(policy.name), body)
    return _report(console, f"policy {policy.name} replaced", outcome)


def _delete(args: Namespace, console: Console) -> int:
    with _server(args) as server:
        predecessor = args.predecessor
        if predecessor is None:
            predecessor = server.call("POST", f"{_path(args.name)}/read", {})["hash"]
        question = f"delete policy {quoted(args.name)} and the values of its secrets?"
        if not args.yes and not console.confirm(question):
            raise UsageError(f"policy {quoted(args.name)} was not deleted: confirm with --yes")
        body = {"predecessor": _hash(predecessor), "approvals": _approvals(args.approval), "propose": args.propose}
        outcome = server.call("POST", f"{_path(args.name)}/delete", body)
    return _report(console, f"policy {args.name} deleted", outcome)


def _read(args: Namespace, console: Console) -> int:
    with _server(args) as server:
        if args.pending:
            return _show_pending(console, server, args.name)
        if len(args.name) == _HASH_LEN and not set(args.name) - set("0123456789abcdef"):
            found = server.call("POST", f"/v1/policy-versions/{args.name}", {})
        else:
            found = server.call("POST", f"{_path(args.name)}/read", {})
    console.document(found)
    if not console.as_json:
        text = found["document"]
        console.write((_shown(text) if console.on_terminal else text).encode("utf-8"))
    return 0


def _show_pending(console: Console, server: Server, name: str) -> int:
    proposals = server.call("POST", f"{_path(name)}/proposals", {})["proposals"]
    console.document({"name": name, "proposals": proposals})
    for one in proposals:
        statement = one["statement"]
        console.line(
            f"{statement['policy'] or statement['predecessor']}  {statement['action']}, proposed by {_shown(one['by'])}"
        )
        console.line(f"    {_shown(one['missing'])}")
        for line in _shown(one["plan"].rstrip("\n")).split("\n"):
            console.line(f"    {line}")
    if not proposals:
        console.line(f"nothing waits for approvals of {name}")
    return 0


def _list(args: Namespace, console: Console) -> int:
    with _server(args) as server:
        found = server.call("POST", "/v1/policy-list", {"prefix": args.prefix})
    console.document(found)
    for one in found["policies"]:
        console.line(f"{one['hash']}  {one['name']}")
    return 0


def _approve(args: Namespace, console: Console) -> int:
    with _server(args) as server:
        proposal = _find_proposal(server, args.name, args.proposal)
        statement = _statement(proposal)
        which = statement.policy or statement.predecessor
        if args.withdraw:
            server.call("POST", f"{_path(args.name)}/withdraw", {"proposal": which})
            console.document({"name": args.name, "withdrawn": which})
            console.line(f"proposal {which[:12]} taken back")
            return 0
        approvals = _approvals(args.approval)
        if args.key is not None:
            approvals = [_signed_now(args, console, proposal, statement).members()]
        body = {"proposal": which, "approvals": approvals, "in_person": args.in_person}
        outcome = server.call("POST", f"{_path(args.name)}/approve", body)
    return _report(console, f"{statement.action} of policy {args.name} is in force", outcome)


def _signed_now(args: Namespace, console: Console, proposal: dict[str, Any], statement: Statement) -> Approval:
    """Show what would change, ask, and sign: the hash is computed here, of the text that is shown."""
    from fspf.policy.approval import Verdict, make_approval

    if proposal["document"]:
        policy = _parse("the proposal", proposal["document"].encode("utf-8"))
        if (policy.hash, policy.name, policy.predecessor or "") != (
            statement.policy,
            statement.name,
            statement.predecessor,
        ):
            raise PolicyError("the CAS shows another document than the one that is to be signed")
        console.line(_shown(proposal["plan"].rstrip("\n")))
    verdict = Verdict.REJECT if args.reject else Verdict.APPROVE
    if not args.yes and not console.confirm(f"{verdict} {statement}?"):
        raise UsageError("nothing was signed: confirm with --yes")
    return make_approval(statement, _private_key(args), verdict)


def _find_proposal(server: Server, name: str, beginning: str) -> dict[str, Any]:
    found = []
    for one in server.call("POST", f"{_path(name)}/proposals", {})["proposals"]:
        statement = one["statement"]
        if (statement["policy"] or statement["predecessor"]).startswith(beginning):
            found.append(one)
    if len(found) != 1:
        raise ConflictError(f"{len(found)} proposals about {name} begin with {quoted(beginning)}, one is expected")
    return dict(found[0])


def _statement(proposal: dict[str, Any]) -> Statement:
    from fspf.policy.approval import read_statement

    return read_statement(proposal["statement"])


def _report(console: Console, done: str, outcome: dict[str, Any]) -> int:
    console.document(outcome)
    if outcome["pending"]:
        console.line(f"waits for approvals: {outcome['hash']}")
        console.note(outcome["missing"])
        return 0
    console.line(f"{done}: {outcome['hash']}")
    return 0


@contextmanager
def _server(args: Namespace) -> Iterator[Server]:
    with connected(args) as cas:
        call = getattr(cas, "call", None)
        if call is None:
            raise UsageError(
                "policies are kept by a CAS server, this CAS is a file: name the server with --cas https://…"
            )
        server: Server = cas  # type: ignore[assignment]  # a RemoteCas
        yield server


# -- files and texts


def _path(name: str) -> str:
    return f"/v1/policies/{quote(name, safe='')}"


def _hash(text: str) -> str:
    if len(text) != _HASH_LEN or set(text) - set("0123456789abcdef"):
        raise UsageError(f"a version is named by its hash, 64 hex digits in lower case; {quoted(text[:80])} is none")
    return text


def _parse(file: str, data: bytes) -> Policy:
    from fspf.policy.document import parse_policy

    try:
        return parse_policy(data)
    except PolicyError as exc:
        where = f"{printable(file)}:{exc.line}:{exc.column}" if exc.line else printable(file)
        message = str(exc).removeprefix(f"line {exc.line}, column {exc.column}: ")
        error = PolicyError(f"{where}: {message}")
        error.line, error.column = exc.line, exc.column
        raise error from None


def _read_file(file: str) -> bytes:
    if file == "-":
        data = sys.stdin.buffer.read(_MAX_READ + 1)
    else:
        with open(file, "rb") as stream:
            data = stream.read(_MAX_READ + 1)
    if len(data) > _MAX_READ:
        raise PolicyError(f"{printable(file)} has more than {_MAX_READ} bytes")
    return data


def _write_file(file: str, data: bytes) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as stream:
        stream.write(data)


def _approvals(files: list[str]) -> list[dict[str, Any]]:
    from fspf.policy.approval import parse_approval

    return [parse_approval(_read_file(file)).members() for file in files]


def _private_key(args: Namespace) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_file(args.key)
    try:
        passphrase = passphrase_source(args)() if b"ENCRYPTED" in data else None
        return load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise WrongKeyError(f"{quoted(args.key)} holds no private key in PEM, or the passphrase is wrong") from None


def _shown(text: str) -> str:
    """Make a text of several lines safe to show."""
    return "\n".join(printable(line) if not line.isprintable() else line for line in text.split("\n"))
