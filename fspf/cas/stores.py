"""The store of a CAS server: what a URL names, with everything in it sealed under the master key.

The kinds of stores are in `fspf.cas.open_store`, how values are sealed in `fspf.cas.sealed_store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fspf.cas.open_store import open_store as open_plain_store
from fspf.cas.sealed_store import SealedStore

if TYPE_CHECKING:
    from fspf.cas.store import Store
    from fspf.core.keys import SecretKey

_SEALING_LABEL: Final = b"fspf cas 2 store"


async def open_store(url: str, master: SecretKey, *, create: bool = False) -> Store:
    """Open the store at *url*; names and values are sealed under a key derived from *master*.

    Args:
        create: Whether a store may be made: a server that serves must not take an emptied disk for a new CAS.

    Raises:
        UsageError: No such kind of store.
        CasError, CasUnreachableError, RolledBackError: It is not there, not ours, or does not answer.
    """
    return SealedStore(await open_plain_store(url, create=create), master.derive(_SEALING_LABEL))
