"""What a policy says, as values.

Reading a document into them is left to `document` and `sections`, checking that they fit each other to `semantics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

from fspf.core.freshness import Freshness
from fspf.policy.values import SecretKind


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands in the document; 1-based, 0 if it stands nowhere."""

    line: int = 0
    column: int = 0


NOWHERE: Final = Place()


class UpdatePolicy(StrEnum):
    """What may happen to a volume, by the names of the policy language."""

    ROLLBACK_PROTECTED = "rollback_protected"  # every start must match the anchor
    EPHEMERAL = "ephemeral"  # writes are dropped: the next start sees the initial state
    NO_ROLLBACK_PROTECTION = "no_rollback_protection"
    REINITIALIZABLE = "rollback_protected_reinitializable"  # main volumes: each instance has its own anchor


# What an importer may do with a volume that was exported so.
ALLOWED_BY_EXPORT: Final[Mapping[UpdatePolicy, frozenset[UpdatePolicy]]] = {
    UpdatePolicy.EPHEMERAL: frozenset({UpdatePolicy.EPHEMERAL}),
    UpdatePolicy.ROLLBACK_PROTECTED: frozenset({UpdatePolicy.EPHEMERAL, UpdatePolicy.ROLLBACK_PROTECTED}),
    UpdatePolicy.NO_ROLLBACK_PROTECTION: frozenset({
        UpdatePolicy.EPHEMERAL, UpdatePolicy.ROLLBACK_PROTECTED, UpdatePolicy.NO_ROLLBACK_PROTECTION,
    }),
}  # fmt: skip


# -- services and images


@dataclass(frozen=True, slots=True)
class Service:
    """A program, what it must show, and what it is given.

    Attributes:
        attestation: Any of the items, all factors within one; shapes as in `fspf.core.factors`.
        fspf_key, fspf_tag: Of the main volume: 64 and 32 hex digits, or a placeholder; None: there is no main volume.
        fspf_volume: Its id; None: the first attested instance tells it.
    """

    name: str
    image_name: str | None = None
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    pwd: str | None = None
    attestation: tuple[Mapping[str, Any], ...] = ()
    fspf_key: str | None = field(default=None, repr=False)
    fspf_tag: str | None = None
    fspf_volume: str | None = None
    fspf_update_policy: UpdatePolicy = UpdatePolicy.REINITIALIZABLE
    place: Place = field(default=NOWHERE, compare=False, repr=False)
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)  # of its keys

    @property
    def has_main_volume(self) -> bool:
        """Whether the service's root file system is a volume."""
        return self.fspf_key is not None


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """Where an image has a volume."""

    name: str
    path: str
    update_policy: UpdatePolicy = UpdatePolicy.ROLLBACK_PROTECTED
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class InjectionFile:
    """A file that is written, with secrets filled in, before the service starts."""

    path: str
    content: str
    permission: int = 0o400
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Image:
    """What all services of one image share."""

    name: str
    volumes: tuple[ImageVolume, ...] = ()
    injection_files: tuple[InjectionFile, ...] = ()
    place: Place = field(default=NOWHERE, compare=False, repr=False)


# -- volumes and secrets


@dataclass(frozen=True, slots=True)
class Export:
    """Leave for another policy to import something.

    Attributes:
        session: The other policy's name.
        session_hash: Only that very version of it; None: any.
        service: Only that service of it; None: all.
        update_policy: Of a volume: the most that the importer may do.
    """

    session: str
    session_hash: str | None = None
    update_policy: UpdatePolicy = UpdatePolicy.ROLLBACK_PROTECTED
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Import:
    """Something of another policy."""

    session: str
    name: str  # what the other policy calls it
    session_hash: str | None = None
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. With neither key nor import the CAS makes the key, and the volume is initialised exactly once.

    Attributes:
        key, tag, volume_id: Of a volume that exists already: 64 hex digits or a placeholder, 32, 32.
        max_age_s: The key is to be replaced when it is older.
    """

    name: str
    key: str | None = field(default=None, repr=False)
    tag: str | None = None
    volume_id: str | None = None
    freshness: Freshness | None = None
    max_age_s: int | None = None
    exports: tuple[Export, ...] = ()
    import_from: Import | None = None
    place: Place = field(default=NOWHERE, compare=False, repr=False)


class KeyType(StrEnum):
    """Kinds of key pairs."""

    ED25519 = "Ed25519"
    P256 = "P-256"
    P384 = "P-384"
    RSA_2048 = "RSA-2048"
    RSA_3072 = "RSA-3072"
    RSA_4096 = "RSA-4096"
    X25519 = "X25519"


class Endpoint(StrEnum):
    """What a certificate is for."""

    CLIENT = "client"
    SERVER = "server"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class VaultSource:
    """Where in a Vault KV v2 engine a value is."""

    mount: str
    path: str
    field: str
    version: int | None = None  # None: the newest


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret. What its kind does not use is None.

    Attributes:
        kind: None for an imported one: as the exporter says.
        size: ascii: characters; binary: bytes.
        value: As written, for a secret that the policy's author chose: text, hex digits, PEM.
        private_key: Name of the secret whose key is certified, or whose public half this is; None for a certificate: it
            has a key of its own.
        issuer: Name of the x509-ca that signs; None: self-signed.
        san: Subject alternative names: ("dns" | "ip" | "uri" | "email", value).
        migrate: The private key stays over an update.
        renew_before_s: x509, x509-ca: issued anew so long before its end.
    """

    name: str
    kind: SecretKind | None
    size: int | None = None
    value: str | None = field(default=None, repr=False)
    charset: str | None = None
    key_type: KeyType | None = None
    private_key: str | None = None
    common_name: str | None = None
    issuer: str | None = None
    endpoint: Endpoint | None = None
    san: tuple[tuple[str, str], ...] = ()
    valid_for_s: int | None = None
    renew_before_s: int | None = None
    migrate: bool = False
    vault: VaultSource | None = None
    exports: tuple[Export, ...] = ()
    import_from: Import | None = None
    place: Place = field(default=NOWHERE, compare=False, repr=False)


