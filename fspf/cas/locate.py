"""Find the CAS that a URL, the environment or the default names, and open it.

The kinds of CAS are in modules of their own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from fspf.cas.embedded import EmbeddedCas, default_path, make_default_directory
from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.core.anchor import Cas

ENVIRONMENT: Final = "FSPF_CAS"
_SQLITE: Final = "sqlite://"


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
            raise UsageError(f"a CAS of kind {scheme!r} is not known to this version: use sqlite:///path")
        if not url or url.endswith("/"):
            raise UsageError(f"a CAS is named by sqlite:///path or the path of a file, not {url!r}")
        return os.path.abspath(url)
    path = unquote(url[len(_SQLITE) :], errors="surrogateescape")
    if not path.startswith("/") or path.endswith("/"):
        raise UsageError(f"sqlite:///path has three slashes and names a file, unlike {url!r}")
    return os.path.abspath("/" + path.lstrip("/"))


def open_cas(url: str | None = None, *, passphrase: Callable[[], bytes] | None = None, create: bool = True) -> Cas:
    """Open the CAS at *url*.

    Args:
        url: As `parse_url` reads it; None: $FSPF_CAS, else the one in the user's data directory.
        passphrase: Asked only if the CAS is locked with a passphrase.
        create: Whether the CAS is made, with its first record, if there is none.

    Raises:
        UsageError: *url* names no CAS that this version has.
        CasError: There is none (and none may be made), or it is damaged.
        CasUnreachableError: It cannot be read.
        WrongKeyError: Key file or passphrase are missing or wrong.
    """
    url = url or os.environ.get(ENVIRONMENT) or None
    if url is None:
        path = default_path()
        if create:
            make_default_directory()
    else:
        path = parse_url(url)
    return EmbeddedCas(path, passphrase=passphrase, create=create)
