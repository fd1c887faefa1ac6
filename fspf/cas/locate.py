"""Find the CAS that a URL, the environment or the default names, and open it.

The kinds of CAS are in modules of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from fspf.cas.embedded import EmbeddedCas, default_path, make_default_directory
from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.cas.client import RemoteCas, Service
    from fspf.core.anchor import Cas

ENVIRONMENT: Final = "FSPF_CAS"
KEY_HASH_ENVIRONMENT: Final = "FSPF_CAS_KEY_HASH"
IDENTITY_ENVIRONMENT: Final = "FSPF_CAS_IDENTITY"
SERVICE_ENVIRONMENT: Final = "FSPF_CAS_SERVICE"
_SQLITE: Final = "sqlite://"
_HTTPS: Final = "https://"


@dataclass(frozen=True, slots=True)
class Pin:
    """How a server is recognised, and who asks it; None: the environment, else what `fspf cas attest` remembered."""

    key_hash: str | None = None
    identity: str | None = None  # path of an identity file
    service: str | None = None  # POLICY#SERVICE or POLICY#SERVICE#INSTANCE


def parse_url(url: str) -> str:
    """Return the path that *url* names: ``sqlite:///path``, ``sqlite:////path`` or a plain path.

    Raises:
        UsageError: It names no CAS that this version has.
    """
    if "\0" in url:
        raise UsageError(f"a CAS is named by sqlite:///path or a path, not {url!r}")
    if not url.startswith(_SQLITE):
        scheme, separator, _ = url.partition("://")
        if separator and "/" not in scheme:
            raise UsageError(
                f"a CAS of kind {scheme!r} is not known to this version: use sqlite:///path or https://host:port"
            )
        if not url or url.endswith("/"):
            raise UsageError(f"a CAS is named by sqlite:///path or the path of a file, not {url!r}")
        return os.path.abspath(url)
    path = unquote(url[len(_SQLITE) :], errors="surrogateescape")
    if not path.startswith("/") or path.endswith("/"):
        raise UsageError(f"sqlite:///path has three slashes and names a file, unlike {url!r}")
    return os.path.abspath("/" + path.lstrip("/"))


def open_cas(
    url: str | None = None,
    *,
    passphrase: Callable[[], bytes] | None = None,
    create: bool = True,
    pin: Pin | None = None,
) -> Cas:
    """Open the CAS at *url*.

    Args:
        url: ``https://host:port[#keyhash]``, or as `parse_url` reads it; None: $FSPF_CAS, else the one in the user's data directory.
        passphrase: Asked only if the CAS is locked with a passphrase.
        create: Whether an embedded CAS is made, with its first record, if there is none.
        pin: For a server.

    Raises:
        UsageError: *url* names no CAS that this version has, or a server whose key hash nobody said.
        CasError: There is none (and none may be made), or it is damaged.
        CasUnreachableError: It cannot be read.
        WrongKeyError: Key file, passphrase or identity file are missing or wrong.
    """
    url = url or os.environ.get(ENVIRONMENT) or None
    if url is not None and url.startswith(_HTTPS):
        return open_server(url, pin or Pin())
    if url is None:
        path = default_path()
        if create:
            make_default_directory()
    else:
        path = parse_url(url)
    return EmbeddedCas(path, passphrase=passphrase, create=create)


def open_server(url: str, pin: Pin) -> RemoteCas:
    """Return a client of the server at *url*. Nothing is sent yet.

    Raises:
        UsageError: Its key hash is not known, or two are given.
        WrongKeyError: The identity file cannot be used.
    """
    from fspf.attestation.make import make_evidence
    from fspf.attestation.make_wanted import wanted
    from fspf.cas.client import RemoteCas
    from fspf.cas.connection import Address, check_hash
    from fspf.cas.identity import read_identity
    from fspf.cas.known import recall

    address = Address.parse(url)
    known = recall(address.name)
    given = pin.key_hash or os.environ.get(KEY_HASH_ENVIRONMENT) or None
    if given is not None and address.key_hash not in {"", check_hash(given)}:
        raise UsageError(f"two different key hashes are given for the CAS {address.name}")
    key_hash = address.key_hash or (check_hash(given) if given is not None else "")
    if not key_hash and known is not None:
        key_hash = known.key_hash
    identity = pin.identity or os.environ.get(IDENTITY_ENVIRONMENT) or (known.identity if known is not None else "")
    kinds, options = wanted(os.environ, read_identity(identity) if identity else None)
    evidence = partial(make_evidence, kinds, options=options) if kinds else None
    service = pin.service or os.environ.get(SERVICE_ENVIRONMENT) or ""
    return RemoteCas(Address(address.hosts, key_hash), evidence, _service(service) if service else None)


def _service(text: str) -> Service:
    from fspf.cas.client import Service

    policy, _, rest = text.partition("#")
    name, _, instance = rest.partition("#")
    if not policy or not name:
        raise UsageError(f"a service is named by POLICY#SERVICE or POLICY#SERVICE#INSTANCE, not {text!r}")
    return Service(policy, name, instance)
