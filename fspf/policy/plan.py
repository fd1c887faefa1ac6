"""What replacing one version of a policy by another changes: who gains or loses which secret, volume, freshness, right.

Showing it is the command line's business; asking for approval that of `fspf.cas.policies`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from fspf.policy import placeholders
from fspf.policy.model import (
    Anyone,
    AttestedService,
    Board,
    Creator,
    ImageVolume,
    Member,
    Nobody,
    Policy,
    Script,
    Secret,
    Service,
    Signer,
    UpdatePolicy,
    Volume,
)
from fspf.policy.values import SecretKind

_STRENGTH: Final[Mapping[UpdatePolicy, int]] = {  # how much an attacker with an old copy gains
    UpdatePolicy.NO_ROLLBACK_PROTECTION: 0,
    UpdatePolicy.REINITIALIZABLE: 1,
    UpdatePolicy.ROLLBACK_PROTECTED: 2,
    UpdatePolicy.EPHEMERAL: 2,
}


class Kind(StrEnum):
    """What becomes of something."""

    GAINS = "gains"
    LOSES = "loses"
    CHANGES = "changes"


@dataclass(frozen=True, slots=True)
class Step:
    """One difference.

    Attributes:
        kind: What becomes of it.
        area: "service", "secret", "volume", "freshness", "attestation", "access", "export", "file", "policy", "restore".
        who: A service, another policy, or those that an access policy names.
        what: For people; never a secret's value.
        weaker: Less is asked for, or kept out, than before: look twice.
    """

    kind: Kind
    area: str
    who: str
    what: str
    weaker: bool = False

    def __str__(self) -> str:
        """Write it as a line."""
        sign = {Kind.GAINS: "+", Kind.LOSES: "-", Kind.CHANGES: "~"}[self.kind]
        return f"{sign} {self.area}: {self.who} {self.kind} {self.what}" + (" (weaker)" if self.weaker else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """All differences between two versions."""

    name: str
    old: str | None  # hash
    new: str
    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        """Write it for people."""
        if not self.steps:
            return f"policy {self.name}: nothing changes\n"
        count = f"{len(self.steps)} {'change' if len(self.steps) == 1 else 'changes'}"
        head = f"policy {self.name}: {'is new' if self.old is None else count}\n"
        return head + "".join(f"  {step}\n" for step in self.steps)

    def members(self) -> dict[str, Any]:
        """Return it as members of a JSON object."""
        steps = [
            {"kind": str(one.kind), "area": one.area, "who": one.who, "what": one.what, "weaker": one.weaker}
            for one in self.steps
        ]
        return {"name": self.name, "old": self.old, "new": self.new, "steps": steps}


def plan(old: Policy | None, new: Policy) -> Plan:
    """Compare two versions; without an old one, everything is gained."""
    before = old if old is not None else Policy(new.name, "", access_policy=new.access_policy)
    steps = [
        *_names(before, new),
        *_services(before, new),
        *_secrets(before, new),
        *_volumes(before, new),
        *_exports(before, new),
        *_access(before, new),
        *_security(before, new),
        *_restores(before, new),
    ]
    return Plan(new.name, None if old is None else old.hash, new.hash, tuple(steps))


def _names(old: Policy, new: Policy) -> Iterator[Step]:
    if old.name != new.name:
        yield Step(Kind.CHANGES, "policy", new.name, f"its name, from {old.name}: these are two policies")


# -- services: what each is given and what it must show


def _services(old: Policy, new: Policy) -> Iterator[Step]:
    for name in _all((one.name for one in old.services), (one.name for one in new.services)):
        before, after = old.service(name), new.service(name)
        who = f"service {name}"
        if before is None:
            yield Step(Kind.GAINS, "service", f"policy {new.name}", who)
        elif after is None:
            yield Step(Kind.LOSES, "service", f"policy {new.name}", who)
        yield from _given(who, "secret", _secrets_of(old, before), _secrets_of(new, after))
        yield from _mounted(who, _mounts_of(old, before), _mounts_of(new, after))
        yield from _files(who, _files_of(old, before), _files_of(new, after))
        if before is not None and after is not None:
            yield from _service(who, before, after)


def _service(who: str, before: Service, after: Service) -> Iterator[Step]:
    for word, one, other in (
        ("command", before.command, after.command), ("pwd", before.pwd, after.pwd), ("image", before.image_name, after.image_name),
    ):  # fmt: skip
        if one != other:
            yield Step(Kind.CHANGES, "service", who, f"its {word}")
    for name in _all(before.environment, after.environment):
        if before.environment.get(name) != after.environment.get(name):
            kind = Kind.GAINS if name not in before.environment else Kind.LOSES
            yield Step(
                Kind.CHANGES if name in before.environment and name in after.environment else kind,
                "service",
                who,
                f"variable {name}",
            )
    old_items, new_items = ([_compact(item) for item in one.attestation] for one in (before, after))
    for item in new_items:
        if item not in old_items:
            yield Step(Kind.GAINS, "attestation", who, f"a way in: {item}", weaker=True)
    for item in old_items:
        if item not in new_items:
            yield Step(Kind.LOSES, "attestation", who, f"a way in: {item}")
    if before.has_main_volume != after.has_main_volume:
        yield Step(Kind.GAINS if after.has_main_volume else Kind.LOSES, "volume", who, "its main volume")
    elif after.has_main_volume:
        if before.fspf_key != after.fspf_key:
            yield Step(Kind.CHANGES, "volume", who, "the key of its main volume")
        if before.fspf_tag != after.fspf_tag:
            yield Step(Kind.CHANGES, "volume", who, "the initial tag of its main volume; instances keep their anchors")
        if before.fspf_volume != after.fspf_volume:
            yield Step(Kind.CHANGES, "volume", who, "which main volume it has")
        yield from _update_policy(f"{who}'s main volume", before.fspf_update_policy, after.fspf_update_policy)


def _given(who: str, area: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Step]:
    for name in _all(before, after):
        if name not in before:
            yield Step(Kind.GAINS, area, who, after[name])
        elif name not in after:
            yield Step(Kind.LOSES, area, who, before[name])


def _mounted(who: str, before: Mapping[str, ImageVolume], after: Mapping[str, ImageVolume]) -> Iterator[Step]:
    for name in _all(before, after):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            mount = one or other
            assert mount is not None
            kind = Kind.GAINS if one is None else Kind.LOSES
            yield Step(kind, "volume", who, f"volume {name} at {mount.path} ({mount.update_policy})")
            continue
        if one.path != other.path:
            yield Step(Kind.CHANGES, "volume", who, f"where volume {name} is: {one.path} becomes {other.path}")
        yield from _update_policy(f"volume {name} of {who}", one.update_policy, other.update_policy)


def _update_policy(who: str, before: UpdatePolicy, after: UpdatePolicy) -> Iterator[Step]:
    if before is not after:
        weaker = _STRENGTH[after] < _STRENGTH[before]
        yield Step(Kind.CHANGES, "freshness", who, f"from {before} to {after}", weaker=weaker)


def _files(who: str, before: Mapping[str, tuple[str, int]], after: Mapping[str, tuple[str, int]]) -> Iterator[Step]:
    for path in _all(before, after):
        one, other = before.get(path), after.get(path)
        if one is None:
            yield Step(Kind.GAINS, "file", who, f"file {path}")
        elif other is None:
            yield Step(Kind.LOSES, "file", who, f"file {path}")
        else:
            if one[0] != other[0]:
                yield Step(Kind.CHANGES, "file", who, f"the content of {path}")
            if one[1] != other[1]:
                wider = bool(other[1] & ~one[1] & 0o077)
                yield Step(
                    Kind.CHANGES,
                    "file",
                    who,
                    f"permission of {path}: {one[1]:03o} becomes {other[1]:03o}",
                    weaker=wider,
                )


def _secrets_of(policy: Policy, service: Service | None) -> dict[str, str]:
    """Return what a service is given: each secret, with the parts of it that can be used in other ways."""
    if service is None:
        return {}
    texts = [*service.command, *service.environment.values()]
    image = policy.image(service.image_name)
    texts += [file.content for file in image.injection_files] if image is not None else []
    found: dict[str, str] = {}
    for text in texts:
        for one in placeholders.find(text):
            secret = policy.secret(one.name)
            private = one.part == "privatekey" or (
                secret is not None and secret.kind is SecretKind.PRIVATE_KEY and not one.part
            )
            what = f"the private key of {one.name}" if private else f"secret {one.name}"
            found[what] = what
    return found


def _mounts_of(policy: Policy, service: Service | None) -> dict[str, ImageVolume]:
    image = None if service is None else policy.image(service.image_name)
    return {} if image is None else {mount.name: mount for mount in image.volumes}


def _files_of(policy: Policy, service: Service | None) -> dict[str, tuple[str, int]]:
    image = None if service is None else policy.image(service.image_name)
    return {} if image is None else {file.path: (file.content, file.permission) for file in image.injection_files}


# -- secrets and volumes themselves


def _secrets(old: Policy, new: Policy) -> Iterator[Step]:
    who = f"policy {new.name}"
    for name in _all((one.name for one in old.secrets), (one.name for one in new.secrets)):
        before, after = old.secret(name), new.secret(name)
        if before is None:
            assert after is not None
            yield Step(Kind.GAINS, "secret", who, f"secret {name} ({_source(after)})")
        elif after is None:
            yield Step(Kind.LOSES, "secret", who, f"secret {name}: its value is destroyed")
        elif _plain(before) != _plain(after):
            yield Step(Kind.CHANGES, "secret", who, f"how secret {name} is made: it gets another value")
        elif old.hash != new.hash and _is_made_anew(after):
            yield Step(Kind.CHANGES, "secret", who, f"the key {name}: without migrate, every update makes another")


def _is_made_anew(secret: Secret) -> bool:
    given = secret.value is not None or secret.vault is not None or secret.import_from is not None
    return secret.kind is SecretKind.PRIVATE_KEY and not secret.migrate and not given


def _plain(secret: Secret) -> Secret:
    """Return what its value depends on."""
    return replace(secret, exports=(), migrate=False)


def _source(secret: Secret) -> str:
    if secret.import_from is not None:
        return f"imported from {secret.import_from.session}"
    if secret.vault is not None:
        return "from Vault"
    return f"{secret.kind}, {'given' if secret.value is not None else 'made by the CAS'}"


def _volumes(old: Policy, new: Policy) -> Iterator[Step]:
    who = f"policy {new.name}"
    for name in _all((one.name for one in old.volumes), (one.name for one in new.volumes)):
        before, after = old.volume(name), new.volume(name)
        if before is None:
            assert after is not None
            yield Step(Kind.GAINS, "volume", who, f"volume {name} ({_origin(after)})")
        elif after is None:
            yield Step(Kind.LOSES, "volume", who, f"volume {name}: nobody can use it, its anchor stays")
        else:
            one, other = _origin(before), _origin(after)
            if (one, before.volume_id) != (other, after.volume_id):
                yield Step(Kind.CHANGES, "volume", who, f"which volume {name} is: {one} becomes {other}")
            elif (before.key, before.tag) != (after.key, after.tag):
                yield Step(Kind.CHANGES, "volume", who, f"key or initial tag of volume {name}; its anchor stays")
            if before.freshness != after.freshness:
                weaker = after.freshness is not None and str(after.freshness) != "strict"
                yield Step(
                    Kind.CHANGES, "freshness", f"volume {name}", f"from {before.freshness or 'strict'} to {after.freshness or 'strict'}",
                    weaker=weaker,
                )  # fmt: skip
            if before.max_age_s != after.max_age_s:
                yield Step(Kind.CHANGES, "volume", who, f"how old the key of volume {name} may get")


def _origin(volume: Volume) -> str:
    if volume.import_from is not None:
        return f"imported from {volume.import_from.session}"
    return "new, key by the CAS" if volume.volume_id is None else f"existing {volume.volume_id}"


def _exports(old: Policy, new: Policy) -> Iterator[Step]:
    before, after = _exported(old), _exported(new)
    for key in _all(before, after):
        if before.get(key) == after.get(key):
            continue
        who, what = key.split("\0")
        kind = Kind.GAINS if key not in before else Kind.LOSES if key not in after else Kind.CHANGES
        detail = after.get(key, before.get(key, ""))
        yield Step(
            kind, "export", f"policy {who}", f"{what} ({detail})" if detail else what, weaker=kind is not Kind.LOSES
        )


def _exported(policy: Policy) -> dict[str, str]:
    found = {}
    for secret in policy.secrets:
        for one in secret.exports:
            found[f"{one.session}\0secret {secret.name}"] = one.session_hash or ""
    for volume in policy.volumes:
        for one in volume.exports:
            pinned = f", {one.session_hash}" if one.session_hash else ""
            found[f"{one.session}\0volume {volume.name}"] = f"{one.update_policy}{pinned}"
    return found


# -- rights


def _access(old: Policy, new: Policy) -> Iterator[Step]:
    for right in ("read", "update", "create_sessions"):
        before = [member_text(one) for one in getattr(old.access_policy, right)]
        after = [member_text(one) for one in getattr(new.access_policy, right)]
        for one in after:
            if one not in before:
                yield Step(Kind.GAINS, "access", one, right, weaker=True)
        for one in before:
            if one not in after:
                yield Step(Kind.LOSES, "access", one, right)


def member_text(member: Member) -> str:
    """Name a member of an access policy in full: two that differ have different texts."""
    match member:
        case Creator():
            return "CREATOR"
        case Anyone():
            return "ANY"
        case Nobody():
            return "NONE"
        case Signer():
            return f"key {member.key_id}"
        case AttestedService():
            return f"service {member.session}#{member.service}"
        case Script():
            by = "" if member.signer is None else f" signed by key {member.signer.key_id}"
            ca = "" if member.ca is None else f" with CA {_short_hash(member.ca)}"
            return f"script {member.url}{by}{ca}"
        case Board():
            members = ", ".join(member_text(one) for one in member.members)
            veto = ", ".join(member_text(one) for one in member.veto)
            within = "" if member.veto_within_s is None else f" within {member.veto_within_s} s"
            return f"{member.need} of ({members})" + (f", veto of ({veto}){within}" if veto else "")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _security(old: Policy, new: Policy) -> Iterator[Step]:
    before, after = old.security.attestation, new.security.attestation
    if before == after:
        return
    if old.security.mode is not new.security.mode:
        weaker = new.security.mode.value == "none"
        yield Step(
            Kind.CHANGES, "attestation", "mode", f"from {old.security.mode} to {new.security.mode}", weaker=weaker
        )
    for key in ("tolerate", "ignore_advisories"):
        one, other = _words(before.get(key)), _words(after.get(key))
        for word in sorted(other - one):
            yield Step(Kind.GAINS, "attestation", key, word, weaker=True)
        for word in sorted(one - other):
            yield Step(Kind.LOSES, "attestation", key, word)


def _words(value: Any) -> set[str]:
    return {value} if isinstance(value, str) else set(value or ())


def _restores(old: Policy, new: Policy) -> Iterator[Step]:
    for one in new.restore:
        if one not in old.restore:
            what = f"generation {one.generation} ({one.tag.hex()[:8]}) becomes the newest, in epoch {one.epoch}: {one.reason}"
            yield Step(Kind.CHANGES, "restore", f"volume {one.volume}", what, weaker=True)


def _all(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Return the names of both, each once, in order of appearance."""
    return list(dict.fromkeys([*before, *after]))


def _compact(item: Mapping[str, Any]) -> str:
    text = json.dumps(item, sort_keys=True, separators=(",", ":"))
    return text if len(text) <= 200 else f"{text[:160]}… ({_short_hash(text)})"
