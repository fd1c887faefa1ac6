"""`fspf cas init|serve|attest|status|identity`: a CAS server, for who runs it and for who uses it.

The server and its client are in `fspf.cas`.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.console import printable, quoted
from fspf.cli.options import ask_passphrase, descriptor, nonempty, passphrase_source, pin_of, read_passphrase
from fspf.core.errors import UsageError, WrongKeyError

if TYPE_CHECKING:
    import argparse
    from argparse import Namespace
    from collections.abc import Callable

    from fspf.cas.home import Home
    from fspf.cas.recovery import Approvers
    from fspf.cli.console import Console
    from fspf.core.keys import SecretKey

_MAX_FILE: Final = 1 << 16
_DIRECTORY: Final = "directory of the server"


def add_actions(actions: Any) -> list[argparse.ArgumentParser]:
    """Add them beside those that show and move records."""
    init = actions.add_parser(
        "init",
        help="make the directory of a CAS server",
        description="Make the directory that a CAS server runs from: settings, certificate, master key. Prints the hash of its key, by which "
        "clients recognise it.",
    )
    init.add_argument("directory", metavar="DIRECTORY", type=nonempty, help=f"{_DIRECTORY}; is made, or empty")
    init.add_argument("--store", metavar="URL", help="where it keeps its values (default: SQLite in DIRECTORY)")
    init.add_argument("--listen", metavar="HOST:PORT", help="where it listens (default: 127.0.0.1:8443)")
    init.add_argument(
        "--name",
        metavar="NAME",
        action="append",
        default=[],
        type=nonempty,
        help="host name for its certificate; repeatable",
    )
    init.add_argument("--certificate", metavar="FILE", type=nonempty, help="a certificate of yours, in PEM")
    init.add_argument("--private-key", metavar="FILE", type=nonempty, help="its private key, in PEM")
    init.add_argument(
        "--lock",
        choices=("keyfile", "passphrase"),
        default="keyfile",
        help="what unlocks the master key (default: a key file in DIRECTORY)",
    )
    init.add_argument(
        "--tpm", metavar="TCTI", help="have a counter in this TPM show an older store, such as device:/dev/tpmrm0"
    )
    init.add_argument(
        "--tpm-window",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="how long changes may be answered without it (default: never)",
    )
    init.add_argument(
        "--recovery-approver",
        metavar="FILE",
        action="append",
        default=[],
        help="public key in PEM of somebody who may approve that an older store is the newest there is; repeatable",
    )
    init.add_argument("--recovery-needs", metavar="N", type=int, help="how many of them must approve it (default: all)")
    init.add_argument("--new-passphrase-file", metavar="FILE", help="first line of FILE is the new passphrase")
    init.add_argument("--new-passphrase-fd", metavar="N", type=descriptor, help="read it from descriptor N")

    serve = actions.add_parser(
        "serve",
        help="run a CAS server",
        description="Serve until SIGTERM. Prints a line when requests are answered; logs JSON lines to stderr.",
    )
    serve.add_argument("directory", metavar="DIRECTORY", type=nonempty, help=_DIRECTORY)
    serve.add_argument("--listen", metavar="HOST:PORT", help="instead of the settings'; port 0: any free one")

    serve.add_argument(
        "--recovery",
        metavar="FILE",
        action="append",
        default=[],
        help="an approval that `fspf cas recovery` wrote: lets that one older store in; repeatable",
    )

    attest = actions.add_parser(
        "attest",
        help="get to know a CAS server",
        description="Check that the server at URL has the key that you were told of, and remember it for this user.",
    )
    attest.add_argument("url", metavar="URL", type=nonempty, help="https://HOST:PORT")
    attest.add_argument("--key-hash", metavar="HASH", help="what `fspf cas init` printed")
    attest.add_argument("--no-remember", action="store_true", help="only check")

    status = actions.add_parser(
        "status",
        help="show whether a CAS server is ready",
        description="Ask the CAS server what it is, and whether it can serve.",
    )

    identity = actions.add_parser(
        "identity",
        help="make or show the key that a CAS server knows you by",
        description="Make an identity file with a new Ed25519 key, or show the id of the key that is there.",
    )
    identity.add_argument("file", metavar="FILE", type=nonempty, help="PEM, for its owner only")

    configuration = actions.add_parser(
        "configuration",
        help="fetch the configuration of an attested service",
        description="Attest as --cas-service says, and write the service's configuration to stdout as JSON, with its secrets.",
    )
    return [init, serve, attest, status, identity, configuration]


# -- for who runs one


def _init(args: Namespace, console: Console) -> int:
    from fspf.cas.home import DEFAULT_LISTEN, make_home

    passphrase = _new_passphrase(args) if args.lock == "passphrase" else None
    home = make_home(
        args.directory,
        store_url=args.store,
        listen=args.listen or DEFAULT_LISTEN,
        names=args.name,
        certificate=args.certificate,
        private_key=args.private_key,
        passphrase=passphrase,
        tpm=args.tpm,
        window_s=args.tpm_window,
        approvers=_approvers(args),
        prepare=_make_store,
    )
    document = {
        "directory": home.directory,
        "id": home.cas_id,
        "store": home.store_url,
        "listen": home.listen,
        "key_hash": home.key_hash,
        "audit_key_hash": home.audit_key_hash,
    }
    console.document(document)
    console.line(f"{printable(home.directory)}: CAS {home.cas_id}")
    console.line(f"key hash: {home.key_hash}")
    console.line(f"key hash of its audit log: {home.audit_key_hash}")
    console.note(f"clients get to know it with: fspf cas attest https://HOST:PORT --key-hash {home.key_hash}")
    return 0


def _approvers(args: Namespace) -> Approvers | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from fspf.attestation.signatures import check_key, spki_of
    from fspf.cas.recovery import Approvers

    if not args.recovery_approver:
        return None
    keys = []
    for file in args.recovery_approver:
        try:
            keys.append(spki_of(check_key(load_pem_public_key(_read(file)), "public key")))
        except (ValueError, UnsupportedAlgorithm):
            raise UsageError(f"{quoted(file)} is no public key in PEM") from None
    return Approvers(args.recovery_needs or len(keys), tuple(keys))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MAX_FILE)


def _make_store(home: Home, master: SecretKey) -> None:
    import asyncio

    from fspf.cas.assembly import open_sealed

    async def make() -> None:
        store = await open_sealed(home, master, create=True)
        await store.close()

    asyncio.run(make())


def _new_passphrase(args: Namespace) -> bytes:
    if args.new_passphrase_file is not None or args.new_passphrase_fd is not None:
        return read_passphrase(args.new_passphrase_file, args.new_passphrase_fd)
    first = ask_passphrase("new passphrase of the CAS: ", "--new-passphrase")
    if first != ask_passphrase("the same again: ", "--new-passphrase"):
        raise WrongKeyError("the two passphrases differ; nothing was made")
    return first


def _serve(args: Namespace, console: Console) -> int:
    from fspf.cas.home import open_home

    try:
        from fspf.cas import server
    except ImportError as exc:
        raise UsageError(f"{exc.name} is not installed: a CAS server needs pip install 'fspf[cas-server]'") from None

    from fspf.volume.holder import this_process

    server.log_to_stderr(debug=args.debug)
    home = open_home(args.directory)
    master = home.unlock(passphrase_source(args))

    def on_live(url: str) -> None:
        console.document({"url": url, "id": home.cas_id, "key_hash": home.key_hash, "pid": os.getpid()})
        console.line(f"serving at {url}")
        console.flush()

    recovery = None
    if args.recovery:
        from fspf.cas.recovery import approved

        recovery = approved([_read(file) for file in args.recovery], home.approvers(master))
    holder = this_process("fspf cas serve")
    server.run(home, master, holder=holder, recovery=recovery, listen=args.listen, on_live=on_live)
    return 0


# -- for who uses one


def _attest(args: Namespace, console: Console) -> int:
    from fspf.cas.connection import Address, check_hash
    from fspf.cas.known import Known, recall, remember
    from fspf.cas.locate import open_server

    address = Address.parse(args.url)
    pin = pin_of(args)
    given = args.key_hash or pin.key_hash or address.key_hash or os.environ.get("FSPF_CAS_KEY_HASH") or None
    if given is None:
        raise UsageError("--key-hash is needed: `fspf cas init` printed it; ask the operator of the CAS, not the CAS")
    key_hash = check_hash(given)
    identity = os.path.abspath(args.cas_identity) if args.cas_identity else ""
    with closing(open_server(str(Address(address.hosts, key_hash)), pin)) as cas:
        described = cas.describe()
        if identity:
            cas.attest()
    remembered = None
    if not args.no_remember:
        before = recall(address.name)
        if not identity and before is not None:
            identity = before.identity
        remembered = remember(address.name, Known(key_hash, identity))
    console.document(
        {
            "url": address.name,
            "key_hash": key_hash,
            "id": described["id"],
            "version": described["version"],
            "remembered": remembered,
        }
    )
    console.line(f"{address.name} is the CAS {described['id']} (fspf {printable(described['version'])}), as pinned")
    return 0


def _status(args: Namespace, console: Console) -> int:
    from fspf.cas import ENVIRONMENT
    from fspf.cas.locate import open_server

    url = args.cas or os.environ.get(ENVIRONMENT) or ""
    if not url.startswith("https://"):
        raise UsageError("which server? Name it with --cas https://HOST:PORT")
    with closing(open_server(url, pin_of(args))) as cas:
        described = cas.describe()
        ready = cas.is_ready()
    console.document({"url": cas.url, **described, "ready": ready})
    console.line(f"{cas.url}: CAS {described['id']}, fspf {described['version']}, {'ready' if ready else 'not ready'}")
    return 0 if ready else 1


def _identity(args: Namespace, console: Console) -> int:
    from fspf.cas.identity import id_of, make_identity, public_pem, read_identity

    made = not os.path.lexists(args.file)
    key = make_identity(args.file) if made else read_identity(args.file)
    console.document(
        {"file": os.path.abspath(args.file), "key_id": id_of(key), "public_key": public_pem(key), "made": made}
    )
    console.line(f"{quoted(args.file)}: key id {id_of(key)}")
    console.line(public_pem(key).rstrip("\n"))
    return 0


def _configuration(args: Namespace, console: Console) -> int:
    import json

    from fspf.cas import ENVIRONMENT
    from fspf.cas.locate import open_server

    url = args.cas or os.environ.get(ENVIRONMENT) or ""
    if not url.startswith("https://"):
        raise UsageError("which server? Name it with --cas https://HOST:PORT")
    with closing(open_server(url, pin_of(args))) as cas:
        document = cas.call("POST", "/v1/configuration", {})
    console.write(json.dumps(document).encode("ascii") + b"\n")
    return 0


ACTIONS: Final[dict[str, Callable[[Namespace, Console], int]]] = {
    "init": _init,
    "serve": _serve,
    "attest": _attest,
    "status": _status,
    "identity": _identity,
    "configuration": _configuration,
}
