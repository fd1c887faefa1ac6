"""Policies, keys and principals for tests.

What a policy may say is described in docs/POLICY.md; the engine that they are given to is `fspf.cas.policies`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fspf.policy import keys
from fspf.policy.approval import Approval, Statement, Verdict, make_approval
from fspf.policy.principal import Principal

HEX32 = "00" * 31 + "01"
FULL = f"""\
version: "0.3"
name: messenger/db
services:
  - name: mysql
    image_name: mysql_image
    command: ["mysqld", "--defaults-file=/etc/my.cnf"]
    environment: {{ MYSQL_ROOT_PASSWORD: "$$SCONE::rootpass$$", MODE: prod }}
    pwd: /
    fspf_key: "$$SCONE::rootkey$$"
    fspf_tag: 00112233445566778899aabbccddeeff
    fspf_update_policy: rollback_protected_reinitializable
    attestation:
      - mrenclave: ["{HEX32}"]
      - tpm: {{ pcrs: {{ 11: {HEX32} }}, ak: {HEX32} }}
images:
  - name: mysql_image
    volumes: [ {{ name: data, path: /var/lib/mysql, update_policy: rollback_protected }} ]
    injection_files:
      - {{ path: /etc/my.cnf, permission: 0o400, content: "encryption_key=$$SCONE::mariadbkey$$\\n" }}
volumes:
  - name: data
    export: [ {{ to: {{ session: messenger/backup }}, update_policy: ephemeral }} ]
  - {{ name: theirs, import: {{ session: other/app, volume: data }} }}
secrets:
  - {{ name: rootpass, kind: ascii, size: 24, export: [ {{ session: messenger/app }} ] }}
  - {{ name: rootkey, kind: binary, size: 32 }}
  - {{ name: mariadbkey, kind: binary, size: 32 }}
  - {{ name: key, kind: private-key, key_type: P-256 }}
  - {{ name: ca, kind: x509-ca, private_key: key, common_name: messenger }}
  - {{ name: crt, kind: x509, private_key: key, issuer: ca, endpoint: server, san: ["dns:db.local"], valid_for: 90 days }}
  - {{ name: from_vault, vault: {{ mount: kv, path: prod/db, field: password }} }}
access_policy:
  read: [CREATOR]
  update: [ {{ require-at-least-1: [ CREATOR ] }} ]
  create_sessions: [NONE]
security:
  attestation: {{ mode: hardware, tolerate: [], ignore_advisories: [] }}
"""


@cache
def private_key(name: str, kind: str = "ed25519") -> Any:
    """Return a key of one person; the same one for the same name."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"\0"))
    return ec.derive_private_key(
        int.from_bytes(name.encode().ljust(24, b"\1"), "big"), ec.SECP256R1() if kind == "P-256" else ec.SECP384R1()
    )


def spki(name: str, kind: str = "ed25519") -> bytes:
    return keys.spki_of(private_key(name, kind).public_key())


def key_id(name: str, kind: str = "ed25519") -> str:
    return keys.key_id_of(spki(name, kind))


def pem(name: str, kind: str = "ed25519") -> str:
    encoded: bytes = (
        private_key(name, kind)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return encoded.decode("ascii")


def inline_pem(name: str, kind: str = "ed25519") -> str:
    """Return the key as a quoted text for a policy in one line."""
    return '"' + pem(name, kind).replace("\n", "\\n") + '"'


def person(name: str) -> Principal:
    return Principal(frozenset({key_id(name)}))


def signed(statement: Statement, name: str, verdict: Verdict = Verdict.APPROVE, kind: str = "ed25519") -> Approval:
    return make_approval(statement, private_key(name, kind), verdict)
