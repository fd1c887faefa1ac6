"""What an attested service gets: arguments, environment, files and volumes, with its secrets filled in.

Who may have it is decided before; volume keys go another way, wrapped for the holder (`fspf.cas.exchange`).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fspf.core.errors import CasError, PolicyError
from fspf.core.keys import SecretKey
from fspf.policy.placeholders import expand, expand_text, find

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fspf.core.freshness import Freshness
    from fspf.policy.model import Image, Policy, Service, UpdatePolicy
    from fspf.policy.values import SecretValues

MAX_CONFIGURATION_LEN: Final = 8 << 20  # bytes of all that is filled in
_HEX_KEY: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_HEX_TAG: Final = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class InjectedFile:
    """A file to be written before the service starts; kept in memory only, by whoever injects it."""

    path: str
    permission: int
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class UsedVolume:
    """A volume that the service mounts. Its key is asked for with its id."""

    name: str
    volume_id: str  # 32 hex digits
    path: str
    update_policy: UpdatePolicy
    freshness: Freshness | None


@dataclass(frozen=True, slots=True)
class MainVolume:
    """The volume that the service's root file system is on.

    Attributes:
        key: As the policy gives it; leaves the CAS wrapped, as every volume key.
        tag: The initial state; b"" if the policy names none.
        volume_id: "" if the policy names none: then the instance tells.
    """

    key: SecretKey
    tag: bytes
    volume_id: str
    update_policy: UpdatePolicy


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that a service gets. `repr` shows no argument, no value of the environment and no content."""

    policy: str
    policy_hash: str
    service: str
    command: tuple[str, ...] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    pwd: str | None
    files: tuple[InjectedFile, ...]
    volumes: tuple[UsedVolume, ...]
    main_volume: MainVolume | None


def secrets_needed(policy: Policy, service_name: str) -> set[str]:
    """Name the secrets that the configuration of a service has placeholders for: only these are fetched.

    Raises:
        CasError: The policy has no such service.
    """
    service, image = _service(policy, service_name)
    return {placeholder.name for _, text in _texts(service, image) for placeholder in find(text)}


def configuration_of(
    policy: Policy, service_name: str, values: SecretValues, volume_ids: Mapping[str, str]
) -> Configuration:
    """Fill in the secrets of one service's configuration: all, or an error.

    Args:
        policy: The version in force.
        service_name: One of its services, which was attested.
        values: At least those of `secrets_needed`, imported ones and those of a Vault included.
        volume_ids: Ids of the policy's volumes, imported ones included, by their names.

    Raises:
        CasError: There is no such service, or a secret or volume has no value; the message names all that are missing.
        PolicyError: A value has no form that its place needs. No message shows a value.
    """
    service, image = _service(policy, service_name)
    used = image.volumes if image is not None else ()
    missing = sorted(secrets_needed(policy, service_name) - values.keys())
    absent = sorted({volume.name for volume in used} - volume_ids.keys())
    if missing or absent:
        what = [f"secret {name}" for name in missing] + [f"volume {name}" for name in absent]
        raise CasError(
            f"service {service_name} of policy {policy.name} cannot be configured: there is no {', no '.join(what)}"
        )
    configuration = Configuration(
        policy=policy.name,
        policy_hash=policy.hash,
        service=service_name,
        command=tuple(
            _filled(service_name, f"command[{index}]", text, values) for index, text in enumerate(service.command)
        ),
        environment={
            name: _filled(service_name, f"environment.{name}", text, values)
            for name, text in service.environment.items()
        },
        pwd=None if service.pwd is None else _filled(service_name, "pwd", service.pwd, values),
        files=() if image is None else tuple(_files(service_name, image, values)),
        volumes=tuple(_used(policy, volume.name, volume_ids, volume.path, volume.update_policy) for volume in used),
        main_volume=_main_volume(service, values) if service.has_main_volume else None,
    )
    size = sum(map(len, configuration.command)) + sum(map(len, configuration.environment.values()))
    size += sum(len(file.content) for file in configuration.files)
    if size > MAX_CONFIGURATION_LEN:
        raise PolicyError(
            f"the configuration of service {service_name} has {size} bytes, at most {MAX_CONFIGURATION_LEN} go over the wire"
        )
    return configuration


