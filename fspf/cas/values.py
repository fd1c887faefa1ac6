"""The values of a policy's secrets: generated, taken as given, kept over an update, rotated, imported.

How certificates are made is left to `fspf.cas.x509`, where values are kept to `fspf.cas.secret_store`, and who may import
what is written in policies.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final

from fspf.cas import x509
from fspf.core.errors import PolicyError
from fspf.policy.model import KeyType
from fspf.policy.values import SecretKind, SecretValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fspf.policy.model import Policy, Secret
    from fspf.policy.values import SecretValues

DEFAULT_ASCII_LEN: Final = 24  # characters: 142 bits
DEFAULT_BINARY_LEN: Final = 32  # bytes
DEFAULT_CHARSET: Final = string.ascii_letters + string.digits
MAX_LEN: Final = 1 << 16  # characters or bytes of one value
DEFAULT_RENEW_PART: Final = 3  # a certificate is issued anew when less than a third of its life is left
_CERTIFICATES: Final = (SecretKind.X509, SecretKind.X509_CA)


class _Maker:
    """Makes the values of one policy, each once, in the order in which they need each other."""

    def __init__(
        self,
        policy: Policy,
        ready: Mapping[str, SecretValue],
        imports: SecretValues,
        kept_keys: Mapping[str, bytes],
        linked: SecretValues,
        *,
        now_ns: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._policy = policy
        self._linked = linked  # CAs that a new one of that name is linked to
        self._imports = imports
        self._kept_keys = kept_keys  # of certificates that have a key of their own
        self._now_ns = now_ns
        self._random_bytes = random_bytes
        self._under_way: list[str] = []
        self.values: dict[str, SecretValue] = dict(ready)

    def get(self, name: str, wanted_by: Secret) -> SecretValue:
        """Return the value of another secret that *wanted_by* names."""
        if name in self._imports:
            return self._imports[name]
        secret = self._policy.secret(name)
        if secret is None or secret.vault is not None or secret.import_from is not None:
            why = (
                "is not in this policy" if secret is None else "has no value that a key or certificate can be made with"
            )
            raise _error(wanted_by, f"{name} {why}")
        return self.make(secret)

    def make(self, secret: Secret) -> SecretValue:
        """Return the value of *secret*, made now if it is not there."""
        if secret.name not in self.values:
            if secret.name in self._under_way:
                circle = " -> ".join([*self._under_way, secret.name])
                raise _error(secret, f"the secrets need each other in a circle: {circle}")
            self._under_way.append(secret.name)
            try:
                self.values[secret.name] = self._new(secret)
            except PolicyError as exc:
                raise exc if exc.line else _error(secret, str(exc)) from None
            finally:
                self._under_way.pop()
        return self.values[secret.name]

    def _new(self, secret: Secret) -> SecretValue:
        match secret.kind:
            case SecretKind.ASCII:
                return SecretValue(SecretKind.ASCII, raw=self._ascii(secret))
            case SecretKind.BINARY:
                return SecretValue(SecretKind.BINARY, raw=self._binary(secret))
            case SecretKind.PRIVATE_KEY:
                return self._private_key(secret)
            case SecretKind.PUBLIC_KEY:
                return self._public_key(secret)
            case SecretKind.X509 | SecretKind.X509_CA:
                return self._certificate(secret)
            case _:
                raise PolicyError("neither a kind nor where it comes from is said")

    def _ascii(self, secret: Secret) -> bytes:
        if secret.value is not None:
            return _bounded(secret.value.encode("utf-8"))
        charset = secret.charset or DEFAULT_CHARSET
        size = _size(secret, DEFAULT_ASCII_LEN)
        if len(set(charset)) < 2:
            raise PolicyError("a charset needs at least two different characters")
        return "".join(_pick(charset, size, self._random_bytes)).encode("utf-8")

    def _binary(self, secret: Secret) -> bytes:
        if secret.value is None:
            return self._random_bytes(_size(secret, DEFAULT_BINARY_LEN))
        try:
            return _bounded(bytes.fromhex(secret.value))
        except ValueError:
            raise PolicyError("the value of a binary secret is written in hexadecimal") from None

    def _private_key(self, secret: Secret) -> SecretValue:
        if secret.value is not None:
            key = x509.read_private_key(secret.value)
        else:
            key = x509.generate_key(secret.key_type or KeyType.P256)
        return SecretValue(SecretKind.PRIVATE_KEY, private_key=key, public_key=x509.public_half(key))

    def _public_key(self, secret: Secret) -> SecretValue:
        if secret.value is not None:
            return SecretValue(SecretKind.PUBLIC_KEY, public_key=x509.read_public_key(secret.value))
        if secret.private_key is None:
            raise PolicyError("a public key needs a value, or the name of a private key")
        return SecretValue(SecretKind.PUBLIC_KEY, public_key=self.get(secret.private_key, secret).public_key)

    def _certificate(self, secret: Secret) -> SecretValue:
        key = self._key_of(secret)
        if secret.value is not None:
            chain = x509.read_chain(secret.value)
            if key:
                x509.check_pair(key, chain)
            assert secret.kind is not None
            return SecretValue(secret.kind, private_key=key, public_key=x509.public_key_of(chain), chain=chain)
        issuer = None if secret.issuer is None else self.get(secret.issuer, secret)
        key = key or self._kept_keys.get(secret.name) or x509.generate_key(secret.key_type or KeyType.P256)
        made = x509.issue(secret, key, issuer, now_ns=self._now_ns, random_bytes=self._random_bytes)
        before = self._linked.get(secret.name)
        if before is None or not before.kind == made.kind == SecretKind.X509_CA:
            return made
        return x509.hand_over(before, made, now_ns=self._now_ns, random_bytes=self._random_bytes)

    def _key_of(self, secret: Secret) -> bytes:
        if secret.private_key is None:
            return b""
        key = self.get(secret.private_key, secret).private_key
        if not key:
            raise PolicyError(f"{secret.private_key} has no private key")
        return key


def generate(
    policy: Policy,
    old_policy: Policy | None,
    old_values: SecretValues,
    imports: SecretValues,
    *,
    now_ns: int,
    random_bytes: Callable[[int], bytes],
) -> dict[str, SecretValue]:
    """Return the values of all secrets that *policy* itself has; imported ones and those of a Vault are fetched when needed.

    What stays over an update: ascii and binary as long as they are asked for in the same way, private keys with
    `migrate: true`, given values as given. Certificates are issued anew; a CA with a new key is linked to the one before.

    Args:
        policy: The one that comes into force.
        old_policy: The one that it replaces, if any, with *old_values*.
        imports: Values of imported secrets that others here refer to, by their names in *policy*.
        now_ns: UTC ns since 1970.
        random_bytes: Of the operating system.

    Raises:
        PolicyError: A value cannot be made, with the place of the secret; nothing of a value is in the message.
    """
    ready: dict[str, SecretValue] = {}
    kept_keys: dict[str, bytes] = {}
    for secret in policy.secrets:
        before = old_policy.secret(secret.name) if old_policy is not None else None
        value = old_values.get(secret.name)
        if before is None or value is None or before.kind != secret.kind or value.kind != secret.kind:
            continue
        if _stays(before, secret, value):
            ready[secret.name] = value
        elif secret.migrate and secret.kind in _CERTIFICATES and before.key_type == secret.key_type:
            kept_keys[secret.name] = value.private_key
    return _make(policy, ready, imports, kept_keys, now_ns=now_ns, random_bytes=random_bytes, linked=old_values)


def rotate(
    policy: Policy,
    values: SecretValues,
    names: Iterable[str],
    imports: SecretValues,
    *,
    now_ns: int,
    random_bytes: Callable[[int], bytes],
    overlap: bool = False,
) -> tuple[dict[str, SecretValue], list[str]]:
    """Give the named secrets new values, and with them all that was made with the old ones: public keys, certificates.

    Args:
        policy: The one in force.
        values: Those of now.
        names: Secrets to change.
        imports: As for `generate`.
        now_ns: UTC ns since 1970.
        random_bytes: Of the operating system.
        overlap: A new CA is linked to the old one. Not when the old key may be in wrong hands: whoever has it would
            go on being trusted.

    Returns:
        All values of the policy, and the names of those that changed.

    Raises:
        PolicyError: A name is none of this policy's own secrets, or its value was given by the policy's author.
    """
    changed: set[str] = set()
    for name in names:
        secret = policy.secret(name)
        if secret is None or secret.import_from is not None or secret.vault is not None:
            raise PolicyError(
                f"{name} is no secret that policy {policy.name} itself has: rotate it where it comes from"
            )
        if secret.value is not None:
            raise _error(secret, f"the value of {name} is written in the policy: change it there")
        changed.add(name)
    while True:  # whatever depends on what has changed
        more = {
            secret.name
            for secret in policy.secrets
            if secret.name not in changed
            and secret.value is None
            and secret.kind in {*_CERTIFICATES, SecretKind.PUBLIC_KEY}
            and {secret.private_key, secret.issuer} & changed
        }
        if not more:
            break
        changed |= more
    # A certificate whose own key was not among the named keeps it; the named get new ones.
    named = set(names)
    kept_keys = {
        name: values[name].private_key
        for name in changed - named
        if name in values and values[name].kind in _CERTIFICATES and _secret(policy, name).private_key is None
    }
    ready = {name: value for name, value in values.items() if name not in changed and policy.secret(name) is not None}
    linked = values if overlap else {}
    made = _make(policy, ready, imports, kept_keys, now_ns=now_ns, random_bytes=random_bytes, linked=linked)
    return made, sorted(changed)


def due(policy: Policy, values: SecretValues, *, now_ns: int) -> list[str]:
    """Name the certificates that are to be issued anew because their end is near."""
    found = []
    for secret in policy.secrets:
        value = values.get(secret.name)
        if value is None or secret.value is not None or value.kind not in _CERTIFICATES:
            continue
        begin_ns, end_ns = x509.begins_ns(value), x509.ends_ns(value)
        before_ns = (end_ns - begin_ns) // DEFAULT_RENEW_PART
        if secret.renew_before_s is not None:
            before_ns = secret.renew_before_s * 1_000_000_000
        if now_ns >= end_ns - before_ns:
            found.append(secret.name)
    return found


def renew(
    policy: Policy,
    values: SecretValues,
    imports: SecretValues,
    *,
    now_ns: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[dict[str, SecretValue], list[str]]:
    """Issue anew the certificates that are `due`, for the same keys; what a renewed CA issued stays as it is.

    Returns:
        All values of the policy, and the names of those that changed.
    """
    names = due(policy, values, now_ns=now_ns)
    kept_keys = {name: values[name].private_key for name in names}
    ready = {name: value for name, value in values.items() if name not in names}
    made = _make(policy, ready, imports, kept_keys, now_ns=now_ns, random_bytes=random_bytes, linked=values)
    return made, names


# -- parts


def _make(
    policy: Policy,
    ready: Mapping[str, SecretValue],
    imports: SecretValues,
    kept_keys: Mapping[str, bytes],
    *,
    now_ns: int,
    random_bytes: Callable[[int], bytes],
    linked: SecretValues,
) -> dict[str, SecretValue]:
    """Make what is not *ready*."""
    maker = _Maker(policy, ready, imports, kept_keys, linked, now_ns=now_ns, random_bytes=random_bytes)
    for secret in policy.secrets:
        if secret.import_from is None and secret.vault is None:
            maker.make(secret)
    return {secret.name: maker.values[secret.name] for secret in policy.secrets if secret.name in maker.values}


def _stays(before: Secret, secret: Secret, value: SecretValue) -> bool:
    """Tell whether *value*, made for *before*, is what *secret* asks for."""
    if secret.value is not None or before.value is not None:
        return False  # as given, or no longer as given
    if secret.kind in {SecretKind.ASCII, SecretKind.BINARY}:
        return (before.size, before.charset) == (secret.size, secret.charset)
    if secret.kind is SecretKind.PRIVATE_KEY:
        return secret.migrate and x509.key_type_of(value.private_key) == (secret.key_type or KeyType.P256)
    return False


def _pick(charset: str, size: int, random_bytes: Callable[[int], bytes]) -> Iterable[str]:
    """Yield *size* characters, all equally likely: numbers beyond the last multiple of the charset's size are not used."""
    limit = (1 << 32) // len(charset) * len(charset)
    while size:
        number = int.from_bytes(random_bytes(4), "big")
        if number < limit:
            yield charset[number % len(charset)]
            size -= 1


def _size(secret: Secret, default: int) -> int:
    size = default if secret.size is None else secret.size
    if not 1 <= size <= MAX_LEN:
        raise PolicyError(f"a secret has 1 to {MAX_LEN} characters or bytes, not {size}")
    return size


def _bounded(raw: bytes) -> bytes:
    if not 1 <= len(raw) <= MAX_LEN:
        raise PolicyError(f"a secret has 1 to {MAX_LEN} bytes, not {len(raw)}")
    return raw


def _secret(policy: Policy, name: str) -> Secret:
    secret = policy.secret(name)
    assert secret is not None
    return secret


def _error(secret: Secret, message: str) -> PolicyError:
    return PolicyError(f"secret {secret.name}: {message}", line=secret.place.line, column=secret.place.column)
