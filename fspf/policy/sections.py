"""Reads services, images, volumes, secrets, security and restore statements from the tree of a document.

Each value is checked by itself here; whether they fit each other is `semantics`' business.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fspf.core import factors
from fspf.core.errors import UsageError
from fspf.core.freshness import Freshness
from fspf.policy import fields
from fspf.policy.model import (
    NOWHERE,
    Endpoint,
    Export,
    Image,
    ImageVolume,
    Import,
    InjectionFile,
    KeyType,
    Place,
    Restore,
    Secret,
    Security,
    Service,
    UpdatePolicy,
    VaultSource,
    Volume,
)
from fspf.policy.tree import Items, Node, Pairs, Text, refuse, shown
from fspf.policy.values import SecretKind

MAX_SIZE: Final = 64 << 10  # of one ascii or binary secret
MAX_VALUE: Final = 64 << 10  # characters of a given value
MAX_SANS: Final = 100
_ENVIRONMENT: Final = re.compile(r"[^=\0]{1,256}")
_PLACEHOLDER: Final = re.compile(r"\$\$SCONE.*\$\$", re.DOTALL)
_HOST: Final = re.compile(
    r"(?:\*\.)?(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?",
    re.ASCII,
)
_CHARSET: Final = re.compile(r"[\x21-\x7e]{2,94}")
_MAIN_ONLY: Final = {UpdatePolicy.REINITIALIZABLE: "it is for the main volume of a service, whose instances differ"}


# -- services


def service(node: Node) -> Service:
    """Read one service."""
    known = {
        "name", "image_name", "command", "environment", "pwd", "attestation", "mrenclaves",
        "fspf_key", "fspf_tag", "fspf_volume", "fspf_update_policy",
    }  # fmt: skip
    found = fields.pairs(node, "a service", known, {"name"})
    get = found.get
    policy = fields.optional(get("fspf_update_policy"), _main_update_policy)
    for key in ("fspf_tag", "fspf_volume", "fspf_update_policy"):
        if key in found and "fspf_key" not in found:
            refuse(found.place_of(key), f"{key} without fspf_key means nothing")
    if "fspf_key" in found and "fspf_tag" not in found:
        refuse(found.place_of("fspf_key"), "fspf_key needs fspf_tag: the state that the main volume begins with")
    return Service(
        name=fields.name(found.pairs["name"][1], "name"),
        image_name=fields.optional(get("image_name"), lambda one: fields.name(one, "image_name")),
        command=_command(get("command")),
        environment=_environment(get("environment")),
        pwd=fields.optional(get("pwd"), lambda one: fields.absolute_path(one, "pwd")),
        attestation=_attestation(found),
        fspf_key=fields.optional(get("fspf_key"), lambda one: _digits_or_placeholder(one, "fspf_key", 32)),
        fspf_tag=fields.optional(get("fspf_tag"), lambda one: fields.hex_digits(one, "fspf_tag", 16)),
        fspf_volume=fields.optional(get("fspf_volume"), lambda one: fields.hex_digits(one, "fspf_volume", 16)),
        fspf_update_policy=policy or UpdatePolicy.REINITIALIZABLE,
        place=found.place,
        places=dict(_places(found)),
    )


def _places(found: Pairs) -> Iterator[tuple[str, Place]]:
    """Yield where each value stands: `command.0`, `environment.MODE`, `attestation.0`, `fspf_key` …."""
    for key, (_, value) in found.pairs.items():
        yield key, value.place
        if isinstance(value, Items):
            yield from ((f"{key}.{index}", item.place) for index, item in enumerate(value.items))
        elif isinstance(value, Pairs):
            yield from ((f"{key}.{name}", item.place) for name, (_, item) in value.pairs.items())


def _main_update_policy(node: Node) -> UpdatePolicy:
    return fields.choice(node, "fspf_update_policy", UpdatePolicy)


def _command(node: Node | None) -> tuple[str, ...]:
    if isinstance(node, Text):
        refuse(node.place, 'command is a list of arguments, as ["mysqld", "--verbose"]: no shell splits a text')
    return fields.each(node, "command", lambda one: fields.text(one, "an argument"), 1)


def _environment(node: Node | None) -> Mapping[str, str]:
    if node is None:
        return {}
    if isinstance(node, Items):
        refuse(node.place, "environment is a mapping, as {MODE: prod}")
    found = fields.mapping(node, "environment")
    values = {}
    for key, (where, value) in found.pairs.items():
        if not _ENVIRONMENT.fullmatch(key):
            refuse(where.place, f"{shown(key)} is no name of a variable: it is empty, too long, or has = in it")
        values[key] = fields.text(value, f"{key[:100]}")
    return values


def _attestation(found: Pairs) -> tuple[Mapping[str, Any], ...]:
    alias, node = found.get("mrenclaves"), found.get("attestation")
    if alias is not None:
        if node is not None:
            refuse(alias.place, "mrenclaves is an alias of attestation: give one of them")
        return fields.each(alias, "mrenclaves", lambda one: {"mrenclave": fields.hex_digits(one, "mrenclave", 32)}, 1)
    return fields.each(node, "attestation", _item, 1)


def _item(node: Node) -> Mapping[str, Any]:
    fields.pairs(node, "an item of attestation", factors.FACTORS)
    item = _shaped(node, factors.Group(factors.FACTORS))
    for path, message in factors.problems(item):
        refuse(_place_at(node, path), message)
    return dict(item)


def _shaped(node: Node, shape: Any) -> Any:
    """Return *node* as the values that a shape of `fspf.core.factors` wants; what does not fit stays text."""
    if isinstance(node, Text):
        if isinstance(shape, factors.Number) and node.text.isascii() and node.text.isdecimal() and len(node.text) < 20:
            return int(node.text)
        return node.text.lower() if isinstance(shape, factors.Hex) else node.text
    if isinstance(node, Items):
        return [_shaped(item, shape) for item in node.items]
    if isinstance(shape, factors.Group):
        fields.pairs(node, "a factor", shape.members)
        return {key: _shaped(value, shape.members[key]) for key, (_, value) in node.pairs.items()}
    if isinstance(shape, factors.Registers):
        inner = factors.Hex(32)
        return {key: _shaped(value, inner) for key, (_, value) in node.pairs.items()}
    return {key: _shaped(value, None) for key, (_, value) in node.pairs.items()}


def _place_at(node: Node, path: factors.Path) -> Any:
    """Return where the value that *path* leads to stands, or the last thing on the way."""
    place = node.place
    for step in path:
        if isinstance(node, Pairs) and str(step) in node:
            node = node.pairs[str(step)][1]
        elif isinstance(node, Items) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        else:
            break
        place = node.place
    return place


def security(node: Node) -> Security:
    """Read the section."""
    found = fields.pairs(node, "security", {"attestation"})
    inner = found.get("attestation")
    if inner is None:
        return Security()
    known = {"mode", "tolerate", "ignore_advisories"}
    fields.pairs(inner, "attestation", known)
    values = {key: _shaped(value, None) for key, (_, value) in fields.mapping(inner, "attestation").pairs.items()}
    for path, message in factors.security_problems(values):
        refuse(_place_at(inner, path), message)
    return Security(values)


def _digits_or_placeholder(node: Node, what: str, length: int) -> str:
    value = fields.text(node, what)
    return value if _PLACEHOLDER.fullmatch(value) else fields.hex_digits(node, what, length)


# -- images


def image(node: Node) -> Image:
    """Read one image."""
    found = fields.pairs(node, "an image", {"name", "volumes", "injection_files"}, {"name"})
    return Image(
        name=fields.name(found.pairs["name"][1], "name"),
        volumes=fields.each(found.get("volumes"), "volumes", _image_volume),
        injection_files=fields.each(found.get("injection_files"), "injection_files", _injection_file),
        place=found.place,
    )


def _image_volume(node: Node) -> ImageVolume:
    found = fields.pairs(node, "a volume of an image", {"name", "path", "update_policy"}, {"name", "path"})
    path_node = found.pairs["path"][1]
    path = fields.absolute_path(path_node, "path")
    if path == "/":
        refuse(path_node.place, "/ is the main volume: fspf_key of the service")
    policy = fields.optional(found.get("update_policy"), _update_policy)
    name = fields.name(found.pairs["name"][1], "name")
    return ImageVolume(name, path, policy or UpdatePolicy.ROLLBACK_PROTECTED, found.place)


def _update_policy(node: Node) -> UpdatePolicy:
    return fields.choice(node, "update_policy", UpdatePolicy, but=_MAIN_ONLY)


def _injection_file(node: Node) -> InjectionFile:
    found = fields.pairs(node, "an injection file", {"path", "content", "permission"}, {"path", "content"})
    path_node = found.pairs["path"][1]
    path = fields.absolute_path(path_node, "path")
    if path == "/" or fields.text(path_node, "path").endswith("/"):
        refuse(path_node.place, "path is that of a file, it does not end with /")
    permission = fields.optional(found.get("permission"), lambda one: fields.permission(one, "permission"))
    content = fields.text(found.pairs["content"][1], "content")
    return InjectionFile(path, content, 0o400 if permission is None else permission, found.pairs["content"][1].place)


# -- volumes


def volume(node: Node) -> Volume:
    """Read one volume."""
    known = {"name", "key", "tag", "id", "freshness", "max_age", "export", "import"}
    found = fields.pairs(node, "a volume", known, {"name"})
    get = found.get
    key = fields.optional(get("key"), lambda one: _digits_or_placeholder(one, "key", 32))
    tag = fields.optional(get("tag"), lambda one: fields.hex_digits(one, "tag", 16))
    volume_id = fields.optional(get("id"), lambda one: fields.hex_digits(one, "id", 16))
    if "import" in found:
        _alone(found, "import", {"name"}, "an imported volume")
    elif (key, tag, volume_id).count(None) not in {0, 3}:
        refuse(found.place, "key, tag and id belong together: all of them for a volume that exists, none for a new one")
    return Volume(
        name=fields.name(found.pairs["name"][1], "name"),
        key=key,
        tag=tag,
        volume_id=volume_id,
        freshness=fields.optional(get("freshness"), _freshness),
        max_age_s=fields.optional(get("max_age"), lambda one: fields.duration(one, "max_age")),
        exports=fields.each(get("export"), "export", _volume_export),
        import_from=fields.optional(get("import"), lambda one: _import(one, "volume", found)),
        place=found.place,
    )


def _freshness(node: Node) -> Freshness:
    found = fields.text(node, "freshness")
    try:
        return Freshness.parse(found[:40])
    except UsageError as exc:
        refuse(node.place, str(exc))


def _volume_export(node: Node) -> Export:
    if isinstance(node, Text):
        return Export(fields.policy_name(node, "session"), place=node.place)
    found = fields.pairs(node, "an export", {"to", "session", "session_hash", "update_policy"})
    policy = fields.optional(found.get("update_policy"), _update_policy) or UpdatePolicy.ROLLBACK_PROTECTED
    if "to" not in found:
        return _export(Pairs({k: v for k, v in found.pairs.items() if k != "update_policy"}, found.place), policy)
    for key in ("session", "session_hash"):
        if key in found:
            refuse(found.place_of(key), f"{key} belongs below to:")
    return _export(found.pairs["to"][1], policy)


def _export(node: Node, policy: UpdatePolicy = UpdatePolicy.ROLLBACK_PROTECTED) -> Export:
    if isinstance(node, Text):
        return Export(fields.policy_name(node, "session"), None, policy, node.place)
    found = fields.pairs(node, "an export", {"session", "session_hash"}, {"session"})
    session = fields.policy_name(found.pairs["session"][1], "session")
    return Export(session, _session_hash(found), policy, found.place)


def _session_hash(found: Pairs) -> str | None:
    return fields.optional(found.get("session_hash"), lambda one: fields.hex_digits(one, "session_hash", 32))


def _import(node: Node, what: str, owner: Pairs) -> Import:
    """Read an import of a volume or secret; without a name of its own there it is called as here."""
    if isinstance(node, Text):
        session, session_hash, name = fields.policy_name(node, "session"), None, None
    else:
        found = fields.pairs(node, "an import", {"session", "session_hash", what}, {"session"})
        session = fields.policy_name(found.pairs["session"][1], "session")
        session_hash = _session_hash(found)
        name = fields.optional(found.get(what), lambda one: fields.name(one, what))
    return Import(session, name or fields.name(owner.pairs["name"][1], "name"), session_hash, node.place)


def _alone(found: Pairs, key: str, others: set[str], what: str) -> None:
    for other in found.pairs:
        if other != key and other not in others:
            refuse(found.place_of(other), f"{what} has no key {other}: that is the exporter's business")


# -- secrets

_KEYS_OF: Final[Mapping[SecretKind, frozenset[str]]] = {  # beside name, kind and export
    SecretKind.ASCII: frozenset({"size", "value", "charset", "vault"}),
    SecretKind.BINARY: frozenset({"size", "value", "vault"}),
    SecretKind.PRIVATE_KEY: frozenset({"value", "key_type", "migrate", "vault"}),
    SecretKind.PUBLIC_KEY: frozenset({"value", "private_key", "vault"}),
    SecretKind.X509: frozenset({
        "value", "private_key", "key_type", "migrate", "issuer", "common_name", "endpoint", "san", "dns", "valid_for",
        "renew_before", "vault",
    }),
    SecretKind.X509_CA: frozenset({
        "value", "private_key", "key_type", "migrate", "issuer", "common_name", "valid_for", "renew_before", "vault",
    }),
}  # fmt: skip
_ALL_KEYS: Final = frozenset({"name", "kind", "export", "import"}).union(*_KEYS_OF.values())


def secret(node: Node) -> Secret:
    """Read one secret."""
    found = fields.pairs(node, "a secret", _ALL_KEYS, {"name"})
    get = found.get
    name = fields.name(found.pairs["name"][1], "name")
    kind = fields.optional(get("kind"), lambda one: fields.choice(one, "kind", SecretKind))
    if "import" in found:
        _alone(found, "import", {"name", "kind"}, "an imported secret")
        source = _import(found.pairs["import"][1], "secret", found)
        return Secret(name, kind, import_from=source, place=found.place)
    if kind is None and "vault" in found:
        kind = SecretKind.ASCII
    if kind is None:
        refuse(found.place, f"a secret needs the key kind ({', '.join(SecretKind)}), import or vault")
    for key in found.pairs:
        if key not in {"name", "kind", "export"} | _KEYS_OF[kind]:
            refuse(found.place_of(key), f"a secret of kind {kind} has no key {key}")
    if "vault" in found and "value" in found:
        refuse(found.place_of("vault"), "value and vault exclude each other")
    read = Secret(
        name=name,
        kind=kind,
        size=fields.optional(get("size"), lambda one: fields.integer(one, "size", 1, MAX_SIZE)),
        value=fields.optional(get("value"), lambda one: _value(one, kind)),
        charset=fields.optional(get("charset"), _charset),
        key_type=fields.optional(get("key_type"), lambda one: fields.choice(one, "key_type", KeyType)),
        private_key=fields.optional(get("private_key"), lambda one: fields.name(one, "private_key")),
        common_name=fields.optional(get("common_name"), lambda one: fields.line_of_text(one, "common_name", 64)),
        issuer=fields.optional(get("issuer"), lambda one: fields.name(one, "issuer")),
        endpoint=fields.optional(get("endpoint"), lambda one: fields.choice(one, "endpoint", Endpoint)),
        san=_sans(found),
        valid_for_s=fields.optional(get("valid_for"), lambda one: fields.duration(one, "valid_for")),
        renew_before_s=fields.optional(get("renew_before"), lambda one: fields.duration(one, "renew_before")),
        migrate=fields.optional(get("migrate"), lambda one: fields.boolean(one, "migrate")) or False,
        vault=fields.optional(get("vault"), _vault),
        exports=fields.each(get("export"), "export", _export),
        place=found.place,
    )
    _check_secret(read, found)
    return read


def _check_secret(read: Secret, found: Pairs) -> None:
    """Refuse what one secret cannot be, whatever the others are."""
    given = "value" in found or "vault" in found
    raw = read.kind in {SecretKind.ASCII, SecretKind.BINARY}
    if raw and given and read.size is not None:
        refuse(found.place_of("size"), "the size of a given value is its own")
    if raw and not given and read.size is None:
        refuse(found.place, "a secret that the CAS generates needs the key size")
    if read.kind is SecretKind.PUBLIC_KEY and given == (read.private_key is not None):
        refuse(found.place, "a public-key has either private_key (of which it is the public half) or value")
    if read.kind in {SecretKind.X509, SecretKind.X509_CA} and not given:
        for key in ("key_type", "migrate"):
            if read.private_key is not None and key in found:
                refuse(found.place_of(key), f"{key} is said where the key is: {read.private_key}")
        if read.common_name is None and not read.san:
            refuse(
                found.place, "a certificate needs a common_name" + (" or san" if read.kind is SecretKind.X509 else "")
            )
    if given:
        for key in (
            "issuer",
            "common_name",
            "endpoint",
            "san",
            "dns",
            "valid_for",
            "renew_before",
            "key_type",
            "charset",
        ):
            if key in found:
                refuse(found.place_of(key), f"{key} is for values that the CAS makes, and this one is given")
    if read.renew_before_s and read.valid_for_s and read.renew_before_s >= read.valid_for_s:
        refuse(found.place_of("renew_before"), "renew_before is shorter than valid_for")


def _value(node: Node, kind: SecretKind) -> str:
    value = fields.text(node, "value", empty=False)
    if len(value) > MAX_VALUE:
        refuse(node.place, f"value has at most {MAX_VALUE} characters")
    if kind is SecretKind.BINARY and not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", value, re.ASCII):
        refuse(node.place, "value of a binary secret is made of pairs of hex digits")
    if kind is SecretKind.ASCII and not value.isascii():
        refuse(node.place, "value of an ascii secret has only ASCII characters")
    if kind not in {SecretKind.ASCII, SecretKind.BINARY} and "-----BEGIN " not in value:
        refuse(node.place, f"value of a secret of kind {kind} is PEM")
    return value


def _charset(node: Node) -> str:
    found = fields.text(node, "charset")
    if not _CHARSET.fullmatch(found) or len(set(found)) != len(found):
        refuse(node.place, "charset lists at least 2 printable ASCII characters, each once and no space")
    return found


def _sans(found: Pairs) -> tuple[tuple[str, str], ...]:
    sans = fields.each(found.get("san"), "san", _san)
    names = fields.each(found.get("dns"), "dns", lambda one: ("dns", _host(one, fields.text(one, "dns"))))
    if len(sans) + len(names) > MAX_SANS:
        refuse(found.place, f"a certificate has at most {MAX_SANS} alternative names")
    return sans + names


def _san(node: Node) -> tuple[str, str]:
    found = fields.line_of_text(node, "san")
    kind, colon, value = found.partition(":")
    if not colon or kind not in {"dns", "ip", "uri", "email"}:
        refuse(node.place, f"san is dns:…, ip:…, uri:… or email:…, {shown(found)} is none")
    if kind == "dns":
        return kind, _host(node, value)
    if kind == "ip":
        try:
            return kind, str(ipaddress.ip_address(value))
        except ValueError:
            refuse(node.place, f"{shown(value)} is no IP address")
    if not value.isascii() or (kind == "uri" and ":" not in value) or (kind == "email" and not _is_mail(value)):
        refuse(node.place, f"{shown(value)} is no {kind}")
    return kind, value


def _host(node: Node, value: str) -> str:
    if len(value) > 253 or not _HOST.fullmatch(value):
        refuse(node.place, f"{shown(value)} is no name of a host")
    return value


def _is_mail(value: str) -> bool:
    local, at, host = value.rpartition("@")
    return bool(at) and bool(local) and " " not in local and bool(_HOST.fullmatch(host))


def _vault(node: Node) -> VaultSource:
    found = fields.pairs(node, "vault", {"mount", "path", "field", "version"}, {"mount", "path", "field"})
    version = fields.optional(found.get("version"), lambda one: fields.integer(one, "version", 1, 1 << 31))
    parts = {}
    for key in ("mount", "path"):
        value_node = found.pairs[key][1]
        value = fields.line_of_text(value_node, key)
        if any(part in {"", ".", ".."} for part in value.split("/")) or "?" in value or "#" in value or "%" in value:
            refuse(value_node.place, f"{key} is made of parts between /, without ? # %, {shown(value)} is not")
        parts[key] = value
    return VaultSource(parts["mount"], parts["path"], fields.line_of_text(found.pairs["field"][1], "field"), version)


# -- restore


def restore(node: Node) -> Restore:
    """Read one statement."""
    keys = {"volume", "tag", "generation", "epoch", "reason"}
    found = fields.pairs(node, "a restore statement", keys, keys)

    def value(key: str) -> Node:
        return found.pairs[key][1]

    target = fields.text(value("volume"), "volume")
    if not re.fullmatch(r"[A-Za-z0-9_\-.~]{1,100}(?:/[A-Za-z0-9_\-.~]{1,100})?", target, re.ASCII):
        refuse(
            value("volume").place, "volume is the name of a volume, or service/instance for an instance's main volume"
        )
    return Restore(
        volume=target,
        tag=bytes.fromhex(fields.hex_digits(value("tag"), "tag", 16)),
        generation=fields.integer(value("generation"), "generation", 1, (1 << 63) - 1),
        epoch=fields.integer(value("epoch"), "epoch", 1, (1 << 32) - 1),
        reason=fields.line_of_text(value("reason"), "reason"),
        place=found.place if found.place != NOWHERE else node.place,
    )