# -- who may do what


@dataclass(frozen=True, slots=True)
class Creator:
    """Whoever created the policy."""


@dataclass(frozen=True, slots=True)
class Anyone:
    """Everybody."""


@dataclass(frozen=True, slots=True)
class Nobody:
    """No one."""


@dataclass(frozen=True, slots=True)
class Signer:
    """The holder of a key.

    Attributes:
        key_id: Hex SHA-256 of the DER SubjectPublicKeyInfo.
        spki: That DER; empty if the policy has only the id.
    """

    key_id: str
    spki: bytes = field(default=b"", repr=False)
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AttestedService:
    """A service that was attested under a policy. An empty session is the policy itself."""

    session: str
    service: str
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Script:
    """A program that answers an HTTPS call with yes or no.

    Attributes:
        signer: Key that must have signed the answer; None: TLS is trusted.
        ca: PEM of the CA that its server's certificate must come from; None: the usual ones, only with *signer*.
    """

    url: str
    signer: Signer | None = None
    ca: str | None = field(default=None, repr=False)
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Board:
    """At least *need* of *members* must agree, and none with a veto may be against it.

    Attributes:
        veto: Whoever may stop it: by saying no; and by saying nothing, until *veto_within_s* have passed.
        veto_within_s: None: silence never passes.
    """

    need: int
    members: tuple[Member, ...]
    veto: tuple[Member, ...] = ()
    veto_within_s: int | None = None
    place: Place = field(default=NOWHERE, compare=False, repr=False)


Member: TypeAlias = Creator | Anyone | Nobody | Signer | AttestedService | Script | Board


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Who may read and replace a policy and create others below it: any one of each."""

    read: tuple[Member, ...] = (Creator(),)
    update: tuple[Member, ...] = (Creator(),)
    create_sessions: tuple[Member, ...] = (Creator(),)


# -- the rest


class AttestationMode(StrEnum):
    """Whether evidence must come from hardware."""

    HARDWARE = "hardware"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Security:
    """What attestation tolerates.

    Attributes:
        attestation: As written, in the shapes of `fspf.core.factors`.
    """

    attestation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mode(self) -> AttestationMode:
        """Whether evidence must come from hardware."""
        return AttestationMode(self.attestation.get("mode", "hardware"))


@dataclass(frozen=True, slots=True)
class Restore:
    """An older state of a volume is to be the newest again. Takes effect once: *epoch* is the next one.

    Attributes:
        volume: Name in this policy, or `service/instance` for an instance's main volume.
        tag, generation: The state, as `fspf info` and the audit log show it.
    """

    volume: str
    tag: bytes
    generation: int
    epoch: int
    reason: str
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Policy:
    """One version of a policy.

    Attributes:
        predecessor: Hash of the version that this one replaces; None for the first.
        hash: 64 hex digits; names this version.
    """

    name: str
    hash: str
    version: str = "0.3"
    predecessor: str | None = None
    services: tuple[Service, ...] = ()
    images: tuple[Image, ...] = ()
    volumes: tuple[Volume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    access_policy: AccessPolicy = field(default_factory=AccessPolicy)
    security: Security = field(default_factory=Security)
    restore: tuple[Restore, ...] = ()
    _services: Mapping[str, Service] = field(init=False, compare=False, repr=False)
    _images: Mapping[str, Image] = field(init=False, compare=False, repr=False)
    _volumes: Mapping[str, Volume] = field(init=False, compare=False, repr=False)
    _secrets: Mapping[str, Secret] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Index what is looked up by name: a policy may have thousands of secrets, and placeholders."""
        object.__setattr__(self, "_services", {one.name: one for one in reversed(self.services)})
        object.__setattr__(self, "_images", {one.name: one for one in reversed(self.images)})
        object.__setattr__(self, "_volumes", {one.name: one for one in reversed(self.volumes)})
        object.__setattr__(self, "_secrets", {one.name: one for one in reversed(self.secrets)})

    def service(self, name: str) -> Service | None:
        """Return the service of that name."""
        return self._services.get(name)

    def image(self, name: str | None) -> Image | None:
        """Return the image of that name."""
        return self._images.get(name) if name is not None else None

    def volume(self, name: str) -> Volume | None:
        """Return the volume of that name."""
        return self._volumes.get(name)

    def secret(self, name: str) -> Secret | None:
        """Return the secret of that name."""
        return self._secrets.get(name)

    @property
    def namespace(self) -> str | None:
        """Name of the policy that this one is below, None at the top."""
        above, slash, _ = self.name.rpartition("/")
        return above if slash else None
