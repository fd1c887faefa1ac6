"""What binds policies to each other and to volumes: imports and exports, ids of volumes, who may use which and how.

Changing policies is `policies`' business; keys, anchors and leases of volumes are `volumes`'.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from fspf.cas import policy_records as records
from fspf.cas.policy_ports import Change
from fspf.cas.policy_records import Belonging, MainVolume, Record
from fspf.cas.store import ABSENT, Compare, Put, Store
from fspf.core.errors import AccessDeniedError, ConflictError, PolicyError
from fspf.core.freshness import Freshness
from fspf.policy import semantics
from fspf.policy.model import (
    ALLOWED_BY_EXPORT,
    Export,
    ImageVolume,
    Import,
    Place,
    Policy,
    Restore,
    Secret,
    Service,
    UpdatePolicy,
    Volume,
)
from fspf.policy.principal import Principal
from fspf.policy.values import SecretKind

ID_LEN: Final = 16
MAX_INSTANCE: Final = 100  # characters
SHARED_INSTANCE: Final = "-"  # of a main volume that all instances of a service share
_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Current:
    """The version of a policy that is in force."""

    policy: Policy
    record: Record
    revision: int


@dataclass(frozen=True, slots=True)
class VolumeAccess:
    """What a service may do with a volume.

    Attributes:
        record_id: Under which id the CAS keeps key, anchor and lease: the volume's own, or one of this instance alone.
        volume_id: What the volume's header says; None: the CAS does not know it yet.
        policy: Name of the policy whose volume it is: where `key` is to be expanded.
        incarnation: Of that policy.
        name: Of the volume there; of a main volume, the service's.
        local_name: Of the volume in the policy of the service that asks.
        path: Where it is to be mounted.
        initial_tag: Tag of the state that it begins with; None: the CAS initialises it.
        key: Hex digits or a placeholder; None: the CAS makes the key.
    """

    record_id: bytes
    volume_id: bytes | None
    policy: str
    incarnation: bytes
    name: str
    local_name: str
    path: str
    update_policy: UpdatePolicy
    initial_tag: bytes | None
    key: str | None
    freshness: Freshness | None = None
    max_age_s: int | None = None
    main: bool = False


class Links:
    """Answers questions that need several policies.

    Args:
        find: Returns the version of a policy that is in force.
        random_bytes: Makes ids.
    """

    def __init__(
        self, store: Store, find: Callable[[str], Awaitable[Current | None]], random_bytes: Callable[[int], bytes]
    ) -> None:
        self._store = store
        self._find = find
        self._random = random_bytes

    # -- imports, from which policy and as what

    async def check_imports(self, policy: Policy) -> list[Compare]:
        """Refuse imports that their exporters do not export; return what must stay as it was seen.

        Raises:
            PolicyError: With line and column.
        """
        kinds: dict[str, SecretKind] = {}
        seen: dict[str, Current] = {}
        for volume in policy.volumes:
            if volume.import_from is not None:
                exporter = await self._exporter(seen, volume.import_from)
                export = self._exported_volume(policy, exporter, volume.import_from)
                for mount in _mounts(policy, volume.name):
                    _check_update_policy(export, volume.import_from, mount)
        for secret in policy.secrets:
            if secret.import_from is not None:
                exporter = await self._exporter(seen, secret.import_from)
                theirs = self._exported_secret(policy, exporter, secret.import_from)
                assert theirs.kind is not None
                if secret.kind not in {None, theirs.kind}:
                    _refuse(
                        secret.place, f"{theirs.name} of {exporter.policy.name} is {theirs.kind}, not {secret.kind}"
                    )
                kinds[secret.name] = theirs.kind
        if kinds:
            semantics.check_imported(policy, kinds)
        return [Compare(records.policy_key(name), current.revision) for name, current in seen.items()]

    async def imported_secrets(self, policy: Policy) -> dict[str, tuple[Policy, Secret]]:
        """Return whose secrets a policy imports now, by its own names for them.

        Raises:
            AccessDeniedError: One is not exported any more.
        """
        seen: dict[str, Current] = {}
        found = {}
        for secret in policy.secrets:
            if secret.import_from is not None:
                try:
                    exporter = await self._exporter(seen, secret.import_from)
                    found[secret.name] = exporter.policy, self._exported_secret(policy, exporter, secret.import_from)
                except PolicyError as exc:
                    raise AccessDeniedError(f"secret {secret.name} of {policy.name}: {exc}") from None
        return found

    async def _exporter(self, seen: dict[str, Current], source: Import) -> Current:
        current = seen.get(source.session) or await self._find(source.session)
        if current is None:
            _not_exported(source)
        if source.session_hash is not None and source.session_hash != current.policy.hash:
            _refuse(
                source.place, f"version {source.session_hash[:12]} of {source.session} is expected, another is in force"
            )
        seen[source.session] = current
        return current

    @staticmethod
    def _exported_volume(importer: Policy, exporter: Current, source: Import) -> Export:
        volume = exporter.policy.volume(source.name)
        export = None if volume is None or volume.import_from is not None else _export_to(importer, volume.exports)
        if export is None:
            _not_exported(source)
        _check_version(exporter, source)
        return export

    @staticmethod
    def _exported_secret(importer: Policy, exporter: Current, source: Import) -> Secret:
        secret = exporter.policy.secret(source.name)
        if secret is None or secret.import_from is not None or _export_to(importer, secret.exports) is None:
            _not_exported(source)
        _check_version(exporter, source)
        return secret

    # -- ids of volumes

    async def volumes_of(self, policy: Policy, record: Record) -> tuple[Mapping[str, bytes], Change]:
        """Return the ids of a policy's own volumes, and what has to be put for those that are new.

        A name keeps its id for as long as the policy lives, also while no version mentions it: its anchor stays what it is.

        Raises:
            ConflictError: A volume that is named by its id belongs to another policy.
        """
        ids = dict(record.volumes)
        compare: list[Compare] = []
        put: list[Put] = []
        for volume in policy.volumes:
            if volume.import_from is not None:
                continue
            wanted = None if volume.volume_id is None else bytes.fromhex(volume.volume_id)
            known = ids.get(volume.name)
            if known is not None and wanted in {None, known}:
                continue
            volume_id = wanted or self._random(ID_LEN)
            key = records.belonging_key(volume_id)
            entry = await self._store.get(key)
            if entry is not None:
                self._check_belongs(entry.value, policy, record, volume)
            elif wanted is not None:  # a key's own volume does not become a policy's by being named in one
                if await self._store.get(records.volume_key(volume_id)) is not None:
                    raise _taken(volume)
                compare.append(Compare(records.volume_key(volume_id), ABSENT))
            compare.append(Compare(key, ABSENT if entry is None else entry.revision))
            put.append(Put(key, Belonging(policy.name, record.incarnation, volume.name).pack()))
            ids[volume.name] = volume_id
        return ids, (compare, put)

    @staticmethod
    def _check_belongs(value: bytes, policy: Policy, record: Record, volume: Volume) -> None:
        found = Belonging.unpack(value)
        if (found.policy, found.incarnation) != (policy.name, record.incarnation):
            raise _taken(volume)
        if found.volume != volume.name:
            _refuse(volume.place, f"volume {volume.volume_id} has the name {found.volume} in this policy already")

    async def restored_volume(self, policy: Policy, record: Record, statement: Restore) -> bytes:
        """Return under which id the CAS keeps the anchor that a restore statement is about.

        Raises:
            PolicyError: Nothing was ever kept for it.
        """
        name, slash, instance = statement.volume.partition("/")
        if not slash:
            volume_id = record.volumes.get(name)
            if volume_id is None:
                _refuse(statement.place, f"volume {name} is new: there is nothing to restore")
            return volume_id
        found = {}
        for key, entry in await self._store.list(records.main_prefix(policy.name, name, instance)):
            main = MainVolume.unpack(entry.value)
            if main.incarnation == record.incarnation:
                found[key.rpartition("/")[2]] = main.record_id
        if not found:
            _refuse(statement.place, f"service {name} has never had an instance {instance}")
        service = policy.service(name)
        assert service is not None  # semantics.check
        if len(found) == 1 and service.fspf_volume is None:
            return next(iter(found.values()))
        if service.fspf_volume not in found:
            _refuse(
                statement.place,
                f"instance {instance} has had {len(found)} main volumes: name one by fspf_volume of {name}",
            )
        return found[service.fspf_volume]

    # -- who may use a volume

    async def volume_access(self, principal: Principal, volume_id: bytes) -> VolumeAccess:
        """Return what a service that was attested may do with the volume whose header says *volume_id*.

        Raises:
            AccessDeniedError: Nothing.
        """
        current, service = await self._attested(principal)
        for access in await self._accesses(current, service):
            if access.record_id == volume_id:
                return access
        if service.has_main_volume and service.fspf_volume in {None, volume_id.hex()}:
            entry = await self._store.get(records.belonging_key(volume_id))
            if entry is None:  # not one of any policy's other volumes
                return await self._main_volume(principal, current, service, volume_id)
        raise AccessDeniedError(
            f"service {service.name} of {current.policy.name} may not use volume {volume_id.hex()}, or there is none"
        )

    async def volumes_for(self, principal: Principal) -> list[VolumeAccess]:
        """Return all volumes that a service mounts beside its main volume.

        Raises:
            AccessDeniedError: One is not exported any more, or *principal* is no service.
        """
        return await self._accesses(*await self._attested(principal))

    async def _attested(self, principal: Principal) -> tuple[Current, Service]:
        current = await self._find(principal.policy) if principal.policy else None
        service = None if current is None else current.policy.service(principal.service)
        if current is None or service is None:
            raise AccessDeniedError(f"{principal} is not attested under a policy that is in force")
        return current, service

    async def _accesses(self, current: Current, service: Service) -> list[VolumeAccess]:
        image = current.policy.image(service.image_name)
        return [] if image is None else [await self._access(current, mount) for mount in image.volumes]

    async def _access(self, current: Current, mount: ImageVolume) -> VolumeAccess:
        policy, record = current.policy, current.record
        volume = policy.volume(mount.name)
        assert volume is not None  # semantics.check
        if volume.import_from is not None:
            try:
                exporter = await self._exporter({}, volume.import_from)
                export = self._exported_volume(policy, exporter, volume.import_from)
                _check_update_policy(export, volume.import_from, mount)
            except PolicyError as exc:
                raise AccessDeniedError(f"volume {volume.name} of {policy.name}: {exc}") from None
            policy, record, volume = exporter.policy, exporter.record, exporter.policy.volume(volume.import_from.name)
            assert volume is not None  # as it was exported
        volume_id = record.volumes[volume.name]
        return VolumeAccess(
            record_id=volume_id,
            volume_id=volume_id,
            policy=policy.name,
            incarnation=record.incarnation,
            name=volume.name,
            local_name=mount.name,
            path=mount.path,
            update_policy=mount.update_policy,
            initial_tag=None if volume.tag is None else bytes.fromhex(volume.tag),
            key=volume.key,
            freshness=volume.freshness,
            max_age_s=volume.max_age_s,
        )

    async def _main_volume(
        self, principal: Principal, current: Current, service: Service, volume_id: bytes
    ) -> VolumeAccess:
        """Return the record of this instance's main volume; one is made for a new instance."""
        policy, record = current.policy, current.record
        shared = service.fspf_update_policy is not UpdatePolicy.REINITIALIZABLE
        instance = SHARED_INSTANCE if shared else principal.instance
        if not 0 < len(instance) <= MAX_INSTANCE:
            raise AccessDeniedError(
                f"an instance of {service.name} says which one it is, in at most {MAX_INSTANCE} characters"
            )
        key = records.main_prefix(policy.name, service.name, instance) + volume_id.hex()
        for _ in range(_TRIES):
            entry = await self._store.get(key)
            main: MainVolume | None = None if entry is None else MainVolume.unpack(entry.value)
            if main is None or main.incarnation != record.incarnation:
                main = await self._new_main(key, entry.revision if entry else ABSENT, record, service, instance)
            if main is not None:
                break
        else:
            raise ConflictError(f"the main volume of {service.name} was changed by others all the time")
        assert service.fspf_tag is not None
        return VolumeAccess(
            record_id=main.record_id,
            volume_id=volume_id,
            policy=policy.name,
            incarnation=record.incarnation,
            name=service.name,
            local_name=service.name,
            path="/",
            update_policy=service.fspf_update_policy,
            initial_tag=bytes.fromhex(service.fspf_tag),
            key=service.fspf_key,
            main=True,
        )

    async def _new_main(
        self, key: str, revision: int, record: Record, service: Service, instance: str
    ) -> MainVolume | None:
        main = MainVolume(record.incarnation, self._random(ID_LEN))
        belonging = Belonging(record.name, record.incarnation, "", service.name, instance)
        back = records.belonging_key(main.record_id)
        put = [Put(key, main.pack()), Put(back, belonging.pack())]
        return main if await self._store.transact([Compare(key, revision), Compare(back, ABSENT)], put) else None