def _service(policy: Policy, name: str) -> tuple[Service, Image | None]:
    service = policy.service(name)
    if service is None:
        raise CasError(f"policy {policy.name} has no service {name}")
    image = policy.image(service.image_name)
    if image is None and service.image_name is not None:
        raise CasError(f"policy {policy.name} has no image {service.image_name}")
    return service, image


def _texts(service: Service, image: Image | None) -> Iterator[tuple[str, str]]:
    """Yield every text that may hold placeholders, with where it is."""
    for index, text in enumerate(service.command):
        yield f"command[{index}]", text
    for name, text in service.environment.items():
        yield f"environment.{name}", text
    for name, one in (("pwd", service.pwd), ("fspf_key", service.fspf_key), ("fspf_tag", service.fspf_tag)):
        if one is not None:
            yield name, one
    for file in image.injection_files if image is not None else ():
        yield file.path, file.content


def _filled(service: str, where: str, text: str, values: SecretValues) -> str:
    try:
        return expand_text(text, values)
    except PolicyError as exc:
        raise PolicyError(f"service {service}, {where}: {exc}") from None


def _files(service: str, image: Image, values: SecretValues) -> Iterator[InjectedFile]:
    for file in image.injection_files:
        try:
            content = expand(file.content, values)
        except PolicyError as exc:
            raise PolicyError(f"service {service}, {file.path}: {exc}") from None
        yield InjectedFile(file.path, file.permission, content)


def _used(
    policy: Policy, name: str, volume_ids: Mapping[str, str], path: str, update_policy: UpdatePolicy
) -> UsedVolume:
    volume = policy.volume(name)
    return UsedVolume(name, volume_ids[name], path, update_policy, None if volume is None else volume.freshness)


def _main_volume(service: Service, values: SecretValues) -> MainVolume:
    assert service.fspf_key is not None
    key = expand(service.fspf_key, values)
    # A secret of 32 bytes is a key as it is; otherwise it is written in hexadecimal.
    if len(key) != 32:
        if not _HEX_KEY.fullmatch(key.decode("ascii", "replace")):
            raise PolicyError(
                f"service {service.name}, fspf_key: 64 hexadecimal digits or 32 bytes are a key, this is something else"
            )
        key = bytes.fromhex(key.decode("ascii"))
    tag = b""
    if service.fspf_tag is not None:
        text = _filled(service.name, "fspf_tag", service.fspf_tag, values)
        if not _HEX_TAG.fullmatch(text):
            raise PolicyError(
                f"service {service.name}, fspf_tag: 32 hexadecimal digits are a tag, this is something else"
            )
        tag = bytes.fromhex(text)
    return MainVolume(SecretKey.from_bytes(key), tag, service.fspf_volume or "", service.fspf_update_policy)


def document(configuration: Configuration) -> dict[str, Any]:
    """Return what goes over the wire as JSON members, without any volume key; for the attested service's eyes only."""
    main = configuration.main_volume
    return {
        "policy": configuration.policy,
        "policy_hash": configuration.policy_hash,
        "service": configuration.service,
        "command": list(configuration.command),
        "environment": dict(configuration.environment),
        "pwd": configuration.pwd,
        "files": [
            {
                "path": file.path,
                "permission": file.permission,
                "content": base64.b64encode(file.content).decode("ascii"),
            }
            for file in configuration.files
        ],
        "volumes": [
            {
                "name": volume.name,
                "volume_id": volume.volume_id,
                "path": volume.path,
                "update_policy": volume.update_policy.value,
                "freshness": None if volume.freshness is None else str(volume.freshness),
            }
            for volume in configuration.volumes
        ],
        "main_volume": None
        if main is None
        else {
            "tag": main.tag.hex() or None,
            "volume_id": main.volume_id or None,
            "update_policy": main.update_policy.value,
        },
    }
