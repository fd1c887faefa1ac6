"""Where the values of a policy's secrets are kept: one entry of the store per policy, changed with the policy in one transaction.

Sealing is left to the store (`fspf.cas.sealed_store`), the values themselves to `fspf.cas.values`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import msgpack

from fspf.cas.store import ABSENT, MAX_VALUE_LEN, Compare, Put
from fspf.core.errors import CasError, PolicyError
from fspf.policy.values import SecretKind, SecretValue

if TYPE_CHECKING:
    from fspf.cas.store import Store
    from fspf.policy.values import SecretValues

PREFIX: Final = "secret/"
_VERSION: Final = 1
_ROOM: Final = 4096  # bytes that sealing may add


class Stored(NamedTuple):
    """The values of one policy, and the revision that a change of them must find."""

    values: dict[str, SecretValue]
    revision: int  # ABSENT: the policy has none


def key_of(policy_name: str) -> str:
    """Return the key of the entry. One for all values: a transaction takes few keys, a policy may have many secrets."""
    return f"{PREFIX}{quote(policy_name, safe='')}/values"


async def load(store: Store, policy_name: str) -> Stored:
    """Return the values of a policy.

    Raises:
        CasError: What the store has is damaged, or of a newer version.
    """
    entry = await store.get(key_of(policy_name))
    return Stored({}, ABSENT) if entry is None else Stored(unpack(entry.value), entry.revision)


def compare(policy_name: str, revision: int) -> Compare:
    """Return the condition that nobody changed the values since `load`."""
    return Compare(key_of(policy_name), revision)


def puts(policy_name: str, values: SecretValues) -> list[Put]:
    """Return what a transaction must put for these to be the policy's values; for a policy that is deleted, give none.

    Raises:
        PolicyError: They are more than an entry holds.
    """
    if not values:
        return [Put(key_of(policy_name), None)]
    packed = pack(values)
    if len(packed) > MAX_VALUE_LEN - _ROOM:
        raise PolicyError(
            f"the secrets of policy {policy_name} take {len(packed)} bytes, the CAS keeps {MAX_VALUE_LEN - _ROOM} for one: divide it"
        )
    return [Put(key_of(policy_name), packed)]


def pack(values: SecretValues) -> bytes:
    """Return *values* as bytes, in the order of their names."""
    rows = [
        (name, value.kind.value, value.raw, value.private_key, value.public_key, value.chain)
        for name, value in sorted(values.items())
    ]
    packed: bytes = msgpack.packb((_VERSION, rows), use_bin_type=True)
    return packed


def unpack(packed: bytes) -> dict[str, SecretValue]:
    """Turn them back.

    Raises:
        CasError: They are damaged, or of a newer version. What is wrong is not said: it might be part of a secret.
    """
    try:
        version, rows = msgpack.unpackb(packed, use_list=False, raw=False)
        if version != _VERSION:
            raise CasError(f"the CAS has secrets of version {version}, this program knows {_VERSION}: use a newer fspf")
        return {
            name: SecretValue(SecretKind(kind), raw, private_key, public_key, chain)
            for name, kind, raw, private_key, public_key, chain in rows
        }
    except (ValueError, TypeError, msgpack.UnpackException):
        raise CasError(
            "the secrets that the CAS keeps for a policy are damaged: restore the store from a backup"
        ) from None
