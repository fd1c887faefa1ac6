"""Checks that the parts of one policy fit each other: names that lead nowhere, cycles, paths twice, placeholders.

What spans policies (imports and exports) is checked by `fspf.cas.policies`, which has them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NoReturn

from fspf.core.errors import PolicyError
from fspf.policy import placeholders
from fspf.policy.model import (
    NOWHERE,
    Anyone,
    AttestationMode,
    AttestedService,
    Board,
    Export,
    Image,
    Import,
    KeyType,
    Member,
    Place,
    Policy,
    Secret,
    Service,
    UpdatePolicy,
)
from fspf.policy.tree import nearest, refuse, shown
from fspf.policy.values import SecretKind

_KEY_LEN: Final = 32  # bytes of a volume key
_SECRET_KINDS: Final = frozenset({SecretKind.ASCII, SecretKind.BINARY, SecretKind.PRIVATE_KEY})
_CANNOT_SIGN: Final = frozenset({KeyType.X25519})


def check(policy: Policy) -> None:
    """Refuse a policy whose parts do not fit each other.

    Raises:
        PolicyError: With line and column.
    """
    for what, things in (
        ("service", policy.services), ("image", policy.images), ("volume", policy.volumes), ("secret", policy.secrets),
    ):  # fmt: skip
        _distinct(((one.name, one.place) for one in things), f"{what} of this name")
    for service in policy.services:
        _service(policy, service)
    for image in policy.images:
        _image(policy, image)
    for volume in policy.volumes:
        if volume.key is not None:
            _volume_key(policy, volume.key, volume.place, f"key of volume {volume.name}")
        _exports(policy, volume.exports)
        _not_from_itself(policy, volume.import_from)
    for secret in policy.secrets:
        _secret(policy, secret)
    _issuers(policy)
    _restore(policy)
    for member in (*policy.access_policy.read, *policy.access_policy.update, *policy.access_policy.create_sessions):
        _member(policy, member)


def check_imported(policy: Policy, kinds: Mapping[str, SecretKind]) -> None:
    """Check what `check` could not, once it is known of which kinds the imported secrets are.

    Raises:
        PolicyError: With line and column.
    """
    known = tuple(replace(one, kind=kinds.get(one.name, one.kind)) for one in policy.secrets)
    check(replace(policy, secrets=known))


def warnings(policy: Policy) -> Iterator[tuple[Place, str]]:
    """Yield what is allowed but hardly meant."""
    mounted = {mount.name for image in policy.images for mount in image.volumes}
    used = {service.image_name for service in policy.services}
    filled = set(_used_secrets(policy))
    for service in policy.services:
        if not service.attestation:
            yield service.place, f"service {service.name} has no attestation: nobody can be it"
    for image in policy.images:
        if image.name not in used:
            yield image.place, f"image {image.name} is used by no service"
    for volume in policy.volumes:
        if volume.name not in mounted and not volume.exports:
            yield volume.place, f"volume {volume.name} is used by no image and exported to nobody"
    for secret in policy.secrets:
        if secret.value is not None and secret.kind in _SECRET_KINDS:
            yield (
                secret.place,
                f"the value of secret {secret.name} stands in the policy: whoever may read it sees it, for ever",
            )
        if secret.name not in filled and not secret.exports:
            yield secret.place, f"secret {secret.name} is used nowhere and exported to nobody"
    if policy.security.mode is AttestationMode.NONE:
        yield NOWHERE, "attestation mode is none: evidence that no hardware stands behind is good enough"
    if any(isinstance(member, Anyone) for member in policy.access_policy.update):
        yield NOWHERE, "anybody may replace this policy (update: ANY)"


def _used_secrets(policy: Policy) -> Iterator[str]:
    for text, _, _ in _texts(policy):
        yield from (one.name for one in placeholders.find(text))
    for secret in policy.secrets:
        yield from (name for name in (secret.private_key, secret.issuer) if name is not None)


def _texts(policy: Policy) -> Iterator[tuple[str, Place, bool]]:
    """Yield every text that may hold placeholders, where it stands, and whether bytes are no good there."""
    for service in policy.services:
        yield from service_texts(service)
        if service.fspf_key is not None:
            yield service.fspf_key, service.places.get("fspf_key", service.place), False
    for image in policy.images:
        for file in image.injection_files:
            yield file.content, file.place, False
    for volume in policy.volumes:
        if volume.key is not None:
            yield volume.key, volume.place, False


def service_texts(service: Service) -> Iterator[tuple[str, Place, bool]]:
    """Yield arguments and environment, where they stand, and True: they hold no bytes."""
    for index, argument in enumerate(service.command):
        yield argument, service.places.get(f"command.{index}", service.place), True
    for name, value in service.environment.items():
        yield value, service.places.get(f"environment.{name}", service.place), True


# -- services and images


def _service(policy: Policy, service: Service) -> None:
    place = service.places.get
    if service.image_name is not None and policy.image(service.image_name) is None:
        names = [image.name for image in policy.images]
        _dangling(place("image_name", service.place), "image", service.image_name, names)
    for text, where, text_only in service_texts(service):
        _placeholders(policy, text, where, text_only=text_only)
    if service.pwd is not None:
        _no_placeholder(service.pwd, place("pwd", service.place), "pwd")
    if service.fspf_key is not None:
        _volume_key(policy, service.fspf_key, place("fspf_key", service.place), "fspf_key")
    if policy.security.mode is AttestationMode.HARDWARE:
        for index, item in enumerate(service.attestation):
            if "measured-process" in item:
                refuse(
                    place(f"attestation.{index}", service.place),
                    "no hardware stands behind measured-process: security.attestation.mode none allows it",
                )


def _image(policy: Policy, image: Image) -> None:
    _distinct(((mount.name, mount.place) for mount in image.volumes), "volume in this image")
    paths = [(mount.path, mount.place) for mount in image.volumes]
    paths += [(file.path, file.place) for file in image.injection_files]
    _distinct(paths, "use of this path")
    files = {file.path: file for file in image.injection_files}
    for path, place in paths:
        _no_placeholder(path, place, "path")
        parts = path.split("/")
        for length in range(2, len(parts)):
            above = "/".join(parts[:length])
            if above in files:
                refuse(place, f"{shown(path)} lies below {shown(above)}, which is a file")
    for mount in image.volumes:
        if policy.volume(mount.name) is None:
            _dangling(mount.place, "volume", mount.name, [volume.name for volume in policy.volumes])
    for file in image.injection_files:
        _placeholders(policy, file.content, file.place, text_only=False)


def _placeholders(policy: Policy, text: str, place: Place, *, text_only: bool) -> None:
    try:
        for one in placeholders.find(text):
            secret = policy.secret(one.name)
            if secret is None:
                names = [secret.name for secret in policy.secrets]
                raise PolicyError(f"there is no secret {one.name}{nearest(one.name, names)}")
            if secret.kind is not None:
                placeholders.check(one, secret.kind, text_only=text_only)
    except PolicyError as exc:
        refuse(place, str(exc))


def _no_placeholder(text: str, place: Place, what: str) -> None:
    if "$$SCONE" in text:
        refuse(place, f"{what} cannot have placeholders: only arguments, environment, content and keys can")


def _volume_key(policy: Policy, text: str, place: Place, what: str) -> None:
    """Check that a key is digits, or a placeholder for a binary secret of the right size."""
    if "$$" not in text:
        return
    _placeholders(policy, text, place, text_only=False)
    found = placeholders.find(text)
    if len(found) != 1 or (found[0].start, found[0].end) != (0, len(text)) or found[0].part or found[0].encoding:
        refuse(place, f"{what} is one placeholder without a format, or {2 * _KEY_LEN} hex digits")
    secret = policy.secret(found[0].name)
    assert secret is not None
    if secret.kind not in {None, SecretKind.BINARY}:
        refuse(place, f"{what} is a binary secret, {secret.name} is {secret.kind}")
    size = secret.size if secret.value is None else len(secret.value) // 2
    if size not in {None, _KEY_LEN}:
        refuse(place, f"{what} has {_KEY_LEN} bytes, {secret.name} has {size}")


# -- secrets


def _secret(policy: Policy, secret: Secret) -> None:
    _exports(policy, secret.exports)
    _not_from_itself(policy, secret.import_from)
    if secret.private_key is not None:
        key = policy.secret(secret.private_key)
        if key is None:
            _dangling(secret.place, "secret", secret.private_key, [one.name for one in policy.secrets])
        if key.kind not in {None, SecretKind.PRIVATE_KEY}:
            refuse(secret.place, f"private_key names a secret of kind private-key, {key.name} is {key.kind}")
        if key.key_type in _CANNOT_SIGN and secret.kind is not SecretKind.PUBLIC_KEY:
            refuse(secret.place, f"{key.name} is a key of {key.key_type}, which cannot sign")
    if secret.key_type in _CANNOT_SIGN and secret.kind in {SecretKind.X509, SecretKind.X509_CA}:
        refuse(secret.place, f"a key of {secret.key_type} cannot sign")
    if secret.issuer is not None:
        issuer = policy.secret(secret.issuer)
        if issuer is None:
            _dangling(secret.place, "secret", secret.issuer, [one.name for one in policy.secrets])
        if issuer.kind not in {None, SecretKind.X509_CA}:
            refuse(secret.place, f"issuer names a secret of kind x509-ca, {issuer.name} is {issuer.kind}")
        if issuer.kind is SecretKind.X509_CA and issuer.value is not None and issuer.private_key is None:
            refuse(secret.place, f"{issuer.name} has a value but no private_key, so it cannot issue")
    for _, value in secret.san:
        _no_placeholder(value, secret.place, "san")
    _no_placeholder(secret.common_name or "", secret.place, "common_name")


def _issuers(policy: Policy) -> None:
    """Refuse certificates that issue each other."""
    settled: set[str] = set()
    for secret in policy.secrets:
        chain: list[str] = []
        one: Secret | None = secret
        while one is not None and one.name not in settled:
            if one.name in chain:
                if len(chain) == 1:
                    refuse(one.place, "a certificate that issues itself has no issuer")
                refuse(one.place, f"certificates issue each other: {' <- '.join([*chain, one.name][:10])}")
            chain.append(one.name)
            one = None if one.issuer is None else policy.secret(one.issuer)
        settled.update(chain)


# -- other policies, restoring, members


def _exports(policy: Policy, exports: Iterable[Export]) -> None:
    exports = tuple(exports)
    _distinct(((export.session, export.place) for export in exports), "export to this policy")
    for export in exports:
        if export.session == policy.name:
            refuse(export.place, "a policy does not export to itself")


def _not_from_itself(policy: Policy, source: Import | None) -> None:
    if source is not None and source.session == policy.name:
        refuse(source.place, "a policy does not import from itself")


def _restore(policy: Policy) -> None:
    _distinct(((one.volume, one.place) for one in policy.restore), "statement about this volume")
    for one in policy.restore:
        name, slash, _ = one.volume.partition("/")
        if slash:
            service = policy.service(name)
            if service is None:
                _dangling(one.place, "service", name, [service.name for service in policy.services])
            if not service.has_main_volume:
                refuse(one.place, f"service {name} has no main volume")
            if service.fspf_update_policy in {UpdatePolicy.EPHEMERAL, UpdatePolicy.NO_ROLLBACK_PROTECTION}:
                refuse(
                    one.place,
                    f"the main volume of {name} is {service.fspf_update_policy}: nothing keeps old states out",
                )
            continue
        volume = policy.volume(name)
        if volume is None:
            _dangling(one.place, "volume", name, [volume.name for volume in policy.volumes])
        if volume.import_from is not None:
            refuse(one.place, f"volume {name} is imported: its own policy restores it")


def _member(policy: Policy, member: Member) -> None:
    if isinstance(member, Board):
        for one in (*member.members, *member.veto):
            _member(policy, one)
        return
    if not isinstance(member, AttestedService) or member.session not in {"", policy.name}:
        return
    if policy.service(member.service) is None:
        _dangling(member.place, "service", member.service, [service.name for service in policy.services])


# -- how it is said


def _distinct(things: Iterable[tuple[str, Place]], what: str) -> None:
    seen: dict[str, Place] = {}
    for name, place in things:
        if name in seen:
            refuse(place, f"{shown(name)}: there is another {what} in line {seen[name].line}")
        seen[name] = place


def _dangling(place: Place, what: str, name: str, known: list[str]) -> NoReturn:
    refuse(place, f"there is no {what} {name}{nearest(name, known)}")
