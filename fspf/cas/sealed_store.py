"""A store whose host learns neither names nor values: everything is sealed before it is stored.

Where it is stored is left to the store below. That a value, or everything, was put back to an earlier one does not show
here: see `fspf.cas.counter`, and the store's own quorum.
"""

from __future__ import annotations

import base64
import functools
import re
import secrets
from typing import TYPE_CHECKING, Final

from fspf.cas.store import MAX_VALUE_LEN, SEALING_ROOM, Compare, Entry, Put, check_key, check_transaction
from fspf.core.errors import CasError
from fspf.core.keys import AuthenticationError, SecretKey

if TYPE_CHECKING:
    import builtins
    from collections.abc import Sequence

    from fspf.cas.store import Store

_NAME_LABEL: Final = b"fspf cas 2 name"
_VALUE_LABEL: Final = b"fspf cas 2 value"
_VERSION: Final = 1  # first byte of every stored value
_NONCE_LEN: Final = 16  # so that equal values, also of one key at two times, look different
_SIV_LEN: Final = 16
assert 1 + _NONCE_LEN + _SIV_LEN + 1 <= SEALING_ROOM
MAX_SEGMENT_LEN: Final = 320  # bytes of one sealed part of a key: longer ones would not fit when they are sealed
_CACHED_NAMES: Final = 8192

# Serial numbers (`audit/<16 digits>`) show no more than how many there are, and stay so that they are in order.
_SERIAL: Final = re.compile(r"[0-9]{16}")
_SEALED: Final = re.compile(r"=[A-Za-z0-9_-]+")  # a name that was sealed: no plain first part looks like this


class SealedStore:
    """Implements `Store` above another one, with the same types.

    A key is sealed part by part: the first (`volume`, `policy` …) stays, so do serial numbers, every other one is
    encrypted deterministically, bound to all parts before it. So a prefix that ends with `/` is a prefix below too.
    A value is encrypted and bound to its key: moved to another key it does not open. Keys are kept short by whoever
    makes them: `MAX_SEGMENT_LEN`.
    """

    def __init__(self, store: Store, sealer_key: SecretKey) -> None:
        self._store = store
        self._name_key = sealer_key.derive(_NAME_LABEL)
        self._value_key = sealer_key.derive(_VALUE_LABEL)
        # Of the object: with it go the names. Policies come back with every request.
        self._key = functools.lru_cache(_CACHED_NAMES)(self._seal_key)
        self._name = functools.lru_cache(_CACHED_NAMES)(self._open_key)

    @property
    def url(self) -> str:
        return self._store.url

    async def get(self, key: str) -> Entry | None:
        sealed_key = self._key(key)
        entry = await self._store.get(sealed_key)
        return None if entry is None else Entry(self._open(sealed_key, entry.value), entry.revision)

    async def list(self, prefix: str) -> builtins.list[tuple[str, Entry]]:
        parent, slash, _ = prefix.rpartition("/")
        # Without a slash nothing is sealed yet, and the beginning of the first part may be asked for.
        below = self._key(parent) + "/" if slash else prefix
        found = []
        for sealed_key, entry in await self._store.list(below):
            key = self._name(sealed_key)
            if key.startswith(prefix):
                found.append((key, Entry(self._open(sealed_key, entry.value), entry.revision)))
        found.sort(key=lambda one: one[0])
        return found

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        check_transaction(compare, put)
        return await self._store.transact(
            [Compare(self._key(key), revision) for key, revision in compare],
            [self._sealed_put(self._key(key), value) for key, value in put],
        )

    def _sealed_put(self, sealed_key: str, value: bytes | None) -> Put:
        return Put(sealed_key, None if value is None else self._seal(sealed_key, value))

    async def close(self) -> None:
        await self._store.close()

    # -- names

    def _seal_key(self, key: str) -> str:
        if key:
            check_key(key)
        first, *parts = key.split("/")
        if _SEALED.fullmatch(first):
            raise CasError(f"no key begins with {first!r}")
        sealed = first
        for part in parts:
            if len(part.encode()) > MAX_SEGMENT_LEN:
                raise CasError(f"each part of a key has at most {MAX_SEGMENT_LEN} bytes: {part[:80]!r}")
            # An empty part (`a//b`, `a/`) stays: it is no name.
            sealed += "/" + (part if not part or _SERIAL.fullmatch(part) else self._seal_part(sealed, part))
        return sealed

    def _seal_part(self, parent: str, part: str) -> str:
        """Seal one part of a key, bound to the sealed ones before it."""
        sealed = self._name_key.siv_seal(part.encode(), _NAME_LABEL + parent.encode())
        return "=" + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def _open_key(self, claimed_key: str) -> str:
        parent, *parts = claimed_key.split("/")
        key = parent
        for part in parts:
            if not part or _SERIAL.fullmatch(part):
                key += f"/{part}"
            else:
                key += f"/{self._open_part(parent, part)}"
            parent += f"/{part}"
        return key

    def _open_part(self, parent: str, claimed_part: str) -> str:
        raw = claimed_part.removeprefix("=").encode()
        try:
            sealed = base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
            name = self._name_key.siv_open(sealed, _NAME_LABEL + parent.encode()).decode()
        except (AuthenticationError, ValueError):
            raise self._altered("a key", f"{parent}/{claimed_part}") from None
        if self._seal_part(parent, name) != claimed_part:  # another way to write the same bytes
            raise self._altered("a key", f"{parent}/{claimed_part}")
        return name

    # -- values

    def _seal(self, sealed_key: str, plain: bytes) -> bytes:
        if len(plain) > MAX_VALUE_LEN:
            raise CasError(f"a value has at most {MAX_VALUE_LEN} bytes, not {len(plain)}")
        header = bytes([_VERSION]) + secrets.token_bytes(_NONCE_LEN)
        # One byte more: there is no SIV of nothing.
        return header + self._value_key.siv_seal(bytes(plain) + b"\1", _aad(header, sealed_key))

    def _open(self, sealed_key: str, claimed: bytes) -> bytes:
        header, sealed = claimed[: 1 + _NONCE_LEN], claimed[1 + _NONCE_LEN :]
        if header[:1] and header[0] > _VERSION:
            raise CasError(
                f"the store {self.url} has a value of version {header[0]}, this program knows {_VERSION}: use a newer fspf"
            )
        try:
            return self._value_key.siv_open(sealed, _aad(header, sealed_key))[:-1]
        except (AuthenticationError, ValueError):
            raise self._altered("a value", sealed_key) from None

    def _altered(self, what: str, where: str) -> CasError:
        return CasError(
            f"the store {self.url}: {what} at {where[:80]!r} does not open: it was altered, moved or damaged, or belongs "
            "to a CAS with another master key; restore the store from a backup, or give the right key"
        )


def _aad(header: bytes, sealed_key: str) -> bytes:
    return _VALUE_LABEL + header + sealed_key.encode()
