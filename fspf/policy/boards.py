"""Reads `access_policy:`: who may do what, with boards, vetoes and scripts.

Whether a request satisfies it is decided in `access`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from fspf.policy import fields
from fspf.policy.keys import key_id_of, spki_of
from fspf.policy.model import AccessPolicy, Anyone, AttestedService, Board, Creator, Member, Nobody, Script, Signer
from fspf.policy.tree import Node, Pairs, Text, nearest, refuse, shown, trouble

MAX_MEMBERS: Final = 64
MAX_PEM: Final = 16 << 10
_WORDS: Final[Mapping[str, Member]] = {"CREATOR": Creator(), "ANY": Anyone(), "NONE": Nobody()}
_KEY_ID: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_AT_LEAST: Final = re.compile(r"require-at-least-([1-9][0-9]?)", re.ASCII)
_KEYS: Final = ("signer", "service", "script", "require-all", "require-at-least-N")
_BOARD_KEYS: Final = frozenset({"veto", "veto_within"})


def access_policy(node: Node) -> AccessPolicy:
    """Read the section."""
    found = fields.pairs(node, "access_policy", {"read", "update", "create_sessions"})
    default: tuple[Member, ...] = (Creator(),)
    read = _alternatives(found, "read") or default
    update = _alternatives(found, "update") or default
    return AccessPolicy(read, update, _alternatives(found, "create_sessions") or update)


def _alternatives(section: Pairs, key: str) -> tuple[Member, ...]:
    node = section.get(key)
    if node is None:
        return ()
    found = _members(node, key)
    if Nobody() in found and len(found) > 1:
        refuse(node.place, f"{key}: NONE stands alone")
    return found


def _members(node: Node, what: str) -> tuple[Member, ...]:
    nodes = fields.items(node, what, 1)
    if len(nodes) > MAX_MEMBERS:
        refuse(node.place, f"{what} has at most {MAX_MEMBERS} members")
    found: list[Member] = []
    for item in nodes:
        one = member(item)
        if one in found or (isinstance(one, Signer) and any(_same_key(one, other) for other in found)):
            refuse(item.place, f"{what} names this member twice")
        found.append(one)
    return tuple(found)


def _same_key(one: Signer, other: Member) -> bool:
    return isinstance(other, Signer) and one.key_id == other.key_id


def member(node: Node) -> Member:
    """Read one member: CREATOR, ANY, NONE, a key id, a signer, a service, a script, or a board."""
    if isinstance(node, Text):
        return _word(node)
    found = fields.mapping(node, "a member")
    for key in found.pairs:
        if key == "require-all" or key.startswith("require-at-least-"):
            return _board(found, key)
    if "script" in found:
        return _script(found)
    if "signer" in found:
        return signer(fields.pairs(node, "a signer", {"signer"}).pairs["signer"][1])
    if "service" in found:
        return _service(fields.pairs(node, "a member", {"service"}).pairs["service"][1])
    for key, (where, _) in found.pairs.items():
        refuse(where.place, f"a member has no key {shown(key)}{nearest(key, _KEYS)}")
    raise trouble(node.place, f"a member has one of the keys {', '.join(_KEYS)}")


def _word(node: Text) -> Member:
    word = _WORDS.get(node.text)
    if word is not None:
        return word
    if _KEY_ID.fullmatch(node.text):
        return Signer(node.text, place=node.place)
    raise trouble(
        node.place, f"CREATOR, ANY, NONE, a key id (64 hex digits) or a mapping is expected, not {shown(node.text)}"
    )


def _board(found: Pairs, key: str) -> Board:
    for other, (where, _) in found.pairs.items():
        if other != key and other not in _BOARD_KEYS:
            refuse(where.place, f"beside {key} stand only veto and veto_within, not {shown(other)}")
    members = _members(found.pairs[key][1], key)
    place = found.place_of(key)
    match = _AT_LEAST.fullmatch(key)
    if key == "require-all":
        need = len(members)
    elif match is not None:
        need = int(match[1])
    else:
        refuse(place, f"{shown(key)}: a number from 1 to 99 is expected at the end, as in require-at-least-2")
    if need > len(members):
        refuse(place, f"{key} can never be: there are only {len(members)} members")
    veto_node = found.get("veto")
    veto = () if veto_node is None else _members(veto_node, "veto")
    within = found.get("veto_within")
    if within is not None and not veto:
        refuse(within.place, "veto_within without veto means nothing")
    for one in (*members, *veto):
        if isinstance(one, Anyone | Nobody):
            refuse(place, "ANY and NONE are no members of a board")
    for one in veto:
        if isinstance(one, Board):
            refuse(place, "a veto belongs to persons, services or scripts, not to a board")
    return Board(need, members, veto, fields.optional(within, lambda one: fields.duration(one, "veto_within")), place)


def _service(node: Node) -> AttestedService:
    found = fields.pairs(node, "service", {"session", "service"}, {"service"})
    session = fields.optional(found.get("session"), lambda one: fields.policy_name(one, "session"))
    return AttestedService(session or "", fields.name(found.pairs["service"][1], "service"), node.place)


def _script(found: Pairs) -> Script:
    fields.pairs(found, "a script", {"script", "signer", "ca"})
    node = found.pairs["script"][1]
    url = fields.line_of_text(node, "script", 2000)
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        refuse(node.place, f"script is an https:// address, {shown(url)} is none")
    if parts.scheme != "https" or not usable:
        refuse(node.place, f"script is an https:// address, {shown(url)} is none")
    if parts.username is not None or parts.fragment:
        refuse(node.place, "script has no user and no fragment in its address")
    key = fields.optional(found.get("signer"), signer)
    ca_node = found.get("ca")
    ca = None if ca_node is None else _ca(ca_node)
    if key is None and ca is None:
        refuse(
            found.place, "a script needs signer (a key that signs its answers), ca (of its TLS certificate), or both"
        )
    return Script(url, key, ca, node.place)


def _ca(node: Node) -> str:
    text = fields.text(node, "ca")
    try:
        if len(text) > MAX_PEM:
            raise ValueError
        x509.load_pem_x509_certificates(text.encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm):
        refuse(node.place, "ca is a certificate in PEM")
    return text


def signer(node: Node) -> Signer:
    """Read a signer: a public key or a certificate in PEM, or a key id."""
    text = fields.text(node, "signer").strip()
    if _KEY_ID.fullmatch(text):
        return Signer(text, place=node.place)
    try:
        if len(text) > MAX_PEM:
            raise ValueError
        data = text.encode("utf-8")
        key: Any
        if "BEGIN CERTIFICATE" in text:
            key = x509.load_pem_x509_certificate(data).public_key()
        else:
            key = serialization.load_pem_public_key(data)
        spki = spki_of(key)
    except (ValueError, UnsupportedAlgorithm):
        refuse(
            node.place,
            "signer is a public key or certificate in PEM, of Ed25519, P-256 or P-384, or a key id (64 hex digits)",
        )
    return Signer(key_id_of(spki), spki, node.place)
