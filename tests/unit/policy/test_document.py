"""Policies are read whole or refused with a place: tables of what is wrong, and that nothing else than PolicyError comes out.

Access policies have their own tests (test_access.py), so have placeholders (test_placeholders.py).
"""

from __future__ import annotations

import tracemalloc

import pytest

from fspf.core.errors import PolicyError
from fspf.policy.document import canonical_form, parse_policy
from fspf.policy.model import Board, Creator, KeyType, Nobody, Place, Signer, UpdatePolicy
from fspf.policy.semantics import warnings
from fspf.policy.tree import MAX_DEPTH, MAX_LEN, MAX_NODES
from fspf.policy.values import SecretKind
from tests.support.policies import FULL, HEX32, inline_pem, key_id

HEAD = 'version: "0.3"\nname: a\n'


def parse(body: str) -> object:
    return parse_policy((HEAD + body).encode())


def refused(body: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        parse(body)
    return caught.value


def test_the_page_s_example_is_read() -> None:
    policy = parse_policy(FULL.encode())
    assert (policy.name, policy.namespace, policy.predecessor) == ("messenger/db", "messenger", None)
    service = policy.service("mysql")
    assert service is not None
    assert service.command == ("mysqld", "--defaults-file=/etc/my.cnf")
    assert service.environment == {"MYSQL_ROOT_PASSWORD": "$$SCONE::rootpass$$", "MODE": "prod"}
    assert service.attestation == ({"mrenclave": [HEX32]}, {"tpm": {"pcrs": {"11": HEX32}, "ak": HEX32}})
    assert service.fspf_update_policy is UpdatePolicy.REINITIALIZABLE
    assert service.has_main_volume
    image = policy.image("mysql_image")
    assert image is not None
    assert image.injection_files[0].permission == 0o400
    assert image.injection_files[0].content == "encryption_key=$$SCONE::mariadbkey$$\n"
    assert image.volumes[0].path == "/var/lib/mysql"
    data, theirs = policy.volumes
    assert data.exports[0].session == "messenger/backup"
    assert data.exports[0].update_policy is UpdatePolicy.EPHEMERAL
    assert theirs.import_from is not None
    assert (theirs.import_from.session, theirs.import_from.name) == ("other/app", "data")
    certificate = policy.secret("crt")
    assert certificate is not None
    assert certificate.valid_for_s == 90 * 86400
    assert certificate.san == (("dns", "db.local"),)
    key = policy.secret("key")
    assert key is not None
    assert key.key_type is KeyType.P256
    vault = policy.secret("from_vault")
    assert vault is not None
    assert vault.kind is SecretKind.ASCII
    assert policy.access_policy.update == (Board(1, (Creator(),)),)
    assert policy.access_policy.create_sessions == (Nobody(),)
    assert len(policy.hash) == 64


def test_values_are_what_is_written_not_what_they_look_like() -> None:
    policy = parse_policy(
        (HEAD + "services: [{name: on, environment: {A: yes, B: 0x10, C: 1.0, D: 2026-01-01, E: 010}}]").encode()
    )
    assert policy.services[0].name == "on"
    assert dict(policy.services[0].environment) == {"A": "yes", "B": "0x10", "C": "1.0", "D": "2026-01-01", "E": "010"}


@pytest.mark.parametrize("written", ["0o400", "0400", "400", '"0400"'])
def test_permissions_are_octal_however_written(written: str) -> None:
    body = f"images: [{{name: i, injection_files: [{{path: /f, content: x, permission: {written}}}]}}]"
    assert parse_policy((HEAD + body).encode()).images[0].injection_files[0].permission == 0o400


def test_aliases_of_scone_are_read() -> None:
    policy = parse_policy((HEAD + f"services: [{{name: s, mrenclaves: [{HEX32}, {'11' * 32}]}}]").encode())
    assert policy.services[0].attestation == ({"mrenclave": HEX32}, {"mrenclave": "11" * 32})


def test_create_sessions_is_as_update_unless_it_is_given() -> None:
    policy = parse_policy((HEAD + f"access_policy: {{ update: [{key_id('ann')}] }}").encode())
    assert policy.access_policy.create_sessions == policy.access_policy.update
    assert policy.access_policy.read == (Creator(),)
    assert isinstance(policy.access_policy.update[0], Signer)


# ---------------------------------------------------------------------------------------------------- the hash

SAME = [
    'version: "0.3"\nname: a\nsecrets: [{name: s, kind: ascii, size: 8}]\n',
    "# a comment\nname: 'a'\nversion: '0.3'\nsecrets:\n  - kind: ascii\n    size: \"8\"\n    name: s\n",
    '{"name": "a", "secrets": [{"size": "8", "kind": "ascii", "name": "s"}], "version": "0.3"}',
]


def test_the_hash_is_of_what_is_said_not_of_how_it_is_written() -> None:
    assert len({parse_policy(text.encode()).hash for text in SAME}) == 1
    assert canonical_form(SAME[0].encode()) == (
        b'{"name":"a","secrets":[{"kind":"ascii","name":"s","size":"8"}],"version":"0.3"}'
    )


def test_the_hash_is_fixed_for_ever() -> None:
    assert parse_policy(SAME[0].encode()).hash == "01a8e963b813ed278efb592b8c43f6241c039bd893dcb786be1427102bab38a5"


def test_the_hash_changes_with_everything_that_is_said() -> None:
    variants = [
        SAME[0], SAME[0].replace("size: 8", "size: 9"), SAME[0].replace("name: a", "name: b"),
        SAME[0] + f"predecessor: {HEX32}\n", SAME[0].replace("name: s,", "name: t,"),
    ]  # fmt: skip
    assert len({parse_policy(text.encode()).hash for text in variants}) == len(variants)


# -------------------------------------------------------------------------------------- documents that are none

NO_DOCUMENT = {
    "empty": (b"", "empty"),
    "only a comment": (b"# nothing\n", "empty"),
    "a list": (b"- a\n", "is a mapping"),
    "a text": (b"hello", "is a mapping"),
    "not UTF-8": (b"name: a\nversion: \xff", "UTF-8"),
    "UTF-16": ("version: 1".encode("utf-16"), "UTF-8"),
    "a zero byte": (b"name: a\0", "zero byte"),
    "a zero byte, escaped": (b'version: "0.3"\nname: "\\0"', "zero byte"),
    "a control character": (b"name: \x07", "control characters"),
    "a lone surrogate": (b'name: "\\ud800"', "Unicode"),
    "an open bracket": (b"a: [", "no YAML"),
    "a tab": (b"a:\n\t- b", "no YAML"),
    "an anchor": (b"a: &x 1", "anchors"),
    "an alias": (b"a: *x", "aliases"),
    "a merge": (b"a: &x {b: 1}\nc: {<<: *x}", "anchors"),
    "a tag": (b"a: !!python/object/apply:os.system [ls]", "tags"),
    "a local tag": (b"a: !x 1", "tags"),
    "a directive": (b"%YAML 1.1\n---\na: 1", "directives"),
    "a tag directive": (b"%TAG ! tag:x,2000:\n---\na: 1", "directives"),
    "two documents": (b"a: 1\n---\nb: 2", "one document"),
    "a key twice": (b"name: a\nname: b", "twice"),
    "a list as key": (b"? [a]\n: b", "a key is a text"),
    "a billion laughs": (
        b"a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]", "anchors",
    ),
    "nested brackets": (b"[" * 200_000, "nest"),
    "nested dashes": (b"- " * 200_000, "nested at most"),
    "nested mappings": (b"{a: " * 100_000, "nested at most"),
    "nested questions": (b"? " * 200_000, "nested at most"),
    "many items": (b"- x\n" * 100_000, f"at most {MAX_NODES}"),
    "too long": (b"#" * (MAX_LEN + 1), f"at most {MAX_LEN} bytes"),
    "a long key": (b"x" * 500_000 + b": 1", "no YAML"),
    "a long value": (b'version: "0.3"\nname: ' + b"x" * 500_000, "characters and"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_DOCUMENT)
def test_what_is_no_document_is_refused(case: str) -> None:
    text, expected = NO_DOCUMENT[case]
    with pytest.raises(PolicyError, match=expected) as caught:
        parse_policy(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("case", NO_DOCUMENT)
def test_refusing_takes_bounded_memory(case: str) -> None:
    text, _ = NO_DOCUMENT[case]
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError):
            parse_policy(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


def test_depth_is_counted_exactly() -> None:
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert "nested" not in str(refused(f"security: {deep}"))
    assert "nested" in str(refused(f"security: [{deep}]"))


# ------------------------------------------------------------------------------------------------ what is wrong

WRONG = {
    # case: (after version and name, line, column, part of the message)
    "unknown key": ("services:\n  - name: s\n    comand: [x]\n", 5, 5, "did you mean command?"),
    "unknown top key": ("service: []\n", 3, 1, "did you mean services?"),
    "key of another section": ("volumes: [{name: v, path: /x}]\n", 3, 21, "no key 'path'"),
    "no name": ("services: [{command: [x]}]\n", 3, 12, "needs the key name"),
    "a null": ("services: [{name: ~}]\n", 3, 19, "is missing"),
    "an empty value": ("services:\n  - name:\n", 4, 10, "is missing"),
    "bad name": ("secrets: [{name: a b, kind: ascii, size: 1}]\n", 3, 18, "'a b' is none"),
    "dots": ("secrets: [{name: .., kind: ascii, size: 1}]\n", 3, 18, "'..' is none"),
    "list for a mapping": ("security: []\n", 3, 11, "is a mapping"),
    "mapping for a list": ("services: {name: s}\n", 3, 11, "is a list"),
    "text for a command": ("services: [{name: s, command: run it}]\n", 3, 31, "no shell"),
    "empty command": ("services: [{name: s, command: []}]\n", 3, 31, "at least 1 item"),
    "relative pwd": ("services: [{name: s, pwd: home}]\n", 3, 27, "begins with /"),
    "environment as a list": ("services: [{name: s, environment: [A=b]}]\n", 3, 35, "is a mapping"),
    "equals in a name": ("services: [{name: s, environment: {A=b: c}}]\n", 3, 36, "no name of a variable"),
    "tag without key": (f"services: [{{name: s, fspf_tag: {'0' * 32}}}]\n", 3, 22, "without fspf_key"),
    "key without tag": (f"services: [{{name: s, fspf_key: {HEX32}}}]\n", 3, 22, "needs fspf_tag"),
    "short key": (f"services: [{{name: s, fspf_tag: {'0' * 32}, fspf_key: 00}}]\n", 3, 76, "64 hex digits"),
    "key that is ascii": (
        f"services: [{{name: s, fspf_tag: {'0' * 32}, fspf_key: $$SCONE::k$$}}]\nsecrets: [{{name: k, kind: ascii, size: 32}}]\n",
        3, 76, "k is ascii",
    ),
    "key of another size": (
        f"services: [{{name: s, fspf_tag: {'0' * 32}, fspf_key: $$SCONE::k$$}}]\nsecrets: [{{name: k, kind: binary, size: 16}}]\n",
        3, 76, "k has 16",
    ),
    "unknown factor": ("services: [{name: s, attestation: [{mrenclav: x}]}]\n", 3, 37, "did you mean mrenclave?"),
    "no factors": ("services: [{name: s, attestation: [{}]}]\n", 3, 36, "would let anybody in"),
    "empty attestation": ("services: [{name: s, attestation: []}]\n", 3, 35, "at least 1 item"),
    "short measurement": ("services: [{name: s, attestation: [{mrenclave: ab}]}]\n", 3, 48, "64 hex digits"),
    "unknown part of a factor": ("services: [{name: s, attestation: [{tpm: {pcr: {}}}]}]\n", 3, 43, "did you mean pcrs?"),
    "no such pcr": (f"services: [{{name: s, attestation: [{{tpm: {{pcrs: {{24: {HEX32}}}}}}}]}}]\n", 3, 54, "from 0 to 23"),
    "both spellings": (
        f"services: [{{name: s, mrenclaves: [{HEX32}], attestation: [{{mrenclave: {HEX32}}}]}}]\n", 3, 34, "is an alias",
    ),
    "software below hardware": (
        f"services: [{{name: s, attestation: [{{measured-process: {{executable: {HEX32}}}}}]}}]\n", 3, 36, "no hardware",
    ),
    "bad mode": ("security: {attestation: {mode: software}}\n", 3, 32, "hardware or none"),
    "bad tolerance": ("security: {attestation: {tolerate: [debug]}}\n", 3, 37, "known are"),
    "no such image": ("services: [{name: s, image_name: imag}]\nimages: [{name: image}]\n", 3, 34, "did you mean image?"),
    "no such volume": ("images: [{name: i, volumes: [{name: v, path: /v}]}]\n", 3, 30, "no volume v"),
    "no such secret": ("services: [{name: s, command: [x, $$SCONE::pw$$]}]\n", 3, 35, "no secret pw"),
    "no such secret in a file": (
        "images:\n  - name: i\n    injection_files:\n      - path: /f\n        content: |\n          $$SCONE::pw$$\n", 7, 18, "no secret pw",
    ),
    "bytes in the environment": (
        "services: [{name: s, environment: {K: $$SCONE::k:bin$$}}]\nsecrets: [{name: k, kind: binary, size: 4}]\n",
        3, 39, "add :base64",
    ),
    "half a placeholder": ('services: [{name: s, command: ["$$SCONE::"]}]\n', 3, 32, "no placeholder"),
    "a placeholder in a path": ("services: [{name: s, pwd: /$$SCONE::k$$}]\n", 3, 27, "cannot have placeholders"),
    "traversal": ("images: [{name: i, injection_files: [{path: /a/../../etc, content: x}]}]\n", 3, 45, "no . and .."),
    "double slash": ("images: [{name: i, injection_files: [{path: /a//b, content: x}]}]\n", 3, 45, "no //"),
    "a directory": ("images: [{name: i, injection_files: [{path: /a/, content: x}]}]\n", 3, 45, "that of a file"),
    "setuid": ("images: [{name: i, injection_files: [{path: /a, content: x, permission: 0o4755}]}]\n", 3, 73, "three octal"),
    "decimal": ("images: [{name: i, injection_files: [{path: /a, content: x, permission: 256}]}]\n", 0, 0, ""),
    "eight is not octal": ("images: [{name: i, injection_files: [{path: /a, content: x, permission: 800}]}]\n", 3, 73, "octal"),
    "a path twice": (
        "images:\n  - name: i\n    injection_files:\n      - {path: /a, content: x}\n      - {path: /a, content: y}\n", 7, 29, "line 6",
    ),
    "a volume over a file": (
        "images:\n  - name: i\n    injection_files: [{path: /a, content: x}]\n    volumes: [{name: v, path: /a/b}]\nvolumes: [{name: v}]\n",
        6, 15, "which is a file",
    ),
    "a volume as root": ("images: [{name: i, volumes: [{name: v, path: /}]}]\nvolumes: [{name: v}]\n", 3, 46, "fspf_key"),
    "an instance's policy for a volume": (
        "images: [{name: i, volumes: [{name: v, path: /v, update_policy: rollback_protected_reinitializable}]}]\nvolumes: [{name: v}]\n",
        3, 65, "main volume",
    ),
    "half a volume": (f"volumes: [{{name: v, key: {HEX32}}}]\n", 3, 11, "belong together"),
    "import with a key": (f"volumes: [{{name: v, import: {{session: b}}, key: {HEX32}}}]\n", 3, 43, "exporter's business"),
    "export of an import": ("volumes: [{name: v, import: {session: b}, export: [c]}]\n", 3, 43, "exporter's business"),
    "import from itself": ("volumes: [{name: v, import: {session: a}}]\n", 3, 29, "from itself"),
    "export to itself": ("volumes: [{name: v, export: [a]}]\n", 3, 30, "to itself"),
    "export twice": ("volumes: [{name: v, export: [b, {to: {session: b}}]}]\n", 3, 38, "another export"),
    "bad freshness": ("volumes: [{name: v, freshness: sometimes}]\n", 3, 32, "freshness is strict"),
    "two volumes": ("volumes: [{name: v}, {name: v}]\n", 3, 22, "another volume"),
    "no kind": ("secrets: [{name: k}]\n", 3, 11, "needs the key kind"),
    "bad kind": ("secrets: [{name: k, kind: ASCII}]\n", 3, 27, "did you mean"),
    "no size": ("secrets: [{name: k, kind: ascii}]\n", 3, 11, "needs the key size"),
    "size zero": ("secrets: [{name: k, kind: ascii, size: 0}]\n", 3, 40, "from 1 to"),
    "size in hex": ("secrets: [{name: k, kind: ascii, size: 0x10}]\n", 3, 40, "from 1 to"),
    "size in other digits": ("secrets: [{name: k, kind: ascii, size: ١٢}]\n", 3, 40, "from 1 to"),
    "huge size": ("secrets: [{name: k, kind: ascii, size: 99999999999999999999999}]\n", 3, 40, "from 1 to"),
    "size and value": ("secrets: [{name: k, kind: ascii, size: 1, value: x}]\n", 3, 34, "is its own"),
    "odd hex": ("secrets: [{name: k, kind: binary, value: abc}]\n", 3, 42, "pairs of hex"),
    "key of another kind": ("secrets: [{name: k, kind: ascii, size: 1, san: []}]\n", 3, 43, "no key san"),
    "whose key migrates": ("secrets: [{name: k, kind: private-key}, {name: c, kind: x509, common_name: x, private_key: k, migrate: true}]\n", 3, 95, "where the key is: k"),
    "certificate without name": (
        "secrets: [{name: k, kind: private-key}, {name: c, kind: x509, private_key: k}]\n", 3, 41, "common_name",
    ),
    "no such key": ("secrets: [{name: c, kind: x509, private_key: k, common_name: x}]\n", 3, 11, "no secret k"),
    "key that cannot sign": (
        "secrets: [{name: k, kind: private-key, key_type: X25519}, {name: c, kind: x509, private_key: k, common_name: x}]\n",
        3, 59, "cannot sign",
    ),
    "issuer that is none": (
        "secrets: [{name: k, kind: private-key}, {name: c, kind: x509, private_key: k, common_name: x, issuer: k}]\n", 3, 41, "x509-ca",
    ),
    "own issuer": (
        "secrets: [{name: k, kind: private-key}, {name: c, kind: x509-ca, private_key: k, common_name: x, issuer: c}]\n", 3, 41, "itself",
    ),
    "issuers in a circle": (
        ("secrets:\n  - {name: k, kind: private-key}\n  - {name: c, kind: x509-ca, private_key: k, common_name: x, issuer: d}\n"
        "  - {name: d, kind: x509-ca, private_key: k, common_name: x, issuer: c}\n"), 5, 5, "c <- d <- c",
    ),
    "bad san": ("secrets: [{name: k, kind: private-key}, {name: c, kind: x509, private_key: k, san: [db]}]\n", 3, 85, "dns:"),
    "bad address": ("secrets: [{name: k, kind: private-key}, {name: c, kind: x509, private_key: k, san: ['ip:1.2.3']}]\n", 3, 85, "no IP"),
    "bad host": ("secrets: [{name: k, kind: private-key}, {name: c, kind: x509, private_key: k, san: ['dns:a_b']}]\n", 3, 85, "no name of a host"),
    "bad duration": ("secrets: [{name: k, kind: private-key}, {name: c, kind: x509, private_key: k, common_name: x, valid_for: 90}]\n", 3, 106, "90 days"),
    "bad boolean": ("secrets: [{name: k, kind: private-key, migrate: yes}]\n", 3, 49, "true or false"),
    "a way out of Vault's mount": ("secrets: [{name: k, vault: {mount: kv, path: ../sys, field: f}}]\n", 3, 46, "parts between"),
    "a public key of nothing": ("secrets: [{name: k, kind: public-key}]\n", 3, 11, "either"),
    "bad predecessor": ("predecessor: 12\n", 3, 14, "64 hex"),
    "restore of nothing": (
        f"restore: [{{volume: v, tag: {'0' * 32}, generation: 1, epoch: 1, reason: x}}]\n", 3, 11, "no volume v",
    ),
    "restore without a reason": (
        f"volumes: [{{name: v}}]\nrestore: [{{volume: v, tag: {'0' * 32}, generation: 1, epoch: 1, reason: ''}}]\n", 4, 95, "reason is empty",
    ),
    "restore of an import": (
        f"volumes: [{{name: v, import: b}}]\nrestore: [{{volume: v, tag: {'0' * 32}, generation: 1, epoch: 1, reason: x}}]\n", 4, 11, "is imported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_place(case: str) -> None:
    body, line, column, expected = WRONG[case]
    if not expected:
        parse(body)
        return
    error = refused(body)
    assert expected in str(error)
    assert (error.line, error.column) == (line, column)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("version: 0.2\n", "not known"), ("", "needs the key version"), ("version: [1]\n", "is a text")],
)
def test_other_versions_are_refused(version: str, expected: str) -> None:
    with pytest.raises(PolicyError, match=expected):
        parse_policy(f"{version}name: a\n".encode())


def test_version_may_be_without_quotes() -> None:
    assert parse_policy(b"version: 0.3\nname: a").version == "0.3"


@pytest.mark.parametrize(
    "name", ["/a", "a/", "a//b", "a/../b", ".", "a b", "ä", "x" * 101, "/".join("abcdefghi"), "a/" * 120 + "a", "a%2Fb"]
)
def test_a_policy_s_name_leads_nowhere_else(name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(f'version: "0.3"\nname: "{name}"\n'.encode())
    assert (caught.value.line, caught.value.column) == (2, 7)


def test_what_is_hardly_meant_is_warned_of() -> None:
    policy = parse_policy(
        (HEAD + "services: [{name: s}]\nimages: [{name: i}]\nvolumes: [{name: v}]\nsecrets: [{name: k, kind: ascii, size: 1}]\n"
         "access_policy: {update: [ANY]}\nsecurity: {attestation: {mode: none}}\n").encode()
    )  # fmt: skip
    found = list(warnings(policy))
    assert [place for place, _ in found[:4]] == [Place(3, 12), Place(4, 10), Place(5, 11), Place(6, 11)]
    assert len(found) == 6
    assert not list(
        warnings(parse_policy((HEAD + f"access_policy: {{update: [signer: {inline_pem('ann')}]}}").encode()))
    )