def _mounts(policy: Policy, name: str) -> Iterator[ImageVolume]:
    for image in policy.images:
        yield from (mount for mount in image.volumes if mount.name == name)


def _export_to(importer: Policy, exports: Sequence[Export]) -> Export | None:
    for export in exports:
        if export.session == importer.name and export.session_hash in {None, importer.hash}:
            return export
    return None


def _taken(volume: Volume) -> ConflictError:
    return ConflictError(f"volume {volume.volume_id} ({volume.name}) belongs to another policy, or to a key")


def _check_version(exporter: Current, source: Import) -> None:
    """Refuse another version than the importer wants; only who is exported to learns that there is one."""
    if source.session_hash not in {None, exporter.policy.hash}:
        _refuse(
            source.place,
            f"version {str(source.session_hash)[:12]} of {source.session} is expected, another is in force",
        )


def _check_update_policy(export: Export, source: Import, mount: ImageVolume) -> None:
    allowed = ALLOWED_BY_EXPORT[export.update_policy]
    if mount.update_policy not in allowed:
        _refuse(
            mount.place,
            f"{source.session} exports {source.name} as {export.update_policy}: update_policy may be "
            f"{' or '.join(sorted(allowed))}, not {mount.update_policy}",
        )


def _not_exported(source: Import) -> NoReturn:
    """Say the same whether there is no such policy, no such thing in it, or no export to this one."""
    _refuse(source.place, f"{source.session} does not export {source.name} to this policy, or there is none")


def _refuse(place: Place, message: str) -> NoReturn:
    raise PolicyError(message, line=place.line, column=place.column)
